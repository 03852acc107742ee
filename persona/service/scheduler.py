"""The model's slots, shared fairly.

Waiting turns stand in one queue per party (a user, or an anonymous session); free slots go
round the parties in turn, so ten turns of one client never delay another's first. The queue is
bounded: one more turn than `max_queue` is refused at once with an estimate of when to come back.
A turn whose caller is cancelled leaves the queue, or gives its slot back, at once.
"""

from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import attrs
import trio

from persona.errors import Overloaded
from persona.metrics import Metrics

POSITION_INTERVAL_S = 0.5
"""How often a waiting turn is told its position again; more often is noise to a person."""
SERVICE_TIME_WEIGHT = 0.2
"""Weight of the newest sample in the running mean of how long a slot is held."""


@attrs.define(eq=False)
class _Ticket:
    party: str
    granted: trio.Event = attrs.field(factory=trio.Event)


class Scheduler:
    """Hands out `slots` at a time. Single-threaded: every method runs in the event loop."""

    def __init__(self, *, slots: int, max_queue: int, metrics: Metrics) -> None:
        self._slots = slots
        self._max_queue = max_queue
        self._metrics = metrics
        self._running = 0
        # Parties in the order in which they are served next; a party served goes to the end.
        self._parties: OrderedDict[str, deque[_Ticket]] = OrderedDict()
        self._queued = 0
        self._mean_service_s = 1.0

    @property
    def running(self) -> int:
        """Slots in use."""
        return self._running

    @property
    def queued(self) -> int:
        """Turns waiting."""
        return self._queued

    @asynccontextmanager
    async def slot(self, party: str, on_position: Callable[[int], None]) -> AsyncIterator[None]:
        """Hold one slot for the body's length.

        `on_position` is called with the position (1 is next) on joining the queue and when it
        changes; not at all when a slot is free. Raises `Overloaded` when the queue is full.
        Cancelling is safe.
        """
        waiting_since = trio.current_time()
        await self._acquire(party, on_position)
        granted_at = trio.current_time()
        self._metrics.llm_queue_seconds.observe(granted_at - waiting_since)
        try:
            yield
        finally:
            held_s = trio.current_time() - granted_at
            self._mean_service_s += SERVICE_TIME_WEIGHT * (held_s - self._mean_service_s)
            self._release()

    async def _acquire(self, party: str, on_position: Callable[[int], None]) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._running < self._slots and not self._queued:
            self._running += 1
            self._report()
            return
        if self._queued >= self._max_queue:
            raise Overloaded("the model's queue is full", retry_after_s=self._estimated_wait_s())
        ticket = _Ticket(party)
        self._parties.setdefault(party, deque()).append(ticket)
        self._queued += 1
        self._report()
        try:
            await self._wait(ticket, on_position)
        except BaseException:
            # Granted and cancelled in the same instant: the slot must go on to the next.
            if ticket.granted.is_set():
                self._release()
            else:
                self._leave(ticket)
            raise

    async def _wait(self, ticket: _Ticket, on_position: Callable[[int], None]) -> None:
        told = 0
        while not ticket.granted.is_set():
            position = self._position(ticket)
            if position != told:
                on_position(position)
                told = position
            with trio.move_on_after(POSITION_INTERVAL_S):
                await ticket.granted.wait()

    def _position(self, ticket: _Ticket) -> int:
        """How many grants from now `ticket` is served, if nobody else comes."""
        own = self._parties[ticket.party].index(ticket)
        ahead, before_own_party = 0, True
        for party, tickets in self._parties.items():
            if party == ticket.party:
                before_own_party = False
            else:
                # A party standing earlier in the round is served once more than a later one.
                ahead += min(len(tickets), own + before_own_party)
        return ahead + own + 1

    def _release(self) -> None:
        self._running -= 1
        if self._parties:
            party, tickets = self._parties.popitem(last=False)
            ticket = tickets.popleft()
            if tickets:
                self._parties[party] = tickets
            self._queued -= 1
            self._running += 1
            ticket.granted.set()
        self._report()

    def _leave(self, ticket: _Ticket) -> None:
        tickets = self._parties[ticket.party]
        tickets.remove(ticket)
        if not tickets:
            del self._parties[ticket.party]
        self._queued -= 1
        self._report()

    def _estimated_wait_s(self) -> float:
        return max(1.0, self._mean_service_s * (self._queued + 1) / self._slots)

    def _report(self) -> None:
        self._metrics.llm_running.set(self._running)
        self._metrics.llm_queued.set(self._queued)
