"""What the server is made of, and who knows whom. `app` runs it.

Everything is made here and nowhere else, from settings, a database and a backend, without waiting for
anything: what goes on by itself is a service that `app` starts.
"""

import gc
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from typing import Any

import attrs
import psutil
import structlog
import trio

from persona import __version__
from persona.config import LimitSettings, Settings
from persona.llm.backend import Backend
from persona.llm.breaker import CircuitBreaker
from persona.llm.retry import RetryingBackend
from persona.llm.watch import ModelWatch
from persona.metrics import Metrics, reading
from persona.model import Persona
from persona.monitor.memory import MemoryGuard
from persona.monitor.observer import Observer
from persona.monitor.task import Monitor
from persona.monitor.tree import Births
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
from persona.storage.pool import Database
from persona.transport.admission import PATH
from persona.transport.listener import Listener
from persona.web.app import Site, make_app
from persona.web.server import WebServer

log = structlog.get_logger()


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


@attrs.frozen(kw_only=True)
class Services:
    """What the calls are made of."""

    sessions: Sessions
    hub: Hub
    personas: Personas
    conversations: Conversations
    background: Background
    circuit: CircuitBreaker
    backend: Backend
    model_watch: ModelWatch
    scheduler: Scheduler
    chat: Chat


def assemble(
    settings: Settings,
    database: Database,
    backend: Backend,
    now: Now,
    resident_bytes: Callable[[], int],
    metrics: Metrics,
    births: Births,
) -> Server:
    """The whole server, nothing of which runs yet."""
    metrics.registry.register(DatabaseFigures(database.statistics))
    services = _services(settings, database, backend, now, metrics)
    background, scheduler, hub = services.background, services.scheduler, services.hub
    pace = open_pace()
    # They tell of the whole, which is made of what tells it to clients; so they are asked for late.
    observer = Observer(
        metrics_of=lambda window_s, for_admin: monitor.metrics(window_s, for_admin=for_admin),
        births=births,
        requests_of=lambda session_id: sampler.requests_of(session_id),  # noqa: PLW0108 - made below
    )
    figures = _figures(now, metrics, lambda: dispatcher.draining, lambda: len(listener.connections))
    registry = _registry(settings, services, pace, observer, figures, metrics, now)
    dispatcher = Dispatcher(
        registry,
        settings.limits,
        metrics,
        logs_requests=settings.log.level == "debug",
        slow_request_s=settings.log.slow_request_s,
    )
    listener = Listener(
        settings,
        sessions=services.sessions,
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
        circuit=services.circuit,
        model_watch=services.model_watch,
    )
    memory = _memory_guard(settings.limits, database, background, listener, metrics, resident_bytes)
    monitor = Monitor(
        settings.monitor,
        memory=memory,
        look=sampler.look,
        heaviest=sampler.heaviest,
        capacities=capacities(settings),
        model_methods=frozenset(spec.name for spec in registry.specs() if spec.bound == "model"),
        is_watched=hub.has_subscribers,
        publish=hub.publish,
        metrics=metrics,
        now=now,
    )
    return Server(
        settings=settings,
        metrics=metrics,
        sessions=services.sessions,
        registry=registry,
        personas=services.personas,
        background=background,
        retention=Retention(
            database, sessions=services.sessions, background=background, metrics=metrics, now=now
        ),
        scheduler=scheduler,
        monitor=monitor,
        observer=observer,
        model_watch=services.model_watch,
        pace=pace,
        listener=listener,
        web=_web(settings, database, listener, metrics),
    )


