"""Callers on one side, lanes on the other.

A caller puts its call in and sleeps; a lane takes everything that waits. Nothing is handed over task by
task: a call costs its caller one sleep, and all calls together cost their lane one.
"""

import contextlib
import sqlite3
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, final

import structlog
import trio

from persona.errors import Overloaded, PersonaError, ShuttingDown
from persona.metrics import Distribution
from persona.storage.batch import Call, Lane

T = TypeVar("T")

MAX_BATCH = 512
"""Calls in one transaction; `batch.MAX_BATCH_S` usually ends it first."""
MAX_ADMISSION_S = 1.0
"""How long a caller waits for a place in a full queue. A queue that stays full so long is not a burst."""
STEP_IN_S = 0.01
"""How long a lane may be at one batch before another one takes over what waits behind it."""

_SECONDS = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10)
"""From a call alone on a fast disk to twice `busy_timeout_s`."""
_SIZES = tuple(float(2**n) for n in range(10))
"""Up to `MAX_BATCH`."""

_log = structlog.get_logger()


@final
class CallQueue:
    """Calls that wait for a lane; the first to come is the first to run.

    One lane is at work as long as it keeps up, since two threads would only fight over the
    interpreter. The others stand by until it is held up.
    """

    def __init__(self, max_queue: int) -> None:
        self.lanes: Sequence[Lane] = ()
        # Each takes one figure a batch and not one a call: measuring must cost a call next to nothing.
        self.batches = Distribution(_SIZES)
        """Calls in a batch."""
        self.waits = Distribution(_SECONDS)
        """Of each batch, how long the call that came first had waited when a lane took it, in seconds."""
        self.commits = Distribution(_SECONDS)
        """How long commits took, in seconds."""
        self.refused = 0
        """Calls that found no place in time."""
        # A dict, because a caller that leaves must get out of the middle.
        self._calls: OrderedDict[Call[Any], None] = OrderedDict()
        self._room = trio.Semaphore(max_queue)
        self._idle = trio.lowlevel.ParkingLot()
        self._summoned = False
        self._nudged = False
        self._at_work: set[Lane] = set()
        self._held_up: set[Lane] = set()
        self._watcher = trio.lowlevel.ParkingLot()
        self._closed = False
        self._rounds = 0

    @property
    def busy(self) -> int:
        """Lanes that run a batch."""
        return len(self._at_work) + len(self._held_up)

    def __len__(self) -> int:
        return len(self._calls)

    @trio.lowlevel.enable_ki_protection
    async def call(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Wait for a lane to run `fn`."""
        try:
            self._room.acquire_nowait()
        except trio.WouldBlock:
            await self._wait_for_room()
        try:
            if self._closed:
                raise ShuttingDown("the database is closed")
            call = Call(fn, trio.lowlevel.current_task())

            def leave(_: trio.lowlevel.RaiseCancelT) -> trio.lowlevel.Abort:
                call.waiter = None
                self._calls.pop(call, None)
                return trio.lowlevel.Abort.SUCCEEDED

            self._calls[call] = None
            if not self._at_work:
                self._summon()
            elif self._watcher:
                self._watcher.unpark()
            await trio.lowlevel.wait_task_rescheduled(leave)
            return call.unwrap()
        finally:
            self._room.release()

    async def take(self, lane: Lane) -> bool:
        """Wait for calls, and give the lane all of them, up to `MAX_BATCH`; none when it was nudged. False
        when there will be no more."""
        while not self._calls:
            if self._closed:
                return False
            if self._nudged:
                self._nudged = False
                return True
            await self._idle.park()
            self._summoned = False
        self._nudged = False
        for _ in range(min(len(self._calls), MAX_BATCH)):
            lane.waiting.append(self._calls.popitem(last=False)[0])
        self.waits.observe(time.perf_counter() - lane.waiting[0].made_at)
        self._at_work.add(lane)
        if self._calls or len(lane.waiting) > 1:
            self._watcher.unpark()
        return True

    def answer(self, lane: Lane) -> None:
        """Wake the callers of what the lane has run; what it has not come to goes back in front."""
        self._at_work.discard(lane)
        self._held_up.discard(lane)
        self._rounds += 1
        self.batches.observe(len(lane.begun))
        if lane.commit_s is not None:
            self.commits.observe(lane.commit_s)
        for call in lane.begun:
            if call.waiter is not None:
                _wake(call)
            elif call.error is not None and not isinstance(call.error, PersonaError):
                # A bug must not vanish with its caller.
                _log.error("abandoned_call_failed", exc_info=call.error)
        lane.begun.clear()
        self._take_back(lane)

    @trio.lowlevel.enable_ki_protection
    async def watch(self) -> None:
        """Send a lane that stands by when nothing has been answered for `STEP_IN_S`, with all that
        waits: behind one long read, short ones wait no longer than that."""
        while True:
            await self._watcher.park()
            seen = None
            while self._at_work and seen != self._rounds:
                seen = self._rounds
                await trio.sleep(STEP_IN_S)
            for lane in self._at_work:
                self._take_back(lane)
            self._held_up |= self._at_work
            self._at_work.clear()
            self._summon()

    def nudge(self) -> None:
        """Wake a lane that stands by though there are no calls; nothing when there are."""
        if self._idle and not self._summoned:
            self._nudged = True
            self._idle.unpark()

    def close(self) -> None:
        """Accept no further call."""
        self._closed = True
        self._idle.unpark_all()

    def give_up(self) -> None:
        """Stop the wait of every caller. Reads under way are thereby interrupted."""
        for lane in self.lanes:
            self._take_back(lane)
        for call in (*self._calls, *(call for lane in self.lanes for call in lane.begun)):
            if call.waiter is not None:
                call.error = ShuttingDown("the database was closed before it came to this")
                _wake(call)
        self._calls.clear()

    async def _wait_for_room(self) -> None:
        with trio.move_on_after(MAX_ADMISSION_S):
            await self._room.acquire()
            return
        self.refused += 1
        raise Overloaded("the database has too much to do", retry_after_s=MAX_ADMISSION_S)

    def _summon(self) -> None:
        # One at a time: it takes everything, and another one would find nothing.
        if self._calls and self._idle and not self._summoned:
            self._summoned = True
            self._idle.unpark()

    def _take_back(self, lane: Lane) -> None:
        # The lane's thread may be taking calls from the other end.
        with contextlib.suppress(IndexError):
            while True:
                call = lane.waiting.pop()
                if call.waiter is not None:
                    self._calls[call] = None
                    self._calls.move_to_end(call, last=False)


def _wake(call: Call[Any]) -> None:
    task, call.waiter = call.waiter, None
    assert task is not None
    trio.lowlevel.reschedule(task)
