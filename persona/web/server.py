"""HTTP connections: accepted here, and each driven by hypercorn's trio worker.

The accept loop is ours, for the same reason as the WebSocket's. In hypercorn's own an exception that
leaves a connection ends the server, there is no limit to connections, and a write is shielded without a
bound, so that one client that does not read holds up the end of the process for ever.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import structlog
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ConnectionState, LifespanState
from starlette.types import ASGIApp

from persona.metrics import Metrics

log = structlog.get_logger()

MAX_CONNECTIONS = 128
"""Open at once; one more gets 503. A dozen browsers take six each, and probes and scrapers one. Without a
bound a flood here would take the descriptors that the WebSocket's clients need."""
KEEP_ALIVE_S = 5.0
"""An idle connection, and a request that does not get finished, are closed after this: a page loads its
files in less, and a scraper that comes every 15 s does better with a new connection."""
MAX_LIFETIME_S = 60.0
"""Of a connection, whatever it does: nothing here takes more than a moment."""
AFTER_EOF_S = 1.0
"""A client that has closed, or at least will not ask again, keeps its place for this long at most: hypercorn
alone would hold it for `KEEP_ALIVE_S`. Long enough for the answer to one that closed its side only."""
DRAIN_S = 1.0
"""How long a stop waits for answers that are under way."""
MAX_HEAD_BYTES = 16 * 1024
"""The request line and headers, as the WebSocket's handshake has it."""
FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 5\r\nConnection: close\r\n"
    b"Content-Type: text/plain; charset=utf-8\r\nContent-Length: 31\r\n\r\nToo many connections are open.\n"
)
FULL_WITHIN_S = 1.0
POLL_S = 0.02


class WebServer:
    """Serves an ASGI app on sockets that are bound already. `serve` is the service, `drain` ends it."""

    def __init__(self, app: ASGIApp, metrics: Metrics, *, write_deadline_s: float) -> None:
        self._app = ASGIWrapper(app)  # type: ignore[arg-type]
        self._metrics = metrics
        self._write_deadline_s = write_deadline_s
        self._config = _hypercorn_config()
        self._context = WorkerContext(None)
        self._accepting = trio.CancelScope()
        self._streams: set[TimedStream] = set()

    async def serve(
        self,
        listeners: Sequence[trio.SocketListener],
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Accept until `drain`; then return once the last connection has ended."""
        async with trio.open_nursery() as connections:
            with self._accepting:
                # Started means that the accept loops run, not only that the sockets are bound.
                async with trio.open_nursery() as accepting:
                    await accepting.start(
                        partial(trio.serve_listeners, handler_nursery=connections),
                        self.serve_stream,
                        list(listeners),
                    )
                    task_status.started()

    async def serve_stream(self, stream: trio.SocketStream) -> None:
        """Serve one accepted stream to its end. Never raises but `Cancelled`."""
        # As it is shown in the tree of tasks; trio names all handlers alike.
        trio.lowlevel.current_task().name = "http connection"
        timed = TimedStream(stream, self._write_deadline_s)
        try:
            if len(self._streams) >= MAX_CONNECTIONS:
                self._metrics.http_refused.labels("max_connections").inc()
                with trio.move_on_after(FULL_WITHIN_S):
                    await timed.send_all(FULL)
                    await timed.send_eof()
            else:
                timed.life.deadline = trio.current_time() + MAX_LIFETIME_S
                with self._listed(timed), timed.life:
                    await TCPServer(self._app, self._config, self._context, _no_state(), timed).run()  # type: ignore[arg-type]
        except* (trio.BrokenResourceError, trio.ClosedResourceError, OSError):
            log.debug("http_peer_vanished")
        except* Exception:  # the boundary of a connection: its failure stays inside
            log.exception("http_connection_crashed")
        finally:
            await trio.aclose_forcefully(timed)

    @contextmanager
    def _listed(self, stream: "TimedStream") -> Iterator[None]:
        self._streams.add(stream)
        self._metrics.http_connections.set(len(self._streams))
        try:
            yield
        finally:
            self._streams.remove(stream)
            self._metrics.http_connections.set(len(self._streams))

    async def drain(self) -> None:
        """Stop accepting, let answers that are under way go out for `DRAIN_S`, and close what is left.
        `serve` returns soon after."""
        self._accepting.cancel()
        # Idle connections wait for this.
        await self._context.terminated.set()
        with trio.move_on_after(DRAIN_S):
            # Polled, as the WebSocket listener does: it happens once.
            while self._streams:  # noqa: ASYNC110
                await trio.sleep(POLL_S)
        for stream in tuple(self._streams):
            await stream.cut()


class TimedStream(trio.abc.HalfCloseableStream):
    """A TCP stream that breaks when a write takes longer than `write_deadline_s`."""

    def __init__(self, stream: trio.SocketStream, write_deadline_s: float) -> None:
        self._stream = stream
        self._write_deadline_s = write_deadline_s
        self.socket = stream.socket
        """For hypercorn, which asks it for the addresses."""
        self.life = trio.CancelScope()
        """To be entered around whoever uses the stream."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See trio. Raises `BrokenResourceError` at the deadline, too."""
        with trio.move_on_after(self._write_deadline_s):
            await self._stream.send_all(data)
            return
        # Half a message may be out; nothing that follows would make sense.
        await self.cut()
        raise trio.BrokenResourceError("the peer takes too slowly")

    async def cut(self) -> None:
        """End it at once: what is shielded ends with the socket, everything else with `life`. hypercorn's
        reader may wait for an answer to go out before it reads on, and not hear that there is no socket."""
        self.life.cancel()
        await trio.aclose_forcefully(self._stream)

    async def wait_send_all_might_not_block(self) -> None:
        """See trio."""
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        """See trio."""
        await self._stream.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """See trio. After the end of the peer's data `life` does not last long."""
        data = await self._stream.receive_some(max_bytes)
        if not data:
            self.life.deadline = min(self.life.deadline, trio.current_time() + AFTER_EOF_S)
        return data

    async def aclose(self) -> None:
        """See trio."""
        await self._stream.aclose()


def _hypercorn_config() -> Config:
    config = Config()
    # It would write lines of its own to stderr, amid those of ours.
    config.errorlog = config.accesslog = None
    config.keep_alive_timeout = KEEP_ALIVE_S
    config.h11_max_incomplete_size = MAX_HEAD_BYTES
    config.include_server_header = False
    return config


def _no_state() -> LifespanState:
    return ConnectionState({})
