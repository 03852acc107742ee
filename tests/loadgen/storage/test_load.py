"""The closed loop: what is counted, and what is noticed."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio

from loadgen.storage.job import Job, WrongResult
from loadgen.storage.load import Load, Loop, Run

LOOPS: dict[Loop, Callable[[float], Awaitable[None]]] = {"trio": trio.sleep, "asyncio": asyncio.sleep}
MIXED = Load(tasks=5, reads_of_ten=8)


@attrs.define
class Slow:
    """A database that only takes its time."""

    sleep: Callable[[float], Awaitable[None]]
    expected: list[str]
    reads: int = 0
    appended: list[str] = attrs.field(factory=list)
    wrong_from: float = math.inf

    async def append(self, row: tuple[Any, ...]) -> None:
        await self.sleep(0.01)
        self.appended.append(row[4])

    async def read(self, _values: tuple[Any, ...]) -> list[str]:
        await self.sleep(0.01)
        self.reads += 1
        return self.expected if self.reads < self.wrong_from else self.expected[1:]


def drive(job: Job, loop: Loop, load: Load, *, wrong_from: float = math.inf) -> tuple[Run, Slow]:
    session = Slow(LOOPS[loop], list(job.expected), wrong_from=wrong_from)

    @asynccontextmanager
    async def opened() -> AsyncIterator[Slow]:
        yield session

    run = Run(job, load, seconds=0.3, warm_up_s=0.1)
    run(loop, opened())
    return run, session


@pytest.mark.parametrize("loop", LOOPS)
def test_all_is_done_side_by_side_and_what_was_acknowledged_is_known(job: Job, loop: Loop) -> None:
    run, session = drive(job, loop, MIXED)
    assert sorted(run.acknowledged) == sorted(session.appended)
    assert len(set(session.appended)) == len(session.appended) > 0
    # Four reads to an append, but for where each task stopped.
    assert abs(session.reads - 4 * len(session.appended)) <= 5 * 8
    figures = run.figures()
    # Five at a time, none faster than the sleep; slower where the machine is busy.
    assert 0 < figures["rate"] <= 5 / 0.01
    assert 9 <= figures["p50_ms"] <= figures["p99_ms"]
    assert figures["lag_p99_ms"] >= 0


@pytest.mark.parametrize("loop", LOOPS)
def test_a_read_that_is_not_right_ends_the_run(job: Job, loop: Loop) -> None:
    with pytest.raises(WrongResult, match="read 19 turns"):
        drive(job, loop, MIXED, wrong_from=7)


def test_a_loop_that_is_held_up_has_a_lag(job: Job) -> None:
    class Blocking(Slow):
        async def read(self, values: tuple[Any, ...]) -> list[str]:
            time.sleep(0.05)  # noqa: ASYNC251 - this is what is to be seen
            return await super().read(values)

    @asynccontextmanager
    async def opened() -> AsyncIterator[Slow]:
        yield Blocking(trio.sleep, list(job.expected))

    run = Run(job, Load(tasks=1, reads_of_ten=10), seconds=0.4, warm_up_s=0)
    run("trio", opened())
    assert run.figures()["lag_p99_ms"] > 30
