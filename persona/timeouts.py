"""Things that are due in time, and one task for all of them.

`TimeoutQueue`: things that are due a fixed time after they came. A task for each would cost some 3 kB and two
switches, to sleep. All wait equally long, so who came first is due first, and a queue is all the schedule
there is.

`Sleepers`: tasks that sleep until some time of their own. What `trio.sleep_until` costs is the scope with a
deadline around each sleep, and the exception that ends it.
"""

import heapq
import math
from collections.abc import Callable
from itertools import count
from typing import Generic, TypeVar, final

import trio

T = TypeVar("T")

TICK_S = 0.001
"""Nobody notices, and ten thousand wakings a second become a thousand."""
BURST = 50
"""Seen to without letting anybody else run. A thousand may have come at one moment."""


class TimeoutQueue(Generic[T]):
    """`run` is the service. `on_due` is called in it, and must neither wait nor raise; it may `add` and
    `remove`. Items are compared as dict keys are."""

    def __init__(self, after_s: float, on_due: Callable[[T], None]) -> None:
        self._after_s = after_s
        self._on_due = on_due
        # In the order in which they are due: a dict, because some also leave from the middle.
        self._due: dict[T, float] = {}
        self._somebody = trio.lowlevel.ParkingLot()

    def add(self, item: T) -> None:
        """`item` is due `after_s` from now, once."""
        self._due.pop(item, None)
        self._due[item] = trio.current_time() + self._after_s
        self._somebody.unpark()

    def remove(self, item: T) -> None:
        """`item` is due no more; nothing where it was not."""
        self._due.pop(item, None)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See to what is due until cancelled."""
        task_status.started()
        while True:
            while not self._due:
                await self._somebody.park()
            await trio.sleep_until(next(iter(self._due.values())))
            self._see_to_due()

    def _see_to_due(self) -> None:
        now = trio.current_time()
        for _ in range(BURST):
            item = next(iter(self._due), None)
            if item is None or self._due[item] > now:
                return
            del self._due[item]
            self._on_due(item)


@final
class Sleepers:
    """For many tasks that sleep often and shortly. `run` is the service; without it nobody wakes.

    It wakes all who are due together, and not again within `TICK_S`: so much later one may wake.
    """

    def __init__(self) -> None:
        # A task that stopped waiting leaves a `None` here until its time.
        self._waiting: list[tuple[float, int, list[trio.lowlevel.Task | None]]] = []
        self._numbers = count()
        self._scope = trio.CancelScope()
        self._rests_until = -math.inf

    async def sleep_until(self, when: float) -> None:
        """As `trio.sleep_until`. Cancelling is safe."""
        if when <= trio.current_time():
            await trio.lowlevel.checkpoint()
            return
        place: list[trio.lowlevel.Task | None] = [trio.lowlevel.current_task()]
        heapq.heappush(self._waiting, (when, next(self._numbers), place))
        if when < self._scope.deadline:
            self._scope.deadline = max(when, self._rests_until)

        def leave(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
            place[0] = None
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(leave)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Wake who is due until cancelled."""
        task_status.started()
        while True:
            next_at = self._waiting[0][0] if self._waiting else math.inf
            with trio.CancelScope(deadline=max(next_at, self._rests_until)) as self._scope:
                await trio.sleep_forever()
            self._wake()

    def _wake(self) -> None:
        now = trio.current_time()
        self._rests_until = now + TICK_S
        while self._waiting and self._waiting[0][0] <= now:
            _, _, (task,) = heapq.heappop(self._waiting)
            if task is not None:
                trio.lowlevel.reschedule(task)
