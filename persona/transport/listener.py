"""The capacity-limited listener: accept, admit, serve, drain.

Whatever happens in one connection stays in it: this is the boundary where its errors are caught,
logged and counted. Connection counts are taken before any work, and given back by leaving a
`with` block, so they cannot leak.
"""

import heapq
import math
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AsyncExitStack, contextmanager
from functools import partial
from http import HTTPStatus

import structlog
import trio
from wsproto.utilities import LocalProtocolError

from persona.config import AuthToken, Settings
from persona.metrics import Metrics
from persona.rpc.dispatch import Dispatcher
from persona.service.hub import Hub
from persona.service.sessions import Sessions
from persona.transport.admission import Admission, Admitted
from persona.transport.closing import LINGER_S
from persona.transport.connection import Connection, Goodbye
from persona.transport.engine import AcceptEngine, Engine, EngineOptions
from persona.transport.engine_sansio import AcceptSansio
from persona.transport.engine_trio_websocket import AcceptTrioWebsocket
from persona.transport.handshake import Refused, read_head, refuse
from persona.transport.keepalive import Keepalive
from persona.transport.sockets import HAS_EPOLL, ReadyListener, SocketStream, open_readiness

log = structlog.get_logger()

RETRY_AFTER_S = 5
"""Told to clients refused for want of room: soon enough to be useful, late enough not to be a load."""
CLOSE_BATCH = 50
"""Connections told to go at a time while draining, so that they do not all come back at once."""
CLOSE_JITTER_S = (0.05, 0.15)
"""Between two such batches."""
DRAIN_POLL_S = 0.02
REVOKED = Goodbye(1008, "the token is no longer valid", "revoked")
SENT_AWAY = (1008, 1013)
"""Close codes after which nothing is expected of a peer."""


