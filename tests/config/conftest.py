"""Where the tests of settings run."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds a persona.toml it did not write."""
    monkeypatch.chdir(tmp_path)
