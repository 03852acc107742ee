"""`loadgen bench storage`: our database beside others, on one file, with one pair of statements.

Sides take turns within a round. Each run has a fresh copy of the file, and is verified afterwards.
"""

import statistics
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Literal

import attrs
import psutil

from loadgen.storage.job import Job, WrongResult
from loadgen.storage.load import Load, Loop, Opener, Run
from loadgen.tables import BenchPlan, Mark, Row, TableError

Figures = Mapping[str, float]
TURNS = 100_000
WARM_UP_S = 0.3
IN_MEMORY = {"tmpfs", "ramfs"}
UNITS = {"rate": "calls/s", "p50_ms": "p50, ms", "p99_ms": "p99, ms", "lag_p99_ms": "loop lag p99, ms"}


@attrs.frozen
class Side:
    """A way to use the file, at a level of `synchronous`."""

    name: str
    loop: Loop
    opener: str
    """Module and function; imported when it is its turn, so that ours can be measured alone."""
    synchronous: Literal["full", "normal"] = "full"

    def __str__(self) -> str:
        return f"{self.name}, {self.synchronous}"

    def measure(self, job: Job, load: Load, *, path: Path, seconds: float) -> dict[str, float]:
        """One run on a fresh file. Raises `WrongResult`, and `RuntimeError` where a package is missing."""
        job.copy(path)
        run = Run(job, load, seconds, min(WARM_UP_S, seconds))
        run(self.loop, self._open()(path, self.synchronous))
        job.verify(path, run.acknowledged)
        return run.figures()

    def _open(self) -> Opener:
        module, _, function = self.opener.partition(":")
        try:
            opener: Opener = getattr(import_module(module), function)
        except ImportError as exc:
            raise RuntimeError(f"{exc.name} is not installed; it comes with the extra `peers`") from None
        return opener


OURS = Side("ours", "trio", "loadgen.storage.ours:ours")
OURS_NORMAL = attrs.evolve(OURS, synchronous="normal")
AS_SERVED = Side("ours, with all the server does", "trio", "loadgen.storage.ours:as_served")
JOURNAL = Side("one default-journal connection", "trio", "loadgen.peers.threads_peer:default_journal")
BARE = Side("bare to_thread", "trio", "loadgen.peers.threads_peer:one_in_wal")
TEN = Side("pool of ten over to_thread", "trio", "loadgen.peers.threads_peer:pool_of_ten")
AIOSQLITE = Side("aiosqlite", "asyncio", "loadgen.peers.aiosqlite_peer:one_connection")
AIOSQLITE_UVLOOP = attrs.evolve(AIOSQLITE, name="aiosqlite on uvloop", loop="uvloop")
AIOSQLITE_CURSORS = Side(
    "aiosqlite with cursors", "asyncio", "loadgen.peers.aiosqlite_peer:one_connection_with_cursors"
)
AIOSQLITEPOOL = Side("aiosqlitepool", "asyncio", "loadgen.peers.aiosqlitepool_peer:pool")


def _normal(side: Side) -> Side:
    return attrs.evolve(side, synchronous="normal")


def _mark(other: Side | str, at_least: float | None = None, side: Side = OURS) -> Mark:
    return Mark(str(side), str(other), at_least)


@attrs.frozen
class Shown:
    """A figure, and the ratios there should be of it."""

    figure: str
    marks: tuple[Mark, ...]
    bounds: Mapping[str, float] = attrs.field(factory=dict)


@attrs.frozen
class Scenario:
    """A load, who bears it, and what is shown of it."""

    name: str
    load: Load
    sides: tuple[Side, ...]
    shown: tuple[Shown, ...]


