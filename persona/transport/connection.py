"""One client = one nursery: reader -> inbox -> workers -> outbox -> writer, and keepalive.

* The reader never waits for work: what cannot run is refused at once, so pings, cancellations and
  the peer's close are always read.
* One task writes. A write that takes too long, or an outbox that overflows, ends the connection.
* When the nursery ends, everything of the client's ends with it: its running requests, its place
  in the model's queue, its upstream HTTP connection.
"""

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
from persona.transport.engine import BadMessage, Engine, PeerGone
from persona.transport.outbox import Outbox
from persona.transport.ratelimit import TokenBucket

log = structlog.get_logger()

MAX_RATE_REFUSALS_PER_MINUTE = 100
"""A client that goes on after this many `rate_limited` answers is not going to listen: 1008."""


@attrs.frozen
class Goodbye:
    """Why a connection ends: the close code and text for the peer, the cause for the metric."""

    code: int
    text: str
    cause: str


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
        # Bounded by admission (`max_in_flight`), so a send_nowait below always fits.
        self._inbox_send, self._inbox = trio.open_memory_channel[Work](limits.max_in_flight)
        self._workers = 0
        self._nursery: trio.Nursery | None = None
        self.goodbye = Goodbye(1000, "", "client")

    @property
    def pending_bytes(self) -> int:
        """Bytes waiting to be sent."""
        return self._outbox.pending_bytes

    @property
    def is_leaving(self) -> bool:
        """Whether its end was decided."""
        return self._nursery is not None and self._nursery.cancel_scope.cancel_called

    async def run(self) -> Goodbye:
        """Serve the client until one side ends it; how it ended. The engine is left open, unless
        it broke."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._write)
            if self._limits.ping_interval_s:
                nursery.start_soon(self._keep_alive)
            await self._read(nursery)
            nursery.cancel_scope.cancel()
        return self.goodbye

    def offer(self, frame: Frame) -> bool:
        """Queue a frame for the client; `False` when it is leaving, or too slow, which ends the
        connection."""
        if self._outbox.offer(frame):
            return True
        if self._outbox.overflowed:
            self.cut(Goodbye(1013, "too slow to read", "slow_consumer"))
        return False

    def cut(self, goodbye: Goodbye) -> None:
        """End the connection now; the first reason given stays."""
        if self._nursery is not None and not self.is_leaving:
            self.goodbye = goodbye
            self._nursery.cancel_scope.cancel()

    def finish(self, goodbye: Goodbye) -> None:
        """End the connection once what is queued for the client is sent."""
        self.goodbye = goodbye
        self._outbox.close()

    async def _read(self, nursery: trio.Nursery) -> None:
        while True:
            try:
                data = await self._engine.receive()
            except PeerGone as exc:
                self.goodbye = Goodbye(1000, "", "client" if exc.code != 1006 else "lost")
                return
            except BadMessage as exc:
                self.goodbye = Goodbye(exc.code, exc.text, exc.cause)
                return
            self.last_heard_at = trio.current_time()
            self._metrics.received.inc()
            message = jsonrpc.decode(data, max_depth=self._limits.max_json_depth)
            if not self._within_rate(message):
                if self._patience.take(self.last_heard_at):
                    self.goodbye = Goodbye(1008, "rate limit ignored", "rate_limit")
                    return
                continue
            work = self._dispatcher.accept(self.session, message, self)
            if isinstance(work, Work):
                self._hand_over(work, nursery)
            elif work is not None:
                self.offer(work)

    def _within_rate(self, message: jsonrpc.Message) -> bool:
        bucket = self._cancels if _is_cancel(message) else self._rate
        retry_after_s = bucket.take(self.last_heard_at)
        if not retry_after_s:
            return True
        limited = RateLimited("too many messages", retry_after_s=retry_after_s)
        refusal = self._dispatcher.refuse(message, limited)
        if refusal is not None:
            self.offer(refusal)
        return False

    def _hand_over(self, work: Work, nursery: trio.Nursery) -> None:
        # Workers come with the work and all but one go with it: sixteen idle tasks on each of
        # thousands of connections would cost more memory than the connections themselves.
        is_taken_at_once = self._inbox.statistics().tasks_waiting_receive > 0
        self._inbox_send.send_nowait(work)
        if not is_taken_at_once and self._workers < self._limits.max_in_flight:
            self._workers += 1
            nursery.start_soon(self._work)

    async def _work(self) -> None:
        try:
            while True:
                work = await self._inbox.receive()
                answer = await self._dispatcher.run(self.session, work, self)
                if answer is not None:
                    self.offer(answer)
                statistics = self._inbox.statistics()
                if statistics.tasks_waiting_receive and not statistics.current_buffer_used:
                    return
        finally:
            self._workers -= 1

    async def _write(self) -> None:
        while (message := await self._outbox.take()) is not None:
            try:
                with trio.fail_after(self._limits.write_deadline_s):
                    await self._engine.send(message)
            except trio.TooSlowError:
                await self._engine.abort()
                self.cut(Goodbye(1013, "", "write_deadline"))
                return
            except PeerGone:
                self.cut(Goodbye(1000, "", "lost"))
                return
        # `finish` was called, or the outbox overflowed and `cut` did the rest.
        self.cut(self.goodbye)

    async def _keep_alive(self) -> None:
        while True:
            await trio.sleep(self._limits.ping_interval_s)
            try:
                with trio.fail_after(self._limits.ping_timeout_s):
                    await self._engine.ping()
            except trio.TooSlowError:
                await self._engine.abort()
                self.cut(Goodbye(1001, "", "ping_timeout"))
                return
            except PeerGone:
                self.cut(Goodbye(1000, "", "lost"))
                return


def _is_cancel(message: jsonrpc.Message) -> bool:
    return isinstance(message, jsonrpc.Request | jsonrpc.Notification) and message.method == "stream.cancel"
