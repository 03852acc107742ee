"""What a test is run over, for each, and disks that not every machine offers."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import disk


@pytest.fixture(params=["trio-websocket", "sansio"])
def engine(request: pytest.FixtureRequest) -> str:
    """The name of an engine, as the settings have it."""
    return request.param


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Meanwhile the garbage collector does nothing: what goes is what nobody knows any more."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A folder that is a file system of its own, of 16 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    with disk.mounted(folder, 16 * 1024 * 1024):
        yield folder


@pytest.fixture
def unwritable(tmp_path: Path) -> disk.Unwritable:
    """`disk.unwritable`, where it holds for files in `tmp_path`, those that are open included."""
    disk.require_immutable_files(tmp_path)
    return disk.unwritable
