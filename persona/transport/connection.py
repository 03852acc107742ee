"""One client = one nursery: reader -> inbox -> workers -> socket, or outbox -> writer where that is full.

* The reader never waits for work: what cannot run is refused at once, so pings, cancellations and
  the peer's close are always read. It does wait, and for a second at most, for a client that takes its
  answers more slowly than it asks.
* One party at a time writes: whoever has something for a client writes it at once if the engine can and
  nothing waits; otherwise it goes to the outbox, and the writer task has the socket until that is empty.
  A write that takes too long, or an outbox that overflows, ends the connection.
* What a quiet client does not need is not there: workers and inbox come with the first work, a writer when
  the socket is full.
* When the nursery ends, everything of the client's ends with it: its running requests, its place
  in the model's queue, its upstream HTTP connection.
"""

from collections.abc import Sequence

import attrs
import structlog
import trio

from persona.config import LimitSettings
from persona.errors import RateLimited
from persona.metrics import Metrics
from persona.rpc import jsonrpc
from persona.rpc.dispatch import Dispatcher, Work
from persona.service.sessions import Session
from persona.service.subscriber import Frame
from persona.transport.engine import BadMessage, Engine, PeerGone, nobody
from persona.transport.outbox import Outbox
from persona.transport.ratelimit import TokenBucket

log = structlog.get_logger()

MAX_RATE_REFUSALS_PER_MINUTE = 100
"""A client that goes on after this many `rate_limited` answers is not going to listen: 1008."""
WRITE_BYTES = 64 * 1024
"""What is joined in one write, and is given one write deadline."""
READ_PAUSE_S = 1.0
"""How long the reader lets a client catch up whose outbox is half full of answers. No longer, so that its
pongs and cancellations are still read; one that asks on and takes nothing is then a slow consumer."""

Inbox = tuple[trio.MemorySendChannel[tuple[Work, int]], trio.MemoryReceiveChannel[tuple[Work, int]]]
"""Both ends; each piece of work with the size of its frame."""


@attrs.frozen
class Goodbye:
    """Why a connection ends: the close code and text for the peer, the cause for the metric."""

    code: int
    text: str
    cause: str


LEFT = Goodbye(1000, "", "client")
"""What there is to say to one that leaves of itself."""


