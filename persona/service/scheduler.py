"""The model's slots, shared fairly.

Rules:

* A turn first stands in its conversation's line (`line`): one at a time in each, in order. Who
  stands there holds no slot and no place in the queue.
* At the front of its line it asks for a slot (`slot`). Free slots go round the parties (a user, or
  an anonymous session) in turn, as many to each as it weighs: weighted round-robin. So ten turns of
  one client never delay another's first, and of two equal clients that both wait none is served
  twice while the other is not served at all.
* Within a party, first come, first served. A conversation has one turn in the queue at most, and its
  next one comes in behind those of the others: so a user's conversations take turns, too.
* A slot that falls free goes to the next at once; none is free while somebody waits.
* Everything is bounded. The queue and, together, all lines hold `max_queue` turns each; one more is
  refused at once, and one that has waited for a slot for `max_queue_wait_s` is sent away. Both are
  told when to come back.
* Who is cancelled leaves, or gives its slot back, at once.
"""

import math
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager

import attrs
import trio

from persona.errors import Overloaded
from persona.metrics import Metrics

POSITION_INTERVAL_S = 0.5
"""How often a waiting turn is told its position again; more often is noise to a person."""
WALK_INTERVAL_S = 0.05
"""How often positions are worked out: a newcomer is told as good as at once, and a walk along a full queue
takes a fraction of a millisecond."""
SERVICE_TIME_WEIGHT = 0.2
"""Weight of the newest sample in the moving average of how long a slot is held: some ten samples
are remembered, so a model that was exchanged for a slower one soon shows."""
FIRST_GUESS_S = 1.0
"""How long a slot is held, as long as none was given back yet."""
MIN_RETRY_AFTER_S = 1.0
MAX_RETRY_AFTER_S = 3600.0


def everybody_weighs_the_same(_party: str) -> int:
    """The weight of a party: one slot each a round, whoever it is."""
    return 1


@attrs.define(eq=False)
class _Ticket:
    """A turn that waits for a slot."""

    party: str
    position: int = 0
    told_again_at: float = -math.inf
    is_granted: bool = False
    news: trio.Event = attrs.field(factory=trio.Event)
    """Set when the position has changed or the slot is granted; the waiter puts a new one in its place."""


@attrs.define(eq=False)
class _Party:
    """The turns of one party, and how many more of them this round has for it."""

    weight: int
    left_in_round: int
    tickets: deque[_Ticket] = attrs.field(factory=deque)


@attrs.define(eq=False)
class Standing:
    """A turn's place in its conversation's line."""

    _at_front: trio.Event = attrs.field(factory=trio.Event)

    async def reach_front(self) -> None:
        """Wait until the turns before this one have left. Cancelling is safe."""
        await self._at_front.wait()

    def call(self) -> None:
        """It is at the front."""
        self._at_front.set()


