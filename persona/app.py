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

import gc
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager, nullcontext
from functools import cache
from typing import Any

import attrs
import psutil
import structlog
import trio

from persona import __version__
from persona.config import LimitSettings, ServerSettings, Settings
from persona.errors import StartupError
from persona.groups import ungrouped
from persona.hosts import in_url
from persona.llm.backend import Backend
from persona.llm.breaker import CircuitBreaker
from persona.llm.retry import RetryingBackend
from persona.llm.select import open_backend
from persona.llm.watch import ModelWatch
from persona.metrics import Metrics
from persona.model import Persona
from persona.monitor.memory import MemoryGuard
from persona.monitor.observer import Observer
from persona.monitor.signals import report_on_signal
from persona.monitor.task import Monitor
from persona.monitor.tree import Births, noting_births
from persona.rpc import jsonrpc
from persona.rpc.discover import openrpc_document
from persona.rpc.dispatch import Dispatcher, Registry
from persona.rpc.methods.chat import ChatMethods
from persona.rpc.methods.conversation import ConversationMethods
from persona.rpc.methods.persona import PersonaMethods
from persona.rpc.methods.session import SessionMethods
from persona.rpc.methods.system import SystemFigures, SystemMethods
from persona.rpc.results import PersonaDetail, ServerInfo
from persona.rpc.stream import Pace, open_pace
from persona.rpc.turns import TurnCalls
from persona.sampling import Sampler, capacities
from persona.service.background import Background, Importance
from persona.service.chat import Chat
from persona.service.context import ContextBudget
from persona.service.conversations import Conversations
from persona.service.hub import Hub
from persona.service.personas import Personas
from persona.service.retention import Retention
from persona.service.scheduler import Scheduler
from persona.service.sessions import Sessions
from persona.service.summaries import Summaries
from persona.storage.figures import DatabaseFigures
from persona.storage.pool import Database, open_database
from persona.transport.admission import PATH, check_binding
from persona.transport.listener import Listener
from persona.transport.tokens import TokenSource, TokenWatch
from persona.web.app import Site, make_app
from persona.web.server import WebServer

log = structlog.get_logger()

BACKGROUND_GRACE_S = 5.0
"""How long a stop waits for background jobs; they are, by definition, what can be missed."""
BACKLOG = 1024
"""Connections the kernel holds until they are accepted: a reconnect storm of twice
`max_connections`. The kernel may have a lower bound of its own."""

Now = Callable[[], float]


