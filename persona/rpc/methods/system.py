"""`system.*` and `rpc.discover`: the server itself."""

from collections.abc import Callable
from contextlib import suppress
from typing import Any, Protocol

import attrs

from persona.errors import PersonaError
from persona.llm.backend import Backend
from persona.llm.breaker import CircuitBreaker
from persona.llm.watch import ModelWatch
from persona.metrics import Metrics
from persona.model import isoformat
from persona.rpc import figures as f
from persona.rpc import params as p
from persona.rpc import results as r
from persona.rpc.dispatch import Call, Caller, method
from persona.service.conversations import Conversations
from persona.service.hub import Hub
from persona.service.personas import Personas

ACTIVE_WITHIN_S = 3600.0
"""A conversation counts as active for an hour after its last turn."""


@attrs.frozen(kw_only=True)
class SystemFigures:
    """What `system.status` shows of the process, sampled when asked."""

    status: str
    uptime_s: float
    connections: int
    memory_bytes: float


class Observed(Protocol):
    """What the monitor knows; both are cheap and never wait."""

    def metrics(self, window_s: float, *, for_admin: bool) -> f.SystemMetrics:
        """The figures of the last `window_s` seconds."""
        ...

    def tasks(self, siblings: int) -> f.SystemTasks:
        """The tree of tasks, with so many of a kind in each nursery."""
        ...


class SystemMethods:
    """Health, models, broadcast and discovery."""

    def __init__(
        self,
        *,
        personas: Personas,
        conversations: Conversations,
        backend: Backend,
        circuit: CircuitBreaker,
        model_watch: ModelWatch,
        hub: Hub,
        metrics: Metrics,
        figures: Callable[[], SystemFigures],
        observed: Observed,
        document: Callable[[], dict[str, Any]],
        now: Callable[[], float],
    ) -> None:
        self._personas = personas
        self._conversations = conversations
        self._backend = backend
        self._circuit = circuit
        self._model_watch = model_watch
        self._hub = hub
        self._metrics = metrics
        self._figures = figures
        self._observed = observed
        self._document = document
        self._now = now

    @method("system.ping", params=p.PingParams, result=r.Pong)
    def ping(self, _caller: Caller, params: p.PingParams) -> r.Pong:
        """Is anybody there?"""
        return r.Pong(pong=True, payload=params.payload, time=isoformat(self._now()))

    @method("system.status", params=p.NoParams, result=r.SystemStatus)
    async def status(self, call: Call, _params: p.NoParams) -> r.SystemStatus:
        """How the server is."""
        figures = self._figures()
        everybody = self._personas.all()
        current = self._personas.get(call.session.current_persona_id or "")
        count, total_s = self._metrics.messages.answered()
        return r.SystemStatus(
            system_status="operational" if figures.status == "ok" else figures.status,
            status=figures.status,
            llm_available=await self._model_answers(),
            # The state first: to ask for it may change it.
            llm_circuit=r.Circuit(state=self._circuit.state, since=isoformat(self._circuit.since)),
            total_personas=len(everybody),
            available_personas=sum(map(self._personas.is_available, everybody)),
            active_conversations=await self._conversations.count(since=self._now() - ACTIVE_WITHIN_S),
            current_persona=None if current is None else current.name,
            current_conversation=None if current is None else call.session.conversations.get(current.id),
            timestamp=isoformat(self._now()),
            uptime_seconds=round(figures.uptime_s, 3),
            active_connections=figures.connections,
            total_requests=count,
            avg_response_time=round(total_s / count, 6) if count else 0.0,
            memory_usage_mb=round(figures.memory_bytes / 1e6, 1),
        )

    @method("system.metrics", params=p.MetricsParams, result=f.SystemMetrics, while_draining=True)
    def metrics(self, caller: Caller, params: p.MetricsParams) -> f.SystemMetrics:
        """Figures of the last `window_s` seconds; the topic of the same name has them once a second."""
        is_admin = caller.session.identity.role == "admin"
        return self._observed.metrics(params.window_s, for_admin=is_admin)

    @method("system.tasks", params=p.TasksParams, result=f.SystemTasks, admin=True, while_draining=True)
    def tasks(self, _caller: Caller, params: p.TasksParams) -> f.SystemTasks:
        """The tasks that run now, as a tree: their age, and what each waits for."""
        return self._observed.tasks(params.siblings)

    @method("system.models", params=p.NoParams, result=r.Models, bound="model")
    async def models(self, call: Call, _params: p.NoParams) -> r.Models:
        """The models there are, and which one answers when a chat names none."""
        with call.request.interruptible():
            available = await self._model_watch.models()
        return r.Models(
            available_models=list(available),
            current_model=self._backend.model,
            provider=self._backend.provider,
        )

    @method("system.broadcast", params=p.BroadcastParams, result=r.Broadcast, admin=True)
    def broadcast(self, _caller: Caller, params: p.BroadcastParams) -> r.Broadcast:
        """Send an event to every subscriber of a topic."""
        delivery = self._hub.publish(params.topic, params.type, params.data)
        self._metrics.events_dropped.inc(delivery.dropped)
        return r.Broadcast(delivered=delivery.delivered, dropped=delivery.dropped)

    @method("rpc.discover", params=p.NoParams, result=r.OpenRPCDocument)
    async def discover(self, _call: Call, _params: p.NoParams) -> Any:
        """This description: an OpenRPC document of exactly the callable methods."""
        return self._document()

    async def _model_answers(self) -> bool:
        if self._circuit.is_refusing:
            return False
        if self._model_watch.answered is None:
            # Once in a server's life; whoever else asks meanwhile waits for the same answer.
            with suppress(PersonaError):
                await self._model_watch.models()
        return self._model_watch.answered is True