class Scheduler:
    """Hands out `slots` at a time. Single-threaded: every method runs in the event loop.

    `max_queue_wait_s` of 0 sets no bound. `admit` is asked before a turn waits for a slot, and raises
    where that would be in vain. `weight_of` tells the slots that a party gets each round, at least 1.
    `run` is the service; without it turns are served all the same, but not told their positions.
    """

    def __init__(
        self,
        *,
        slots: int,
        max_queue: int,
        metrics: Metrics,
        max_queue_wait_s: float = 0.0,
        admit: Callable[[], None] = lambda: None,
        weight_of: Callable[[str], int] = everybody_weighs_the_same,
    ) -> None:
        self._slots = slots
        self._max_queue = max_queue
        self._max_queue_wait_s = max_queue_wait_s or math.inf
        self._metrics = metrics
        self._admit = admit
        self._weight_of = weight_of
        # Parties in the order in which they are served next; one that had its share goes to the end.
        self._parties: OrderedDict[str, _Party] = OrderedDict()
        self._queued = 0
        self._lines: dict[str, deque[Standing]] = {}
        self._lined_up = 0
        self._running = 0
        self._granted_at_sum = 0.0
        self._mean_held_s: float | None = None
        self._moved = trio.Event()
        # Asked for when somebody reads them: a turn changes each of them several times.
        metrics.llm_running.set_function(lambda: self.running)
        metrics.llm_queued.set_function(lambda: self.queued)
        metrics.llm_lined_up.set_function(lambda: self.lined_up)

    @property
    def running(self) -> int:
        """Slots in use."""
        return self._running

    @property
    def queued(self) -> int:
        """Turns waiting for a slot."""
        return self._queued

    @property
    def lined_up(self) -> int:
        """Turns waiting for an earlier one of their conversation."""
        return self._lined_up

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tell waiting turns their positions where these have changed, until cancelled.

        All positions are worked out in one walk along the queue, every `WALK_INTERVAL_S` at most, so a turn
        that comes or is served costs the same however many wait. Each turn is told at most once in
        `POSITION_INTERVAL_S`; the changes in between are told as one.
        """
        task_status.started()
        while True:
            await self._moved.wait()
            self._moved = trio.Event()
            if self._tell_positions():
                self._moved.set()
            await trio.sleep(WALK_INTERVAL_S)

    @contextmanager
    def line(self, conversation_id: str) -> Iterator[Standing]:
        """Stand in the conversation's line for the body's length, from this very call on; the body
        waits with `reach_front`.

        Raises `Overloaded` when as many turns stand in lines as the queue may hold.
        """
        line = self._lines.setdefault(conversation_id, deque())
        standing = Standing()
        if not line:
            standing.call()
        elif self._lined_up >= self._max_queue:
            raise self._refusal("max_queue", "too many turns wait for earlier ones of their conversations")
        else:
            self._lined_up += 1
        line.append(standing)
        try:
            yield standing
        finally:
            was_at_front = line[0] is standing
            line.remove(standing)
            if line:
                # Either it was not at the front itself, or it makes room for one that is from now on.
                self._lined_up -= 1
                if was_at_front:
                    line[0].call()
            else:
                del self._lines[conversation_id]

    @asynccontextmanager
    async def slot(self, party: str, on_position: Callable[[int], None]) -> AsyncIterator[None]:
        """Hold one slot for the body's length.

        `on_position` is called with the position (1 is next) soon after joining the queue and when it has
        changed, in the caller's task; not at all when a slot is free. Raises `Overloaded` when the queue
        is full or no slot fell free in time, and whatever `admit` raises. Cancelling is safe.
        """
        self._admit()
        waiting_since = trio.current_time()
        await self._acquire(party, on_position)
        granted_at = trio.current_time()
        self._granted_at_sum += granted_at
        self._metrics.llm_queue_seconds.observe(granted_at - waiting_since)
        try:
            yield
        finally:
            held_s = trio.current_time() - granted_at
            self._metrics.llm_seconds.observe(held_s)
            self._granted_at_sum -= granted_at
            self._learn(held_s)
            self._release()

    async def _acquire(self, party: str, on_position: Callable[[int], None]) -> None:
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._running < self._slots:
            self._running += 1
            return
        if self._queued >= self._max_queue:
            raise self._refusal("max_queue", "the model's queue is full")
        ticket = self._join(party)
        try:
            await self._wait(ticket, on_position)
        except BaseException:
            # Granted and cancelled in the same instant: the slot must go on to the next.
            if ticket.is_granted:
                self._release()
            else:
                self._leave(ticket)
            raise

    def _join(self, name: str) -> _Ticket:
        party = self._parties.get(name)
        if party is None:
            weight = max(1, self._weight_of(name))
            party = self._parties[name] = _Party(weight, weight)
        ticket = _Ticket(name)
        party.tickets.append(ticket)
        self._queued += 1
        self._move()
        return ticket

    async def _wait(self, ticket: _Ticket, on_position: Callable[[int], None]) -> None:
        told = 0
        with trio.move_on_after(self._max_queue_wait_s):
            while not ticket.is_granted:
                await ticket.news.wait()
                ticket.news = trio.Event()
                if not ticket.is_granted and ticket.position != told:
                    told = ticket.position
                    on_position(told)
        if not ticket.is_granted:
            raise self._refusal(
                "max_queue_wait_s", f"the model had no slot free within {self._max_queue_wait_s:g} s"
            )

    def _tell_positions(self) -> bool:
        """Whether somebody is to be told later, having been told just now."""
        now, is_pending = trio.current_time(), False
        for position, ticket in enumerate(self._in_order_of_service(), 1):
            if position == ticket.position:
                continue
            if now < ticket.told_again_at:
                is_pending = True
                continue
            ticket.position = position
            ticket.told_again_at = now + POSITION_INTERVAL_S
            ticket.news.set()
        return is_pending

    def _in_order_of_service(self) -> Iterator[_Ticket]:
        """All who wait, as they are served if nobody comes or leaves."""
        parties = deque((deque(p.tickets), p.left_in_round, p.weight) for p in self._parties.values())
        while parties:
            tickets, left_in_round, weight = parties.popleft()
            for _ in range(min(left_in_round, len(tickets))):
                yield tickets.popleft()
            if tickets:
                parties.append((tickets, weight, weight))

    def _release(self) -> None:
        self._running -= 1
        if self._parties:
            self._grant()
        self._move()

    def _grant(self) -> None:
        name, party = next(iter(self._parties.items()))
        ticket = party.tickets.popleft()
        party.left_in_round -= 1
        if not party.tickets:
            del self._parties[name]
        elif not party.left_in_round:
            party.left_in_round = party.weight
            self._parties.move_to_end(name)
        self._queued -= 1
        self._running += 1
        ticket.is_granted = True
        ticket.news.set()

    def _leave(self, ticket: _Ticket) -> None:
        party = self._parties[ticket.party]
        party.tickets.remove(ticket)
        if not party.tickets:
            del self._parties[ticket.party]
        self._queued -= 1
        self._move()

    def _learn(self, held_s: float) -> None:
        """However it ended: what counts is that the slot was free again."""
        mean_s = held_s if self._mean_held_s is None else self._mean_held_s
        self._mean_held_s = mean_s + SERVICE_TIME_WEIGHT * (held_s - mean_s)

    def _refusal(self, reason: str, message: str) -> Overloaded:
        self._metrics.llm_refused.labels(reason).inc()
        return Overloaded(message, retry_after_s=self.estimated_wait_s())

    def estimated_wait_s(self) -> float:
        """When all who wait now will have been served: `(queued + 1) * held / slots`, in seconds.

        `held` is how long a slot is held: the moving average of those given back, or the mean age of
        those in use where that is more, since a model that hangs gives none back. With `slots` of them,
        one falls free every `held / slots` (Little's law for a system that is always busy).
        """
        held_s = FIRST_GUESS_S if self._mean_held_s is None else self._mean_held_s
        if self._running:
            held_s = max(held_s, trio.current_time() - self._granted_at_sum / self._running)
        wait_s = held_s * (self._queued + 1) / self._slots
        return min(max(wait_s, MIN_RETRY_AFTER_S), MAX_RETRY_AFTER_S)

    def _move(self) -> None:
        """Positions may have changed."""
        if self._queued:
            self._moved.set()