def _services(
    settings: Settings, database: Database, backend: Backend, now: Now, metrics: Metrics
) -> Services:
    llm = settings.llm
    sessions = Sessions()
    hub = Hub(encode=jsonrpc.encode_notification, now=now)

    def on_change(what: str, persona: Persona) -> None:
        if what == "deleted":
            chat.end_turns_with(persona.id)
            for session in sessions:
                session.forget_persona(persona.id)
        hub.publish("personas", f"persona.{what}", PersonaDetail.of(persona))

    personas = Personas(
        database,
        max_personas=settings.limits.max_personas,
        recovery_s=settings.personas.recovery_s,
        now=now,
        on_change=on_change,
    )
    metrics.personas.set_function(lambda: len(personas.all()))
    background = Background(
        queue_size=settings.background.queue_size, workers=settings.background.workers, metrics=metrics
    )
    circuit = CircuitBreaker(
        failures=llm.breaker_failures,
        open_s=llm.breaker_open_s,
        patience_s=llm.first_token_timeout_s,
        metrics=metrics,
        now=now,
    )
    backend = RetryingBackend(backend, circuit, max_retries=llm.max_retries, metrics=metrics)
    scheduler = Scheduler(
        slots=llm.max_concurrency,
        max_queue=llm.max_queue,
        max_queue_wait_s=llm.max_queue_wait_s,
        admit=circuit.check,
        metrics=metrics,
    )
    budget = ContextBudget(backend, configured_tokens=llm.context_tokens)
    summaries = Summaries(
        database=database,
        backend=backend,
        scheduler=scheduler,
        background=background,
        budget=budget,
        first_token_timeout_s=llm.first_token_timeout_s,
        now=now,
    )
    chat = Chat(
        database=database,
        backend=backend,
        personas=personas,
        scheduler=scheduler,
        budget=budget,
        summaries=summaries,
        metrics=metrics,
        first_token_timeout_s=llm.first_token_timeout_s,
        now=now,
    )

    def on_deleted(conversation_id: str, turn_ids: frozenset[int] | None) -> None:
        chat.end_turns(conversation_id, turn_ids)
        if turn_ids is None:
            for session in sessions:
                session.forget_conversation(conversation_id)

    return Services(
        sessions=sessions,
        hub=hub,
        personas=personas,
        conversations=Conversations(database, now=now, on_deleted=on_deleted),
        background=background,
        circuit=circuit,
        backend=backend,
        model_watch=ModelWatch(backend),
        scheduler=scheduler,
        chat=chat,
    )


def _figures(
    now: Now, metrics: Metrics, is_draining: Callable[[], bool], connections: Callable[[], int]
) -> Callable[[], SystemFigures]:
    started_at = now()
    return lambda: SystemFigures(
        status="draining" if is_draining() else "ok",
        uptime_s=now() - started_at,
        connections=connections(),
        memory_bytes=reading(metrics.memory_bytes),
    )


def _registry(
    settings: Settings,
    services: Services,
    pace: Pace,
    observer: Observer,
    figures: Callable[[], SystemFigures],
    metrics: Metrics,
    now: Now,
) -> Registry:
    server, personas, conversations = settings.server, services.personas, services.conversations

    # Made once: to make it takes milliseconds, and a batch may ask for it fifty times.
    @cache
    def document() -> dict[str, Any]:
        url = f"ws://{server.host}:{server.port}{PATH}"
        return openrpc_document(registry.specs(), version=__version__, url=url)

    server_info = ServerInfo(
        name="persona", version=__version__, engine=server.engine, llm=services.backend.provider
    )
    turns = TurnCalls(personas, conversations, services.chat, pace, now)
    registry = Registry(
        [
            PersonaMethods(personas, conversations),
            ChatMethods(turns),
            ConversationMethods(personas, conversations, turns),
            SessionMethods(personas, services.hub, _announced(settings.limits), server_info),
            SystemMethods(
                personas=personas,
                conversations=conversations,
                backend=services.backend,
                circuit=services.circuit,
                model_watch=services.model_watch,
                hub=services.hub,
                metrics=metrics,
                figures=figures,
                observed=observer,
                document=document,
                now=now,
            ),
        ]
    )
    return registry


def _memory_guard(
    limits: LimitSettings,
    database: Database,
    background: Background,
    listener: Listener,
    metrics: Metrics,
    resident_bytes: Callable[[], int],
) -> MemoryGuard:
    async def release_memory() -> None:
        # A connection that has gone is free at once. What libraries leave in circles is not, and the
        # collector comes seldom.
        gc.collect()
        await database.release_memory()

    return MemoryGuard(
        soft_limit_mb=limits.memory_soft_limit_mb,
        hard_limit_mb=limits.memory_limit_mb,
        resident_bytes=resident_bytes,
        shed=listener.shed,
        drop_caches=lambda: background.submit("release_memory", release_memory, Importance.NORMAL),
        metrics=metrics,
    )


def _web(settings: Settings, database: Database, listener: Listener, metrics: Metrics) -> WebServer:
    site = Site(
        server=settings.server,
        websocket_path=PATH,
        registry=metrics.registry,
        refusal=listener.refusal,
        asks_for_token=lambda: listener.asks_for_token,
        ask_database=lambda: database.write(lambda _: None),
    )
    return WebServer(make_app(site, metrics), metrics, write_deadline_s=settings.limits.write_deadline_s)


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
