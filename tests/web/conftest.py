"""What the HTTP side logs."""

from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
import structlog
import structlog.testing


@pytest.fixture
def log_entries() -> Iterator[list[MutableMapping[str, Any]]]:
    """The entries, whichever logging an earlier test has set up."""
    before = structlog.get_config()
    structlog.reset_defaults()
    try:
        with structlog.testing.capture_logs() as entries:
            yield entries
    finally:
        structlog.configure(**before)
