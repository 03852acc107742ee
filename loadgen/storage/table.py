"""What is compared with what, and how that is told."""

import statistics
from collections.abc import Iterator, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Literal

import attrs

from loadgen.storage.job import Job
from loadgen.storage.load import Load, Loop, Opener, Run

Figures = Mapping[str, float]
WARM_UP_S = 0.3


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


@attrs.frozen
class Mark:
    """A ratio that there should be, above 1 in favour of `side`; without `at_least`, one only to know."""

    side: Side
    other: Side | float
    """A side, or a bound."""
    figure: str = "rate"
    at_least: float | None = None

    def ratio(self, figures: Mapping[Side, Figures]) -> float:
        """Of one round."""
        mine = figures[self.side][self.figure]
        other = figures[self.other][self.figure] if isinstance(self.other, Side) else self.other
        return mine / other if self.figure == "rate" else other / mine

    def line(self, rounds: Sequence[Mapping[Side, Figures]]) -> str:
        """The median of the rounds' ratios, their range, and whether it is enough."""
        ratios = sorted(self.ratio(figures) for figures in rounds)
        median = statistics.median(ratios)
        line = f"{self.side} / {self.other}: {self.figure} {median:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        if self.at_least is None:
            return line
        return f"{line}, mark {self.at_least:.2f}: {'ok' if median >= self.at_least else 'MISSED'}"


@attrs.frozen
class Scenario:
    """One table."""

    name: str
    load: Load
    sides: tuple[Side, ...]
    marks: tuple[Mark, ...]


def scenarios() -> Iterator[Scenario]:
    """The tables."""
    others = (AIOSQLITE, _normal(AIOSQLITE), AIOSQLITEPOOL, _normal(AIOSQLITEPOOL), TEN, _normal(TEN))
    yield Scenario(
        "appends, 100 tasks",
        Load(tasks=100, reads_of_ten=0),
        (OURS, OURS_NORMAL, AS_SERVED, JOURNAL, *others, AIOSQLITE_UVLOOP),
        (
            Mark(OURS, JOURNAL, at_least=20),
            Mark(OURS, AIOSQLITE, at_least=2),
            Mark(OURS, _normal(AIOSQLITE), at_least=2),
            Mark(OURS, AIOSQLITE_UVLOOP),
            Mark(OURS, AIOSQLITEPOOL, at_least=10),
            Mark(OURS, _normal(AIOSQLITEPOOL), at_least=10),
            Mark(OURS, TEN),
            Mark(OURS, _normal(TEN)),
            *(Mark(OURS, other, "p99_ms", 1) for other in (JOURNAL, *others, AIOSQLITE_UVLOOP)),
        ),
    )
    yield Scenario(
        "reads of the last 20 turns, 50 tasks",
        Load(tasks=50, reads_of_ten=10),
        (OURS, AS_SERVED, TEN, AIOSQLITE, AIOSQLITE_UVLOOP, AIOSQLITE_CURSORS, AIOSQLITEPOOL),
        (
            Mark(OURS, TEN, at_least=6),
            Mark(OURS, AIOSQLITE, at_least=3),
            Mark(OURS, AIOSQLITE_UVLOOP),
            Mark(OURS, AIOSQLITE_CURSORS),
            Mark(OURS, AIOSQLITEPOOL),
        ),
    )
    yield Scenario(
        "eight reads to two appends, 50 tasks",
        Load(tasks=50, reads_of_ten=8),
        (OURS, AS_SERVED, TEN, _normal(TEN), AIOSQLITE),
        (
            Mark(OURS, TEN, at_least=6),
            Mark(OURS, _normal(TEN)),
            Mark(OURS, AIOSQLITE),
            Mark(OURS, 5.0, "lag_p99_ms", 1),
        ),
    )
    yield Scenario(
        "a lone append",
        Load(tasks=1, reads_of_ten=0),
        (OURS, BARE, OURS_NORMAL, _normal(BARE)),
        (Mark(OURS, BARE, "p50_ms", 1 / 1.5), Mark(OURS_NORMAL, _normal(BARE), "p50_ms", 1 / 1.5)),
    )
    yield Scenario(
        "a lone read",
        Load(tasks=1, reads_of_ten=10),
        (OURS, BARE),
        (Mark(OURS, BARE, "p50_ms", 1 / 1.2),),
    )


def measure(
    scenario: Scenario, job: Job, *, path: Path, rounds: int, seconds: float
) -> list[dict[Side, Figures]]:
    """The sides take turns; what each did, by round. Raises `WrongResult`, `RuntimeError`."""
    return [
        {side: side.measure(job, scenario.load, path=path, seconds=seconds) for side in scenario.sides}
        for _ in range(rounds)
    ]


def lines(scenario: Scenario, rounds: Sequence[Mapping[Side, Figures]]) -> Iterator[str]:
    """A Markdown table of the medians over the rounds, and the ratios."""
    yield f"### {scenario.name}"
    yield ""
    yield "| | loop | `synchronous` | calls/s | p50, ms | p99, ms | loop lag p99, ms |"
    yield "|---|---|---|---|---|---|---|"
    for side in scenario.sides:
        rate, *times = (
            statistics.median(figures[side][key] for figures in rounds)
            for key in ("rate", "p50_ms", "p99_ms", "lag_p99_ms")
        )
        shown = " | ".join(f"{time:.2f}" for time in times)
        yield f"| {side.name} | {side.loop} | {side.synchronous} | {rate:,.0f} | {shown} |"
    yield ""
    for mark in scenario.marks:
        if mark.side in scenario.sides and (mark.other in scenario.sides or isinstance(mark.other, float)):
            yield f"* {mark.line(rounds)}"
    yield ""
