"""The composition root: what there is, in which order it starts, and in which order it stops.

    database                      writer and readers; opened first, closed last
    `- backend                    the model's HTTP client
       `- root nursery
          |- background workers
          |- retention
          |- scheduler, which tells waiting turns their positions
          |- monitor
          |- model watch
          |- task report, on SIGUSR1
          |- keepalive, for all connections
          |- pace, for all streams
          |- token watch, where there is a settings file
          |- HTTP server, where it has a port
          `- listener
             `- one nursery for each connection

A part that crashes cancels the nursery it lives in, and so everything above it in this list.
"""

import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext

import attrs
import structlog
import trio

from persona.assembly import Server, assemble, psutil_resident_bytes
from persona.config import ServerSettings, Settings
from persona.errors import StartupError
from persona.groups import ungrouped
from persona.hosts import in_url
from persona.llm.backend import Backend
from persona.llm.select import open_backend
from persona.metrics import Metrics
from persona.monitor.signals import report_on_signal
from persona.monitor.tree import noting_births
from persona.storage.pool import Database, open_database
from persona.transport.admission import PATH, check_binding
from persona.transport.tokens import TokenSource, TokenWatch

log = structlog.get_logger()

BACKGROUND_GRACE_S = 5.0
"""How long a stop waits for background jobs; they are, by definition, what can be missed."""
BACKLOG = 1024
"""Connections the kernel holds until they are accepted: a reconnect storm of twice
`max_connections`. The kernel may have a lower bound of its own."""

Now = Callable[[], float]


@asynccontextmanager
async def open_server(
    settings: Settings,
    *,
    database: Database,
    backend: Backend,
    now: Now = time.time,
    resident_bytes: Callable[[], int] | None = None,
    tokens: TokenSource | None = None,
    metrics: Metrics | None = None,
    takes_signals: bool = False,
) -> AsyncIterator[Server]:
    """Assemble a server over an open database and backend, with its services running.

    `takes_signals` is for the main thread of a process that is the server's own.
    """
    with noting_births() as births, ungrouped():
        server = assemble(
            settings,
            database,
            backend,
            now,
            resident_bytes or psutil_resident_bytes(),
            metrics or Metrics(),
            births,
        )
        await server.personas.load()
        async with trio.open_nursery() as root:
            await root.start(server.background.run, name="background")
            await root.start(server.retention.run, name="retention")
            await root.start(server.scheduler.run, name="scheduler")
            await root.start(server.monitor.run, name="monitor")
            await root.start(server.model_watch.run, name="model watch")
            await root.start(server.listener.keepalive.run, name="keepalive")
            await root.start(server.pace.run, name="pace")
            if tokens is not None:
                watch = TokenWatch(tokens, server.listener.set_tokens)
                await root.start(watch.run, name="token watch")
            if takes_signals:
                await root.start(report_on_signal, server.observer.tree, name="task report")
            yield server
            with trio.move_on_after(BACKGROUND_GRACE_S):
                await server.background.finish()
            root.cancel_scope.cancel()


async def run_server(
    settings: Settings,
    *,
    on_listening: Callable[[str], None],
    stop: Callable[[], Awaitable[None]] | None = None,
    tokens: TokenSource | None = None,
) -> None:
    """Serve until SIGINT or SIGTERM (or until `stop` returns), then drain.

    `on_listening` gets each URL once it answers: that of the WebSocket first, then that of the pages.
    `tokens` replace those of `settings` whenever they change.

    Raises `StartupError` when a port or the database cannot be had, or the binding is not safe.
    """
    check_binding(settings.server, settings.auth)
    async with AsyncExitStack() as stack:
        listeners = await open_listeners(settings.server.host, settings.server.port)
        stack.callback(_close, listeners)
        http_listeners = await open_http_listeners(settings.server)
        stack.callback(_close, http_listeners)
        port = listeners[0].socket.getsockname()[1]
        settings = attrs.evolve(settings, server=attrs.evolve(settings.server, port=port))
        urls = [f"ws://{in_url(settings.server.host)}:{port}{PATH}"]
        if http_listeners:
            urls.append(f"http://{in_url(settings.server.http_host)}:{settings.server.http_port}/")

        def announce() -> None:
            for url in urls:
                on_listening(url)

        async with (
            open_database(
                settings.database.file,
                readers=settings.database.readers,
                synchronous=settings.database.synchronous,
                busy_timeout_s=settings.database.busy_timeout_s,
                cache_pages=settings.database.cache_pages,
                wal_limit_bytes=settings.database.wal_limit_bytes,
            ) as database,
            open_backend(settings.llm) as backend,
            open_server(
                settings, database=database, backend=backend, tokens=tokens, takes_signals=stop is None
            ) as server,
        ):
            with stop_signals() if stop is None else nullcontext(stop) as wait_for_stop:
                await server.serve(
                    listeners, stop=wait_for_stop, on_listening=announce, http_listeners=http_listeners
                )
    log.info("stopped")


@contextmanager
def stop_signals() -> Iterator[Callable[[], Awaitable[None]]]:
    """Take SIGINT and SIGTERM from here on; gives a function that waits for the first.

    Entered before clients are told that they can connect, so that no signal falls between. A
    second signal ends the process at once: what was acknowledged is on disk, so nothing is lost.
    """
    with trio.open_signal_receiver(signal.SIGINT, signal.SIGTERM) as signals:

        async def first() -> None:
            async for number in signals:
                log.info("stop_requested", signal=signal.Signals(number).name)
                break
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(number, signal.SIG_DFL)

        yield first


async def open_listeners(host: str, port: int) -> list[trio.SocketListener]:
    """Bind. Raises `StartupError` with the reason, such as a port in use."""
    try:
        listeners = await trio.open_tcp_listeners(port, host=host, backlog=BACKLOG)
    except OSError as exc:
        raise StartupError(f"cannot listen on {host}:{port}: {exc.strerror or exc}") from None
    if port == 0:
        # Every family would get a port of its own; one address is what the operator is told.
        for spare in listeners[1:]:
            spare.socket.close()
        del listeners[1:]
    return listeners


async def open_http_listeners(server: ServerSettings) -> list[trio.SocketListener]:
    """Bind the HTTP port; none where it is off. Raises `StartupError` with the reason."""
    if not server.http_port:
        return []
    try:
        return await open_listeners(server.http_host, server.http_port)
    except StartupError as exc:
        raise StartupError(f"{exc} (for HTTP; --http-port takes another port, or 0 for none)") from None


def _close(listeners: Sequence[trio.SocketListener]) -> None:
    for listener in listeners:
        listener.socket.close()
