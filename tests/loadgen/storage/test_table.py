"""The comparison: every side runs and is verified, and ratios are those of the rounds."""

import importlib.util
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import attrs
import pytest

from loadgen.storage import table
from loadgen.storage.job import Job, Row, Session, WrongResult
from loadgen.storage.load import Load
from loadgen.storage.ours import ours
from loadgen.storage.table import AIOSQLITE, OURS, Mark, Scenario, Side, lines, scenarios

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


ROUNDS = [
    {OURS: figures(300, 2), AIOSQLITE: figures(100, 3)},
    # The whole machine was slow: no ratio says so.
    {OURS: figures(30, 20), AIOSQLITE: figures(10, 10)},
    {OURS: figures(200, 4), AIOSQLITE: figures(100, 8)},
]


@pytest.mark.parametrize(
    ("mark", "said"),
    [
        (Mark(OURS, AIOSQLITE, at_least=3), "rate 3.00 (2.00 to 3.00), mark 3.00: ok"),
        (Mark(OURS, AIOSQLITE, at_least=3.1), "rate 3.00 (2.00 to 3.00), mark 3.10: MISSED"),
        (Mark(OURS, AIOSQLITE, "p99_ms", 1), "p99_ms 1.50 (0.50 to 2.00), mark 1.00: ok"),
        (Mark(OURS, 5.0, "lag_p99_ms", 1), "ours, full / 5.0: lag_p99_ms 1.25 (1.25 to 1.25), mark 1.00: ok"),
        (Mark(OURS, AIOSQLITE), "ours, full / aiosqlite, full: rate 3.00 (2.00 to 3.00)"),
    ],
)
def test_a_ratio_is_the_median_of_the_rounds_own_and_above_one_in_our_favour(mark: Mark, said: str) -> None:
    assert mark.line(ROUNDS).endswith(said)


def test_a_table_shows_medians_and_only_ratios_of_what_was_measured() -> None:
    scenario = Scenario(
        "appends",
        LOADS["appends"],
        (OURS, AIOSQLITE),
        (
            Mark(OURS, AIOSQLITE, at_least=2),
            Mark(OURS, table.JOURNAL, at_least=2),
            Mark(OURS, 5.0, "lag_p99_ms"),
        ),
    )
    told = list(lines(scenario, ROUNDS))
    assert "| ours | trio | full | 200 | 0.50 | 4.00 | 4.00 |" in told
    assert "| aiosqlite | asyncio | full | 100 | 0.50 | 8.00 | 4.00 |" in told
    assert len([line for line in told if line.startswith("*")]) == 2


def test_sides_take_turns(job: Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []

    def measured(side: Side, *_args: object, **_kwargs: object) -> dict[str, float]:
        order.append(side.name)
        return figures(1)

    monkeypatch.setattr(Side, "measure", measured)
    scenario = Scenario("appends", LOADS["appends"], (OURS, AIOSQLITE), ())
    rounds = table.measure(scenario, job, path=tmp_path / "run.db", rounds=2, seconds=1)
    assert order == ["ours", "aiosqlite"] * 2
    assert [set(each) for each in rounds] == [{OURS, AIOSQLITE}] * 2


def test_marks_are_of_sides_that_are_measured() -> None:
    names = [scenario.name for scenario in scenarios()]
    assert len(set(names)) == len(names) == 5
    for scenario in scenarios():
        assert len(set(scenario.sides)) == len(scenario.sides)
        for mark in scenario.marks:
            assert mark.side in scenario.sides
            assert mark.other in scenario.sides or isinstance(mark.other, float)
