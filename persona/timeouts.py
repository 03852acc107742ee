"""Things that are due a fixed time after they came, and one task for all of them.

A task for each would cost some 3 kB and two switches, to sleep. All wait equally long, so who came first is
due first, and a queue is all the schedule there is.
"""

from collections.abc import Callable
from typing import Generic, TypeVar

import trio

T = TypeVar("T")

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