def scenarios() -> Iterator[Scenario]:
    """What is measured."""
    others = (AIOSQLITE, _normal(AIOSQLITE), AIOSQLITEPOOL, _normal(AIOSQLITEPOOL), TEN, _normal(TEN))
    yield Scenario(
        "appends of 300 bytes, 100 tasks",
        Load(tasks=100, reads_of_ten=0),
        (OURS, OURS_NORMAL, AS_SERVED, JOURNAL, *others, AIOSQLITE_UVLOOP),
        (
            Shown(
                "rate",
                (
                    _mark(JOURNAL, 20),
                    _mark(AIOSQLITE, 2),
                    _mark(_normal(AIOSQLITE), 2),
                    _mark(AIOSQLITE_UVLOOP),
                    _mark(AIOSQLITEPOOL, 10),
                    _mark(_normal(AIOSQLITEPOOL), 10),
                    _mark(TEN),
                    _mark(_normal(TEN)),
                ),
            ),
            Shown("p99_ms", (*(_mark(other, 1) for other in (JOURNAL, *others)), _mark(AIOSQLITE_UVLOOP))),
        ),
    )
    yield Scenario(
        "reads of the last 20 turns, 50 tasks",
        Load(tasks=50, reads_of_ten=10),
        (OURS, AS_SERVED, TEN, AIOSQLITE_CURSORS, AIOSQLITE, AIOSQLITE_UVLOOP, AIOSQLITEPOOL),
        (
            Shown(
                "rate",
                (
                    _mark(TEN, 6),
                    _mark(AIOSQLITE_CURSORS, 3),
                    _mark(AIOSQLITE),
                    _mark(AIOSQLITE_UVLOOP),
                    _mark(AIOSQLITEPOOL),
                ),
            ),
        ),
    )
    yield Scenario(
        "eight reads to two appends, 50 tasks",
        Load(tasks=50, reads_of_ten=8),
        (OURS, AS_SERVED, TEN, _normal(TEN), AIOSQLITE),
        (
            Shown("rate", (_mark(TEN, 6), _mark(_normal(TEN)), _mark(AIOSQLITE))),
            Shown("lag_p99_ms", (_mark("5 ms", 1),), {"5 ms": 5.0}),
        ),
    )
    yield Scenario(
        "a lone append",
        Load(tasks=1, reads_of_ten=0),
        (OURS, BARE, OURS_NORMAL, _normal(BARE)),
        (Shown("p50_ms", (_mark(BARE, 1 / 1.5), _mark(_normal(BARE), 1 / 1.5, OURS_NORMAL))),),
    )
    yield Scenario(
        "a lone read",
        Load(tasks=1, reads_of_ten=10),
        (OURS, BARE),
        (Shown("p50_ms", (_mark(BARE, 1 / 1.2),)),),
    )


def run(
    scenario: Scenario, job: Job, *, path: Path, rounds: int, seconds: float
) -> dict[Side, list[Figures]]:
    """The figures of each round, by side. Raises `WrongResult`, `RuntimeError`."""
    seen: dict[Side, list[Figures]] = {side: [] for side in scenario.sides}
    for _ in range(rounds):
        for side, figures in seen.items():
            figures.append(side.measure(job, scenario.load, path=path, seconds=seconds))
    return seen


def rows(scenario: Scenario, seen: Mapping[Side, Sequence[Figures]], note: str = "") -> Iterator[Row]:
    """Lines of the table."""
    names = {str(side) for side in seen}
    for shown in scenario.shown:
        yield Row(
            name=scenario.name,
            unit=UNITS[shown.figure],
            rounds={str(side): [each[shown.figure] for each in all_] for side, all_ in seen.items()},
            more_is_better=shown.figure == "rate",
            marks=tuple(
                mark for mark in shown.marks if mark.ours in names and mark.other in {*names, *shown.bounds}
            ),
            bounds=shown.bounds,
            extra={
                str(side): {
                    unit: statistics.median(each[key] for each in all_)
                    for key, unit in UNITS.items()
                    if key != shown.figure
                }
                for side, all_ in seen.items()
            },
            note=note,
        )


def measure(plan: BenchPlan, *, turns: int = TURNS) -> Iterator[Row]:
    """See `tables.TABLES`."""
    known = {str(side) for scenario in scenarios() for side in scenario.sides}
    if unknown := set(plan.servers) - known:
        raise TableError(f"no such side: {', '.join(sorted(unknown))}; there are {'; '.join(sorted(known))}")
    note = (
        "the file was in memory, where a commit waits for no disk"
        if filesystem(plan.folder) in IN_MEMORY
        else ""
    )
    with tempfile.TemporaryDirectory(dir=plan.folder, prefix="bench-storage-") as made:
        job = Job.prepare(Path(made) / "template.db", turns)
        path = Path(made) / "run.db"
        for scenario in scenarios():
            chosen = _only(scenario, plan.servers)
            if plan.only not in scenario.name or not chosen.sides:
                continue
            try:
                seen = run(chosen, job, path=path, rounds=plan.rounds, seconds=plan.seconds)
            except (WrongResult, RuntimeError) as exc:
                raise TableError(f"{scenario.name}: {exc}") from None
            yield from rows(chosen, seen, note)


def filesystem(folder: Path) -> str:
    """The type of the file system that the folder is on; empty where the system does not say."""
    resolved = folder.resolve()
    mounts = [
        (len(Path(part.mountpoint).parts), part.fstype)
        for part in psutil.disk_partitions(all=True)
        if resolved.is_relative_to(part.mountpoint)
    ]
    return max(mounts, default=(0, ""))[1]


def _only(scenario: Scenario, names: Sequence[str]) -> Scenario:
    sides = tuple(side for side in scenario.sides if not names or str(side) in names)
    return attrs.evolve(scenario, sides=sides)