class Listener:
    """Accepts streams and serves each as a connection, of `connection_class`."""

    def __init__(
        self,
        settings: Settings,
        *,
        sessions: Sessions,
        dispatcher: Dispatcher,
        hub: Hub,
        metrics: Metrics,
        has_memory: Callable[[], bool] = lambda: True,
        connection_class: type[Connection] = Connection,
    ) -> None:
        self._limits = settings.limits
        self._grace_s = settings.server.graceful_timeout_s
        self._admission = Admission(settings.server, settings.auth)
        self._sessions = sessions
        self._dispatcher = dispatcher
        self._hub = hub
        self._metrics = metrics
        self._has_memory = has_memory
        self._connection_class = connection_class
        self._accept: AcceptEngine = (
            AcceptSansio() if settings.server.engine == "sansio" else AcceptTrioWebsocket()
        )
        self._engine_options = EngineOptions(
            max_message_bytes=self._limits.max_message_bytes,
            control_rate_per_minute=self._limits.control_rate_limit_per_minute,
            control_rate_burst=self._limits.control_rate_limit_burst,
            write_deadline_s=self._limits.write_deadline_s,
        )
        self.keepalive = Keepalive(self._limits.ping_interval_s)
        """To be run for as long as streams are served."""
        self._per_address: Counter[str] = Counter()
        # Half-open ones, likewise: one machine cannot take all of their places either.
        self._opening: Counter[str] = Counter()
        self._handshakes: set[trio.CancelScope] = set()
        self._refusals = 0
        self._places = 0
        self._draining = False
        self._accepting = trio.CancelScope()
        self.connections: dict[str, Connection] = {}
        """Open connections by session id; ids are never reused."""

    async def serve(
        self,
        listeners: Sequence[trio.abc.Listener[trio.abc.Stream]],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept until `drain`; then return once the last connection has ended."""
        async with AsyncExitStack() as stack:
            if HAS_EPOLL:
                readiness = await stack.enter_async_context(open_readiness())
                listeners = [
                    ReadyListener(each, readiness) if isinstance(each, trio.SocketListener) else each
                    for each in listeners
                ]
            async with trio.open_nursery() as connections:
                with self._accepting:
                    # Started means that the accept loops run, not only that the sockets are bound.
                    async with trio.open_nursery() as accepting:
                        await accepting.start(
                            partial(trio.serve_listeners, handler_nursery=connections),
                            self.serve_stream,
                            listeners,
                        )
                        task_status.started()

    async def serve_stream(self, stream: trio.abc.Stream) -> None:
        """Serve one accepted stream to its end. Never raises but `Cancelled`."""
        try:
            await self._handshake_and_run(stream)
        except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            # The peer vanished during its handshake.
            self._metrics.refused.labels("vanished").inc()
        except* LocalProtocolError:
            # trio-websocket's reader answers a ping after our close was sent (its issue 184).
            log.debug("close_crossed_ping")
        except* Exception:  # the boundary of a handshake, and of trio-websocket's reader
            self._metrics.closed.labels("error").inc()
            log.exception("connection_crashed")
        finally:
            await trio.aclose_forcefully(stream)

    async def _handshake_and_run(self, stream: trio.abc.Stream) -> None:
        # trio-websocket's own task lives in the outer nursery: it must outlive ours, or the
        # closing handshake would wait for a reader that is gone.
        async with trio.open_nursery() as engine_nursery:
            try:
                await self._admit_and_run(stream, engine_nursery)
            except Refused as exc:
                await self._refuse(stream, exc)
            except trio.TooSlowError:
                self._metrics.refused.labels("timeout").inc()
            engine_nursery.cancel_scope.cancel()

    async def _refuse(self, stream: trio.abc.Stream, refused: Refused) -> None:
        """Say so, and let it be read: by as many at a time as may be half open, for a flood must not find a
        second room behind the full one."""
        self._metrics.refused.labels(refused.reason).inc()
        lingers = self._refusals < self._limits.max_handshakes
        if not lingers:
            self._metrics.refusals_cut_short.inc()
        self._refusals += lingers
        try:
            with trio.move_on_after(self._limits.close_timeout_s):
                await refuse(stream, refused, lingers=lingers)
        finally:
            self._refusals -= lingers

    async def _admit_and_run(self, stream: trio.abc.Stream, engine_nursery: trio.Nursery) -> None:
        deadline = trio.current_time() + self._limits.handshake_timeout_s
        peer = peer_address(stream)
        with self._half_open(deadline, self._admission.counted_peer(peer)):
            head = await read_head(stream)
        if head is None:
            return
        admitted = self._admission.admit(head, peer)
        with self._place(admitted.address):
            with trio.fail_at(deadline):
                engine = await self._accept(
                    engine_nursery,
                    stream,
                    head,
                    subprotocol=admitted.subprotocol,
                    options=self._engine_options,
                )
            # Some 2 kB, which would stay for as long as the client does.
            del head
            await self._run(engine, admitted)

    @contextmanager
    def _half_open(self, deadline: float, address: str) -> Iterator[None]:
        """One of the places for these, and one of the address's; `address` empty is exempt. Raises
        `TooSlowError` at the deadline, and ends with a drain."""
        if self._draining:
            raise _shutting_down()
        if len(self._handshakes) >= self._limits.max_handshakes:
            raise _no_room("handshakes", "Too many connections are being opened.")
        self._check_address(self._opening[address], address)
        scope = trio.CancelScope(deadline=deadline)
        self._handshakes.add(scope)
        self._opening[address] += 1
        self._metrics.handshakes.set(len(self._handshakes))
        try:
            with scope:
                yield
        finally:
            self._handshakes.remove(scope)
            _give_back(self._opening, address)
            self._metrics.handshakes.set(len(self._handshakes))
        if scope.cancelled_caught:
            raise _shutting_down() if self._draining else trio.TooSlowError

    @contextmanager
    def _place(self, address: str) -> Iterator[None]:
        """One of the places there are, and one of the address's; `address` empty is exempt."""
        if self._draining:
            raise _shutting_down()
        if self._places >= self._limits.max_connections:
            raise _no_room("max_connections", "The server is full.")
        if not self._has_memory():
            raise _no_room("memory", "The server is short of memory.")
        self._check_address(self._per_address[address], address)
        self._places += 1
        self._per_address[address] += 1
        try:
            yield
        finally:
            self._places -= 1
            _give_back(self._per_address, address)

    def _check_address(self, count: int, address: str) -> None:
        limit = self._limits.max_connections_per_address
        if address and limit and count >= limit:
            raise _no_room("max_connections_per_address", "Too many connections from this address.")

    async def _run(self, engine: Engine, admitted: Admitted) -> None:
        session = self._sessions.open(admitted.identity)
        connection = self._connection_class(
            engine, session, dispatcher=self._dispatcher, limits=self._limits, metrics=self._metrics
        )
        trio.lowlevel.current_task().name = f"connection {session.id}"
        with self._listed(connection), structlog.contextvars.bound_contextvars(connection=session.id):
            log.debug("connection_opened", user=session.identity.user)
            # Let in just before, it comes too late to be sent away with the others.
            if self._draining:
                connection.finish(Goodbye(1012, "the server restarts", "shutdown"))
            elif not self._admission.still_admits(session.identity):
                connection.finish(REVOKED)
            # What the peer is told if something other than its own end ends the connection.
            goodbye = Goodbye(1011, "internal error", "error")
            try:
                goodbye = await connection.run()
            except* trio.Cancelled:
                goodbye = Goodbye(1012, "the server restarts", "shutdown")
                raise
            except* Exception:  # the boundary of an open connection
                log.exception("connection_crashed")
            finally:
                with trio.move_on_after(self._farewell_s(goodbye), shield=True):
                    await engine.aclose(goodbye.code, goodbye.text)
                self._metrics.closed.labels(goodbye.cause).inc()
                log.debug(
                    "connection_closed",
                    user=session.identity.user,
                    cause=goodbye.cause,
                    code=goodbye.code,
                    seconds=round(trio.current_time() - connection.opened_at, 3),
                )

    def _farewell_s(self, goodbye: Goodbye) -> float:
        """How long to wait for a peer's goodbye. One that is sent away for what it did, or for want of
        memory, is only let read ours: somebody waits for its place. So is everybody where all is being
        cancelled: whoever did that waits, and trio-websocket's reader, which had to hear them, has gone."""
        timeout_s = self._limits.close_timeout_s
        is_cancelled = trio.current_effective_deadline() == -math.inf
        return min(LINGER_S, timeout_s) if is_cancelled or goodbye.code in SENT_AWAY else timeout_s

    @contextmanager
    def _listed(self, connection: Connection) -> Iterator[None]:
        session = connection.session
        self.connections[session.id] = connection
        self.keepalive.add(connection)
        self._metrics.connections.set(len(self.connections))
        try:
            yield
        finally:
            del self.connections[session.id]
            self.keepalive.remove(connection)
            self._metrics.connections.set(len(self.connections))
            self._hub.forget(connection)
            self._sessions.close(session)

    def set_tokens(self, tokens: Sequence[AuthToken]) -> None:
        """Let in only who holds one of `tokens`, and send away who does no longer."""
        self._admission.set_tokens(tokens)
        for connection in tuple(self.connections.values()):
            if not self._admission.still_admits(connection.session.identity):
                log.info("token_revoked", user=connection.session.identity.user)
                connection.cut(REVOKED)

    def heaviest(self, count: int) -> list[Connection]:
        """The connections that most is held for, heaviest first; none that nothing is held for."""
        holding = (each for each in self.connections.values() if each.held_bytes)
        return heapq.nlargest(count, holding, key=lambda each: each.held_bytes)

    @property
    def half_open(self) -> int:
        """Handshakes under way."""
        return len(self._handshakes)

    def shed(self, count: int) -> int:
        """Cut up to `count` connections to save memory: idle ones first, those longest silent
        before others, then those with most waiting to be sent. How many were cut."""

        def rank(connection: Connection) -> tuple[bool, float]:
            busy = connection.session.in_flight > 0
            return busy, -connection.pending_bytes if busy else connection.last_heard_at

        staying = (connection for connection in self.connections.values() if not connection.is_leaving)
        chosen = sorted(staying, key=rank)[:count]
        for connection in chosen:
            self._metrics.shed.labels("slow" if connection.session.in_flight else "idle").inc()
            connection.cut(Goodbye(1013, "the server is short of memory", "shed"))
        return len(chosen)

    @property
    def asks_for_token(self) -> bool:
        """Whether nobody gets in without a token."""
        return self._admission.asks_for_token

    def refusal(self) -> str | None:
        """Why a client that came now would find no place: the reason under which its refusal would be
        counted, or none."""
        if self._draining:
            return "draining"
        if self._places >= self._limits.max_connections:
            return "max_connections"
        return None if self._has_memory() else "memory"

    async def drain(self) -> None:
        """Stop accepting, let requests finish, then send everybody away.

        Takes at most `graceful_timeout_s` for the requests that run; those still running then are
        cancelled and give their last answer. `serve` returns soon after.
        """
        self._draining = True
        self._dispatcher.draining = True
        self._accepting.cancel()
        for handshake in self._handshakes:
            handshake.cancel()
        self._hub.publish("system", "system.draining", {"grace_s": self._grace_s})
        with trio.move_on_after(self._grace_s):
            await self._requests_done()
        for session in self._sessions:
            session.cancel_all("shutdown")
        with trio.move_on_after(self._limits.close_timeout_s):
            await self._requests_done()
        await self._send_away()
        with trio.move_on_after(self._limits.close_timeout_s):
            while self.connections:  # noqa: ASYNC110 - see `_requests_done`
                await trio.sleep(DRAIN_POLL_S)
        for connection in tuple(self.connections.values()):
            # It takes what was left for it too slowly to be waited for.
            connection.cut(Goodbye(1012, "the server restarts", "shutdown"))

    async def _requests_done(self) -> None:
        # Polled: a stop happens once, and an event for it would cost every request its share.
        while self._sessions.in_flight:  # noqa: ASYNC110
            await trio.sleep(DRAIN_POLL_S)

    async def _send_away(self) -> None:
        leaving = list(self.connections.values())
        for start in range(0, len(leaving), CLOSE_BATCH):
            if start:
                await trio.sleep(random.uniform(*CLOSE_JITTER_S))  # noqa: S311 - to spread, not to hide
            for connection in leaving[start : start + CLOSE_BATCH]:
                connection.finish(Goodbye(1012, "the server restarts", "shutdown"))


def peer_address(stream: trio.abc.Stream) -> str:
    """The peer's IP address; empty for a stream inside this process."""
    if isinstance(stream, SocketStream):
        return stream.peer_address
    if isinstance(stream, trio.SocketStream):
        return str(stream.socket.getpeername()[0])
    return ""


def _give_back(places: Counter[str], address: str) -> None:
    places[address] -= 1
    if not places[address]:
        del places[address]


def _shutting_down() -> Refused:
    return _no_room("draining", "The server is shutting down.")


def _no_room(reason: str, text: str) -> Refused:
    retry_after = (("Retry-After", str(RETRY_AFTER_S)),)
    return Refused(HTTPStatus.SERVICE_UNAVAILABLE, reason, text, retry_after)