class Connection:
    """One open WebSocket with its session. `run` is its whole life."""

    def __init__(
        self,
        engine: Engine,
        session: Session,
        *,
        dispatcher: Dispatcher,
        limits: LimitSettings,
        metrics: Metrics,
    ) -> None:
        self.session = session
        self.opened_at = trio.current_time()
        self.last_heard_at = self.opened_at
        self._engine = engine
        self._dispatcher = dispatcher
        self._limits = limits
        self._metrics = metrics
        self._outbox = Outbox(max_messages=limits.max_pending_messages, max_bytes=limits.max_pending_bytes)
        self._rate = TokenBucket(
            per_minute=limits.rate_limit_per_minute, burst=limits.rate_limit_burst, now=self.opened_at
        )
        # A client that ran into its limit can still stop what it started, which only frees a slot.
        self._cancels = TokenBucket(
            per_minute=limits.rate_limit_per_minute, burst=limits.rate_limit_burst, now=self.opened_at
        )
        self._patience = TokenBucket(
            per_minute=MAX_RATE_REFUSALS_PER_MINUTE, burst=MAX_RATE_REFUSALS_PER_MINUTE, now=self.opened_at
        )
        self._inbox: Inbox | None = None
        self._workers = 0
        self._nursery: trio.Nursery | None = None
        # Whether the reader is in the middle of what one read brought: its answers go out together.
        self._is_corked = False
        # Whether there is a writer task, which then has the socket.
        self._is_writing = False
        # Whether a ping is under way.
        self._is_asked = False
        # Set for the reader when the client has taken enough to be read from again.
        self._caught_up: trio.Event | None = None
        self.requests_bytes = 0
        """What the frames hold whose requests wait or run, in characters."""
        self.is_leaving = False
        """Whether its end was decided."""
        self.goodbye = LEFT
        engine.on_unsent = self._flush

    @property
    def pending_bytes(self) -> int:
        """Bytes that the client has not taken: those that wait, and those that are being written."""
        return self._outbox.pending_bytes + self._engine.unsent_bytes

    @property
    def held_bytes(self) -> int:
        """About what is held for the client: answers not taken, and requests not answered."""
        return self.pending_bytes + self.requests_bytes

    async def run(self) -> Goodbye:
        """Serve the client until one side ends it; how it ended. The engine is left open, unless
        it broke."""
        try:
            async with trio.open_nursery() as nursery:
                self._nursery = nursery
                try:
                    self._flush()
                    await self._read(nursery)
                finally:
                    # Also when it is cancelled from outside: it is still listed until its goodbye is said.
                    self.is_leaving = True
                nursery.cancel_scope.cancel()
        finally:
            self._let_go()
        return self.goodbye

    def _let_go(self) -> None:
        """Give back what waits for the client now. A connection and its engine know each other, and the
        garbage collector comes when there are many objects, however large they are."""
        self._outbox.clear()
        self._engine.on_unsent = nobody

    def offer(self, frame: Frame) -> bool:
        """Send a frame to the client, or queue it; `False` when it is leaving, or too slow, which ends
        the connection."""
        if (
            not (self._is_writing or self._is_corked or self.is_leaving)
            and self._nursery is not None
            and self._engine.sends_at_once
        ):
            # Nothing waits, so there is nothing to queue behind.
            if not self._send((frame if isinstance(frame, bytes) else frame.encode(),)):
                self._start_writer(self._nursery)
            return True
        if self._outbox.offer(frame):
            self._flush()
            return True
        if self._outbox.overflowed:
            self.cut(Goodbye(1013, "too slow to read", "slow_consumer"))
        return False

    def cut(self, goodbye: Goodbye) -> None:
        """End the connection now; the first reason given stays."""
        if self._nursery is not None and not self.is_leaving:
            self.goodbye = goodbye
            self.is_leaving = True
            self._nursery.cancel_scope.cancel()

    def finish(self, goodbye: Goodbye) -> None:
        """End the connection once what is queued for the client is sent."""
        self.goodbye = goodbye
        self._outbox.close()
        self._flush()

    def ask(self) -> None:
        """Ping the client, unless it still has to answer; one that does not in time is cut."""
        if self._nursery is None or self.is_leaving:
            return
        if not self._is_asked:
            self._is_asked = True
            self._nursery.start_soon(self._ping)

    async def _read(self, nursery: trio.Nursery) -> None:
        while True:
            try:
                messages = await self._engine.receive()
            except PeerGone as exc:
                self.goodbye = Goodbye(1000, "", exc.cause)
                return
            except BadMessage as exc:
                self.goodbye = Goodbye(exc.code, exc.text, exc.cause)
                return
            self.last_heard_at = trio.current_time()
            self._metrics.messages.received += len(messages)
            self._is_corked = len(messages) > 1
            try:
                for data in messages:
                    if not self._take(data, nursery):
                        return
            finally:
                if self._is_corked:
                    self._is_corked = False
                    self._flush()
            if self._is_writing and self._outbox.is_half_full:
                await self._let_catch_up()

    async def _let_catch_up(self) -> None:
        self._metrics.reads_paused.inc()
        self._caught_up = trio.Event()
        with trio.move_on_after(READ_PAUSE_S):
            await self._caught_up.wait()
        self._caught_up = None

    def _take(self, data: str, nursery: trio.Nursery) -> bool:
        """See to one message; `False` when the client is to be sent away for it."""
        message = jsonrpc.decode(data, max_depth=self._limits.max_json_depth)
        retry_after_s = self._rate.take(self.last_heard_at)
        if retry_after_s and not self._may_cancel(message):
            return self._refuse(message, retry_after_s)
        work = self._dispatcher.accept(self, message)
        if isinstance(work, Work):
            self._hand_over(work, len(data), nursery)
        elif work is not None:
            self.offer(work)
        return True

    def _may_cancel(self, message: jsonrpc.Message) -> bool:
        if not isinstance(message, jsonrpc.Request | jsonrpc.Notification):
            return False
        return message.method == "stream.cancel" and not self._cancels.take(self.last_heard_at)

    def _refuse(self, message: jsonrpc.Message, retry_after_s: float) -> bool:
        """Say that it is over its rate; `False` when it has been told often enough."""
        limited = RateLimited("too many messages", retry_after_s=retry_after_s)
        refusal = self._dispatcher.refuse(message, limited)
        if refusal is not None:
            self.offer(refusal)
        if self._patience.take(self.last_heard_at):
            self.goodbye = Goodbye(1008, "rate limit ignored", "rate_limit")
            return False
        return True

    def _hand_over(self, work: Work, size: int, nursery: trio.Nursery) -> None:
        if self._inbox is None:
            # Bounded by admission (`max_in_flight`), so a send_nowait below always fits.
            self._inbox = trio.open_memory_channel[tuple[Work, int]](self._limits.max_in_flight)
        inbox, queue = self._inbox
        # Workers come with the work and all but one go with it: sixteen idle tasks on each of
        # thousands of connections would cost more memory than the connections themselves.
        is_taken_at_once = inbox.statistics().tasks_waiting_receive > 0
        inbox.send_nowait((work, size))
        self.requests_bytes += size
        if not is_taken_at_once and self._workers < self._limits.max_in_flight:
            self._workers += 1
            nursery.start_soon(self._work, queue)

    async def _work(self, queue: trio.MemoryReceiveChannel[tuple[Work, int]]) -> None:
        try:
            while True:
                work, size = await queue.receive()
                answer = await self._dispatcher.run(self, work)
                self.requests_bytes -= size
                if answer is not None:
                    self.offer(answer)
                statistics = queue.statistics()
                if statistics.tasks_waiting_receive and not statistics.current_buffer_used:
                    return
        finally:
            self._workers -= 1

    def _flush(self) -> None:
        """Let what waits be sent: now if that needs no waiting, else by the writer."""
        if self._is_corked and not self._outbox.is_half_full:
            return
        if self._is_writing or self._nursery is None or self.is_leaving:
            return
        engine, outbox = self._engine, self._outbox
        is_waiting = bool(outbox) or engine.has_unsent
        if engine.sends_at_once:
            while is_waiting and self._send(outbox.take(WRITE_BYTES)):
                is_waiting = bool(outbox)
        if is_waiting:
            self._start_writer(self._nursery)
        elif outbox.is_closed:
            # `finish` was called, or the outbox overflowed and `cut` did the rest.
            self.cut(self.goodbye)

    def _send(self, messages: Sequence[bytes]) -> bool:
        """Whether all of it was taken."""
        try:
            return self._engine.send_nowait(messages)
        except PeerGone as exc:
            self.cut(Goodbye(1000, "", exc.cause))
            return False

    def _start_writer(self, nursery: trio.Nursery) -> None:
        if not self.is_leaving:
            self._is_writing = True
            nursery.start_soon(self._write)

    async def _write(self) -> None:
        """Send until nothing waits."""
        engine, outbox = self._engine, self._outbox
        while outbox or engine.has_unsent:
            messages = outbox.take(WRITE_BYTES)
            if self._caught_up is not None and not outbox.is_half_full:
                self._caught_up.set()
            try:
                await engine.send(messages)
            except PeerGone as exc:
                self.cut(Goodbye(1000, "", exc.cause))
                return
        self._is_writing = False
        if outbox.is_closed:
            self.cut(self.goodbye)

    async def _ping(self) -> None:
        try:
            with trio.fail_after(self._limits.ping_timeout_s):
                await self._engine.ping()
        except trio.TooSlowError:
            # The reason first: the reader takes a closed socket for a peer that has gone.
            self.cut(Goodbye(1001, "", "ping_timeout"))
            await self._engine.abort()
        except PeerGone as exc:
            self.cut(Goodbye(1000, "", exc.cause))
        self._is_asked = False
