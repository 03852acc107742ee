"""Limits that depend on each other."""

import pytest

from persona.config import LimitSettings
from persona.errors import SettingsError


def test_the_soft_memory_limit_is_at_most_the_hard_one() -> None:
    with pytest.raises(SettingsError, match=r"memory_soft_limit_mb = 300: .*memory_limit_mb = 200"):
        LimitSettings(memory_soft_limit_mb=300, memory_limit_mb=200)
    assert LimitSettings(memory_soft_limit_mb=200, memory_limit_mb=200)
    assert LimitSettings(memory_soft_limit_mb=300, memory_limit_mb=0)
    assert LimitSettings(memory_soft_limit_mb=0, memory_limit_mb=200)
