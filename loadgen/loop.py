"""The event loop of the load generator: one epoll set and a heap of timers.

An event loop library was rejected: its tasks cost more for a message than everything else here, and, what is
worse, an answer would be timed when its task runs and not when the kernel has it. Timers are served between
a few sockets, so that what is due is not late because many answers came at once.
"""

import heapq
import itertools
import select
import time
from collections.abc import Callable

from loadgen.selfwatch import SelfWatch

MAX_EVENTS = 64
"""Sockets served between two looks at the timers: about a millisecond's work."""
SPIN_S = 0.0015
"""epoll waits in whole milliseconds, so for the last of them the loop asks without waiting."""
MAX_WAIT_S = 1.0

Handler = Callable[[int], None]


class Loop:
    """Not re-entrant: handlers and timers must not call `turn`."""

    def __init__(self, watch: SelfWatch) -> None:
        self._watch = watch
        self._epoll = select.epoll()
        self._handlers: dict[int, Handler] = {}
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def close(self) -> None:
        """Give the descriptor back."""
        self._epoll.close()

    def at(self, due: float, do: Callable[[], None]) -> None:
        """Call `do` at `due`, on the clock of `time.perf_counter()`. It cannot be taken back."""
        heapq.heappush(self._timers, (due, next(self._order), do))

    def add(self, fd: int, handler: Handler, *, write: bool) -> None:
        """Watch a socket."""
        self._handlers[fd] = handler
        self._epoll.register(fd, _mask(read=True, write=write))

    def change(self, fd: int, *, read: bool, write: bool) -> None:
        """What to wait for, from now on."""
        self._epoll.modify(fd, _mask(read=read, write=write))

    def remove(self, fd: int) -> None:
        """Watch it no longer. Before it is closed."""
        del self._handlers[fd]
        self._epoll.unregister(fd)

    def turn(self) -> None:
        """Serve what is due and what is ready, once; wait where there is nothing."""
        wait_s = self._until_due()
        events = self._epoll.poll(wait_s - SPIN_S if wait_s > SPIN_S else 0, MAX_EVENTS)
        now = time.perf_counter()
        self._watch.began(now)
        if self._timers and now > self._timers[0][0]:
            # Noted before the answers are read that waited with it.
            self._watch.late_by(now - self._timers[0][0], now)
        # Looked up before any is served: one handler may close a socket, another get its number.
        ready = [(self._handlers[fd], mask) for fd, mask in events if fd in self._handlers]
        for handler, mask in ready:
            handler(mask)
        did_something = self._serve_timers() or bool(ready)
        if did_something:
            self._watch.ended(time.perf_counter())

    def _until_due(self) -> float:
        if not self._timers:
            return MAX_WAIT_S
        return min(MAX_WAIT_S, max(0.0, self._timers[0][0] - time.perf_counter()))

    def _serve_timers(self) -> bool:
        served = False
        now = time.perf_counter()
        # What a timer adds for now is served in the next turn, after the sockets.
        while self._timers and self._timers[0][0] <= now:
            due, _, do = heapq.heappop(self._timers)
            self._watch.late_by(now - due, now)
            do()
            served = True
        return served


def _mask(*, read: bool, write: bool) -> int:
    return (select.EPOLLIN if read else 0) | (select.EPOLLOUT if write else 0)
