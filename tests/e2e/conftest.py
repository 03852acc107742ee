"""What every end-to-end test may want to be sure of."""

from collections.abc import Callable, Iterator
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any

import pytest
import structlog.testing

from tests import serving as real
from tests.serving import RunningServer

Serving = Callable[..., AbstractAsyncContextManager[RunningServer]]


@pytest.fixture
def serving(engine: str) -> Serving:
    """`tests.serving.serving` with that engine: a test that asks for this runs over each."""

    def started(file: Path, **sections: dict[str, Any]) -> AbstractAsyncContextManager[RunningServer]:
        return real.serving(file, **{**sections, "server": {"engine": engine, **sections.get("server", {})}})

    return started


@pytest.fixture
def nothing_crashed() -> Iterator[None]:
    """The server logged no error, whatever its clients and the model did to it.

    An error in the log is a bug or a broken machine. For servers in this process; which logging
    an earlier test has set up does not matter.
    """
    before = structlog.get_config()
    structlog.reset_defaults()
    try:
        with structlog.testing.capture_logs(processors=[structlog.processors.format_exc_info]) as entries:
            yield
    finally:
        structlog.configure(**before)
    assert [entry for entry in entries if entry["log_level"] in ("error", "critical")] == []
