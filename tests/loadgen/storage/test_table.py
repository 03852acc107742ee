"""The comparison: every side runs and is verified, and is told with its figures and ratios."""

import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from loadgen.storage import table
from loadgen.storage.job import Job, Row, Session, WrongResult
from loadgen.storage.load import Load
from loadgen.storage.ours import ours
from loadgen.storage.table import AIOSQLITE, OURS, Scenario, Shown, Side, scenarios
from loadgen.tables import BenchPlan, Mark, TableError

SIDES = sorted({side for scenario in scenarios() for side in scenario.sides}, key=str)
FAST = [side for side in SIDES if side.loop == "trio" and "journal" not in side.name]
LOADS = {"appends": Load(tasks=20, reads_of_ten=0), "mixed": Load(tasks=20, reads_of_ten=8)}


def run(side: Side, job: Job, load: str, folder: Path) -> None:
    packages = ["aiosqlite"] if "aiosqlite" in side.name else []
    packages += ["aiosqlitepool"] if "pool" in side.name and packages else []
    for package in (*packages, *(["uvloop"] if side.loop == "uvloop" else [])):
        if importlib.util.find_spec(package) is None:
            pytest.skip(f"{package} is not installed; it comes with the extra `peers`")
    figures = side.measure(job, LOADS[load], path=folder / "run.db", seconds=0.15)
    assert figures["rate"] > 0
    assert 0 < figures["p50_ms"] <= figures["p99_ms"]


