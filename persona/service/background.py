"""Work no client waits for: a bounded queue and a few workers.

Overflow policy: when the queue is full, the least important job in it gives way, or the new one
if none is less important; either way one job is dropped and counted. A job that fails is logged
and counted, and takes nothing else with it.
"""

import enum
from collections import deque
from collections.abc import Awaitable, Callable

import attrs
import structlog
import trio

from persona.errors import PersonaError
from persona.metrics import Metrics

log = structlog.get_logger()


class Importance(enum.IntEnum):
    """Lower gives way first."""

    LOW = 0
    NORMAL = 1


@attrs.frozen(eq=False)
class Job:
    """`name` is for logs and metrics: a word of ours, never a user's."""

    name: str
    importance: Importance
    run: Callable[[], Awaitable[None]]
    on_dropped: Callable[[], None]


class Background:
    """`run` is the service; `submit` never waits."""

    def __init__(self, *, queue_size: int, workers: int, metrics: Metrics) -> None:
        self._queue_size = queue_size
        self._workers = workers
        self._metrics = metrics
        self._jobs: dict[Importance, deque[Job]] = {level: deque() for level in Importance}
        self._idle = trio.lowlevel.ParkingLot()
        self._stopping = False
        self._finished = trio.Event()

    @property
    def queued(self) -> int:
        """Jobs waiting for a worker."""
        return sum(map(len, self._jobs.values()))

    def submit(
        self,
        name: str,
        run: Callable[[], Awaitable[None]],
        importance: Importance,
        *,
        on_dropped: Callable[[], None] = lambda: None,
    ) -> bool:
        """Queue a job; `False` when it was the one to give way. `on_dropped` is told when it gives way
        later."""
        job = Job(name, importance, run, on_dropped)
        if self._stopping or (self.queued >= self._queue_size and not self._make_room(importance)):
            self._metrics.background_dropped.labels(name).inc()
            return False
        self._jobs[importance].append(job)
        self._idle.unpark()
        return True

    def _make_room(self, importance: Importance) -> bool:
        for level in Importance:
            if level >= importance:
                return False
            if self._jobs[level]:
                dropped = self._jobs[level].popleft()
                self._metrics.background_dropped.labels(dropped.name).inc()
                dropped.on_dropped()
                return True
        return False

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until `finish` was called and the queue is empty."""
        async with trio.open_nursery() as nursery:
            for _ in range(self._workers):
                nursery.start_soon(self._work)
            task_status.started()
        self._finished.set()

    async def finish(self) -> None:
        """Take no more jobs, and wait until those queued are done. The caller bounds the wait."""
        self._stopping = True
        self._idle.unpark_all()
        await self._finished.wait()

    async def _work(self) -> None:
        while True:
            job = self._next()
            if job is None:
                if self._stopping:
                    return
                await self._idle.park()
                continue
            try:
                await job.run()
            except PersonaError as exc:
                self._metrics.background_failed.labels(job.name).inc()
                log.warning("background_job_failed", job=job.name, reason=exc.reason)
            except Exception:  # the boundary of a job: a bug in one must not stop the others
                self._metrics.background_failed.labels(job.name).inc()
                log.exception("background_job_crashed", job=job.name)

    def _next(self) -> Job | None:
        for level in reversed(Importance):
            if self._jobs[level]:
                return self._jobs[level].popleft()
        return None
