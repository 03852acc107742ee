"""Closed-loop load on a database: each task asks, waits, and asks again. In trio's loop or asyncio's.

The rate counts what was done between the warm-up and the end; the latencies are those of what began after
the warm-up, however late it was done. Loop lag is how late a task that sleeps for `LAG_INTERVAL_S` wakes up.
"""

import asyncio
import gc
import math
import time
from array import array
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Literal

import attrs
import trio

from loadgen.storage.job import Job, Session, WrongResult

LAG_INTERVAL_S = 0.002
Loop = Literal["trio", "asyncio", "uvloop"]
Opener = Callable[[Path, str], AbstractAsyncContextManager[Session]]
"""Opens the file at a level of `synchronous`."""


@attrs.frozen(kw_only=True)
class Load:
    """How many tasks do what."""

    tasks: int
    reads_of_ten: int
    """Of ten calls of a task, so many are reads, the others appends."""


@attrs.define
class Run:
    """One side under load. `figures` is for afterwards."""

    job: Job
    load: Load
    seconds: float
    warm_up_s: float
    acknowledged: list[str] = attrs.field(factory=list)
    _latencies: "array[float]" = attrs.field(factory=lambda: array("d"), init=False)
    _lags: "array[float]" = attrs.field(factory=lambda: array("d"), init=False)
    _done: int = attrs.field(default=0, init=False)
    _measures_from: float = attrs.field(default=0.0, init=False)
    _ends_at: float = attrs.field(default=0.0, init=False)

    def __call__(self, loop: Loop, opened: AbstractAsyncContextManager[Session]) -> None:
        """Run to the end. Raises `WrongResult` for a read that is not right."""
        gc.collect()
        try:
            if loop == "trio":
                trio.run(self._in_trio, opened)
            else:
                with asyncio.Runner(loop_factory=_new_uvloop if loop == "uvloop" else None) as runner:
                    runner.run(self._in_asyncio(opened))
        except BaseExceptionGroup as group:
            # Not `except*`: what is raised in there comes out in a group of its own.
            told = group.subgroup((WrongResult, KeyboardInterrupt))
            if told is None:
                raise
            raise _first(told) from None

    def figures(self) -> dict[str, float]:
        """Calls a second, and percentiles in milliseconds, by nearest rank."""
        return {
            "rate": self._done / self.seconds,
            "p50_ms": _percentile(self._latencies, 0.5) * 1000,
            "p99_ms": _percentile(self._latencies, 0.99) * 1000,
            "lag_p99_ms": _percentile(self._lags, 0.99) * 1000,
        }

    async def _in_trio(self, opened: AbstractAsyncContextManager[Session]) -> None:
        async with opened as session, trio.open_nursery() as nursery:
            self._start_clock()
            for task in range(self.load.tasks):
                nursery.start_soon(self._work, session, task)
            nursery.start_soon(self._measure_lag, trio.sleep)

    async def _in_asyncio(self, opened: AbstractAsyncContextManager[Session]) -> None:
        async with opened as session, asyncio.TaskGroup() as group:
            self._start_clock()
            for task in range(self.load.tasks):
                group.create_task(self._work(session, task))
            group.create_task(self._measure_lag(asyncio.sleep))

    def _start_clock(self) -> None:
        self._measures_from = time.perf_counter() + self.warm_up_s
        self._ends_at = self._measures_from + self.seconds

    async def _work(self, session: Session, task: int) -> None:
        n = 0
        while (began_at := time.perf_counter()) < self._ends_at:
            # Spread over the tasks, so that they do not all append at the same time.
            if (n + task) % 10 < self.load.reads_of_ten:
                contents = await session.read(self.job.read_values)
                if tuple(contents) != self.job.expected:
                    raise WrongResult(f"read {len(contents)} turns, not the last {len(self.job.expected)}")
            else:
                row = self.job.row(task, n)
                await session.append(row)
                self.acknowledged.append(row[4])
            now = time.perf_counter()
            if began_at >= self._measures_from:
                self._latencies.append(now - began_at)
            if self._measures_from <= now < self._ends_at:
                self._done += 1
            n += 1

    async def _measure_lag(self, sleep: Callable[[float], Awaitable[None]]) -> None:
        while (now := time.perf_counter()) < self._ends_at:
            await sleep(LAG_INTERVAL_S)
            if now >= self._measures_from:
                self._lags.append(max(0.0, time.perf_counter() - now - LAG_INTERVAL_S))


def _new_uvloop() -> asyncio.AbstractEventLoop:
    import uvloop

    return uvloop.new_event_loop()


def _percentile(values: "array[float]", quantile: float) -> float:
    ordered = sorted(values)
    return ordered[math.ceil(quantile * len(ordered)) - 1] if ordered else math.nan


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    exc: BaseException = group
    while isinstance(exc, BaseExceptionGroup):
        exc = exc.exceptions[0]
    return exc