@pytest.mark.parametrize("side", FAST, ids=str)
def test_each_way_of_trio_runs_and_is_verified(side: Side, job: Job, tmp_path: Path) -> None:
    run(side, job, "mixed", tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("load", LOADS)
@pytest.mark.parametrize("side", SIDES, ids=str)
def test_each_side_runs_and_is_verified(side: Side, load: str, job: Job, tmp_path: Path) -> None:
    run(side, job, load, tmp_path)


@asynccontextmanager
async def forgetful(path: Path, synchronous: str) -> AsyncIterator[Session]:
    """Ours, but for one turn that it says it has and has not."""

    class Forgetful:
        def __init__(self, session: Session) -> None:
            self.read = session.read
            self._append = session.append
            self._appended = 0

        async def append(self, row: Row) -> None:
            self._appended += 1
            if self._appended != 7:
                await self._append(row)

    async with ours(path, synchronous) as session:
        yield Forgetful(session)


def test_a_side_that_loses_a_turn_fails_the_run(job: Job, tmp_path: Path) -> None:
    side = attrs.evolve(OURS, opener=f"{__name__}:forgetful")
    with pytest.raises(WrongResult, match="acknowledged"):
        side.measure(job, LOADS["appends"], path=tmp_path / "run.db", seconds=0.1)


def test_a_side_without_its_package_says_so(job: Job, tmp_path: Path) -> None:
    side = attrs.evolve(OURS, opener="no_such_package:opened")
    with pytest.raises(RuntimeError, match="no_such_package is not installed"):
        side.measure(job, LOADS["mixed"], path=tmp_path / "run.db", seconds=0.1)


def figures(rate: float, p99_ms: float = 1.0) -> dict[str, float]:
    return {"rate": rate, "p50_ms": 0.5, "p99_ms": p99_ms, "lag_p99_ms": 4.0}


def test_a_row_for_each_figure_with_only_the_ratios_of_what_was_measured() -> None:
    bound = Shown("lag_p99_ms", (Mark(str(OURS), "5 ms", 1),), {"5 ms": 5.0})
    marks = (Mark(str(OURS), str(AIOSQLITE), 2), Mark(str(OURS), str(table.JOURNAL), 2))
    scenario = Scenario("appends", LOADS["appends"], (OURS, AIOSQLITE), (Shown("rate", marks), bound))
    seen = {OURS: [figures(300, 2), figures(30, 20), figures(200, 4)], AIOSQLITE: [figures(100)] * 3}
    rate, lag = table.rows(scenario, seen, "a note")
    assert (rate.title, rate.value("ours, full"), rate.note) == ("appends, calls/s", 200, "a note")
    assert [(mark.name, rate.ratio(mark)) for mark in rate.marks] == [("ours, full / aiosqlite, full", 2.0)]
    assert rate.extra["ours, full"] == {"p50, ms": 0.5, "p99, ms": 4, "loop lag p99, ms": 4.0}
    assert [(mark.name, lag.ratio(mark)) for mark in lag.marks] == [("ours, full / 5 ms", 1.25)]


def test_sides_take_turns(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def measured(side: Side, *_args: object, **_kwargs: object) -> dict[str, float]:
        order.append(side.name)
        return figures(len(order))

    monkeypatch.setattr(Side, "measure", measured)
    scenario = Scenario("appends", LOADS["appends"], (OURS, AIOSQLITE), ())
    seen = table.run(scenario, job, path=tmp_path / "run.db", rounds=2, seconds=1)
    assert order == ["ours", "aiosqlite"] * 2
    assert {side: [each["rate"] for each in all_] for side, all_ in seen.items()} == {
        OURS: [1, 3],
        AIOSQLITE: [2, 4],
    }


def test_marks_are_of_sides_that_are_measured() -> None:
    names = [scenario.name for scenario in scenarios()]
    assert len(set(names)) == len(names) == 5
    for scenario in scenarios():
        sides = {str(side) for side in scenario.sides}
        assert len(sides) == len(scenario.sides)
        for shown in scenario.shown:
            assert shown.figure in table.UNITS
            for mark in shown.marks:
                assert mark.ours in sides
                assert mark.other in {*sides, *shown.bounds}


def small(folder: Path, only: str = "lone read", **changes: Any) -> list[table.Row]:
    plan = BenchPlan(rounds=1, seconds=0.1, only=only, folder=folder, **changes)
    return list(table.measure(plan, turns=2000))


def test_a_part_of_it_for_some_sides(tmp_path: Path) -> None:
    (row,) = small(tmp_path, servers=(str(OURS), str(table.BARE)))
    assert row.title == "a lone read, p50, ms"
    assert list(row.rounds) == ["ours, full", "bare to_thread, full"]
    assert row.ratio(row.marks[0]) > 0
    # Nothing is left behind.
    assert list(tmp_path.iterdir()) == []


def test_a_side_that_nobody_knows_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(TableError, match="no such side: postgres; there are aiosqlite"):
        small(tmp_path, servers=("postgres",))


@pytest.mark.parametrize("error", [WrongResult("1 of 2"), RuntimeError("not installed")])
def test_a_run_that_fails_ends_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise error

    monkeypatch.setattr(Side, "measure", fail)
    with pytest.raises(TableError, match=f"a lone read: {error}"):
        small(tmp_path)


@pytest.mark.parametrize(("kind", "is_told"), [("tmpfs", True), ("ext4", False)])
def test_a_folder_in_memory_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, is_told: bool
) -> None:
    monkeypatch.setattr(table, "filesystem", lambda _folder: kind)
    (row,) = small(tmp_path, servers=(str(OURS),))
    assert ("in memory" in row.note) is is_told


def test_the_file_system_is_that_of_the_innermost_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    class Part:
        def __init__(self, mountpoint: str, fstype: str) -> None:
            self.mountpoint, self.fstype = mountpoint, fstype

    parts = [Part("/", "ext4"), Part("/no/such", "tmpfs"), Part("/no/such/disk", "xfs")]
    monkeypatch.setattr(table.psutil, "disk_partitions", lambda all: parts)
    found = [table.filesystem(Path(path)) for path in ("/no", "/no/such/x", "/no/such/disk/x")]
    assert found == ["ext4", "tmpfs", "xfs"]
