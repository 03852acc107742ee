"""The guide's table: each promise has a row, and each row comes out of a real measurement."""

import importlib.util
from pathlib import Path

import pytest

from loadgen import guide
from loadgen.tables import BenchPlan

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def needs_aiohttp() -> None:
    if importlib.util.find_spec("aiohttp") is None:
        pytest.skip("aiohttp is not installed; it comes with the extra `peers`")


def test_every_promise_has_a_row_with_all_servers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guide, "STEPS", (10,))
    rows = {row.name.split(":")[0].split()[0]: row for row in guide.measure(BenchPlan(rounds=1, seconds=0.5))}
    assert list(rows) == ["connections", "JSON", "database", "handlers", "broadcast", "memory"]
    for row in rows.values():
        assert set(row.rounds) == {"before", "trio-websocket", "sansio"}
        assert all(row.value(server) > 0 for server in row.rounds)
        assert row.marks
        assert row.note
    # Wide apart on any machine: one commit for many against one for each, slots against one shared handler.
    assert rows["database"].value("sansio") > rows["database"].value("before")
    assert rows["handlers"].value("sansio") > rows["handlers"].value("before")


def test_a_server_that_is_too_slow_holds_no_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guide, "STEPS", (10, 20))
    monkeypatch.setattr(guide, "BEARABLE_MS", 0.001)
    (row, *_) = guide.measure(BenchPlan(rounds=1, seconds=0.5, only="connections", servers=("sansio",)))
    assert row.value("sansio") == 0


def test_the_database_is_on_the_disk_that_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    files: list[Path] = []

    async def writes(_seconds: float, file: Path) -> float:
        files.append(file)
        return 1.0

    monkeypatch.setattr(guide, "_before_writes", writes)
    monkeypatch.setattr(guide, "_our_writes", writes)
    guide.database_row(BenchPlan(rounds=1, folder=tmp_path))
    assert all(file.is_relative_to(tmp_path) for file in files)
    assert list(tmp_path.iterdir()) == []