@attrs.frozen(kw_only=True)
class Server:
    """The assembled server. `listener` serves streams; the rest is there to be looked at."""

    settings: Settings
    metrics: Metrics
    sessions: Sessions
    registry: Registry
    personas: Personas
    background: Background
    retention: Retention
    scheduler: Scheduler
    monitor: Monitor
    observer: Observer
    model_watch: ModelWatch
    pace: Pace
    listener: Listener
    web: WebServer

    async def serve(
        self,
        listeners: list[trio.SocketListener],
        *,
        stop: Callable[[], Awaitable[None]],
        on_listening: Callable[[], None],
        http_listeners: Sequence[trio.SocketListener] = (),
    ) -> None:
        """Serve `listeners`, and HTTP on `http_listeners`, until `stop` returns, then drain; returns when
        everybody has gone."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self.listener.serve, listeners, name="listener")
            if http_listeners:
                await nursery.start(self.web.serve, http_listeners, name="http")
            on_listening()
            await stop()
            log.info("draining", connections=len(self.listener.connections))
            await self.listener.drain()
            # Last, so that whoever asks `/readyz` meanwhile hears why there is no connecting any more.
            await self.web.drain()


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
    is_monitored: bool = True,
    takes_signals: bool = False,
) -> AsyncIterator[Server]:
    """Assemble a server over an open database and backend, with its services running.

    `takes_signals` is for the main thread of a process that is the server's own. Without `is_monitored`
    nothing watches memory or raises alerts: what that saves can be measured so, and is little.
    """
    with noting_births() as births, ungrouped():
        server = _assemble(
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
            if is_monitored:
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


def _assemble(
    settings: Settings,
    database: Database,
    backend: Backend,
    now: Now,
    resident_bytes: Callable[[], int],
    metrics: Metrics,
    births: Births,
) -> Server:
    limits, started_at = settings.limits, now()
    sessions = Sessions()
    metrics.registry.register(DatabaseFigures(database.statistics))
    hub = Hub(encode=jsonrpc.encode_notification, now=now)

    def on_change(what: str, persona: Persona) -> None:
        hub.publish("personas", f"persona.{what}", PersonaDetail.of(persona))

    def on_deleted(conversation_id: str, turn_ids: frozenset[int] | None) -> None:
        chat.end_turns(conversation_id, turn_ids)
        if turn_ids is None:
            for session in sessions:
                session.forget_conversation(conversation_id)

    personas = Personas(database, recovery_s=settings.personas.recovery_s, now=now, on_change=on_change)
    conversations = Conversations(database, now=now, on_deleted=on_deleted)
    background = Background(
        queue_size=settings.background.queue_size, workers=settings.background.workers, metrics=metrics
    )
    circuit = CircuitBreaker(
        failures=settings.llm.breaker_failures, open_s=settings.llm.breaker_open_s, metrics=metrics, now=now
    )
    backend = RetryingBackend(backend, circuit, max_retries=settings.llm.max_retries, metrics=metrics)
    scheduler = Scheduler(
        slots=settings.llm.max_concurrency,
        max_queue=settings.llm.max_queue,
        max_queue_wait_s=settings.llm.max_queue_wait_s,
        admit=circuit.check,
        metrics=metrics,
    )
    budget = ContextBudget(backend, configured_tokens=settings.llm.context_tokens)
    chat = Chat(
        database=database,
        backend=backend,
        personas=personas,
        scheduler=scheduler,
        background=background,
        budget=budget,
        summaries=Summaries(
            database=database,
            backend=backend,
            scheduler=scheduler,
            background=background,
            budget=budget,
            now=now,
        ),
        metrics=metrics,
        first_token_timeout_s=settings.llm.first_token_timeout_s,
        now=now,
    )

    def figures() -> SystemFigures:
        return SystemFigures(
            status="draining" if dispatcher.draining else "ok",
            uptime_s=now() - started_at,
            connections=len(listener.connections),
            memory_bytes=metrics.value("resident_memory_bytes"),
        )

    # Made once: to make it takes milliseconds, and a batch may ask for it fifty times.
    @cache
    def document() -> dict[str, Any]:
        url = f"ws://{settings.server.host}:{settings.server.port}{PATH}"
        return openrpc_document(registry.specs(), version=__version__, url=url)

    server_info = ServerInfo(
        name="persona", version=__version__, engine=settings.server.engine, llm=backend.provider
    )
    pace = open_pace()
    turns = TurnCalls(personas, conversations, chat, pace, now)
    model_watch = ModelWatch(backend)

    async def release_memory() -> None:
        # A connection and its engine know each other, so those that have gone wait for the collector.
        gc.collect()
        await database.release_memory()

    observer = Observer(
        metrics_of=lambda window_s, for_admin: monitor.metrics(window_s, for_admin=for_admin),
        births=births,
        requests_of=lambda session_id: sampler.requests_of(session_id),  # noqa: PLW0108 - made below
    )
    registry = Registry(
        [
            PersonaMethods(personas, conversations),
            ChatMethods(turns),
            ConversationMethods(personas, conversations, turns),
            SessionMethods(personas, hub, _announced(limits), server_info),
            SystemMethods(
                personas=personas,
                conversations=conversations,
                backend=backend,
                circuit=circuit,
                hub=hub,
                metrics=metrics,
                figures=figures,
                observed=observer,
                document=document,
                now=now,
            ),
        ]
    )
    dispatcher = Dispatcher(
        registry,
        limits,
        metrics,
        logs_requests=settings.log.level == "debug",
        slow_request_s=settings.log.slow_request_s,
    )
    listener = Listener(
        settings,
        sessions=sessions,
        dispatcher=dispatcher,
        hub=hub,
        metrics=metrics,
        has_memory=lambda: monitor.has_memory(),  # noqa: PLW0108 - made below, needs `listener`
    )
    sampler = Sampler(
        listener=listener,
        dispatcher=dispatcher,
        registry=registry,
        database=database,
        background=background,
        scheduler=scheduler,
        model_watch=model_watch,
    )
    monitor = Monitor(
        settings.monitor,
        memory=MemoryGuard(
            soft_limit_mb=limits.memory_soft_limit_mb,
            hard_limit_mb=limits.memory_limit_mb,
            resident_bytes=resident_bytes,
            shed=listener.shed,
            drop_caches=lambda: background.submit("release_memory", release_memory, Importance.NORMAL),
            metrics=metrics,
        ),
        look=sampler.look,
        heaviest=sampler.heaviest,
        capacities=capacities(settings),
        model_methods=frozenset(spec.name for spec in registry.specs() if spec.bound == "model"),
        is_watched=hub.has_subscribers,
        publish=hub.publish,
        metrics=metrics,
        now=now,
    )
    site = Site(
        server=settings.server,
        websocket_path=PATH,
        registry=metrics.registry,
        refusal=listener.refusal,
        asks_for_token=lambda: listener.asks_for_token,
        ask_database=lambda: database.write(lambda _: None),
    )
    return Server(
        settings=settings,
        metrics=metrics,
        sessions=sessions,
        registry=registry,
        personas=personas,
        background=background,
        retention=Retention(database, sessions=sessions, background=background, metrics=metrics, now=now),
        scheduler=scheduler,
        monitor=monitor,
        observer=observer,
        model_watch=model_watch,
        pace=pace,
        listener=listener,
        web=WebServer(make_app(site, metrics), metrics, write_deadline_s=limits.write_deadline_s),
    )


def _announced(limits: LimitSettings) -> dict[str, float]:
    """The limits a client must stay under, as `session.info` shows them."""
    names = (
        "max_message_bytes",
        "max_json_depth",
        "rate_limit_per_minute",
        "rate_limit_burst",
        "max_in_flight",
        "request_timeout_s",
        "chat_timeout_s",
        "max_pending_bytes",
    )
    return {**{name: getattr(limits, name) for name in names}, "max_batch": jsonrpc.MAX_BATCH}


def psutil_resident_bytes() -> Callable[[], int]:
    """A function that tells this process's resident set size."""
    process = psutil.Process()
    return lambda: int(process.memory_info().rss)


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
