"""What the monitor and the tree of tasks look at, read off the services: these know nothing of being
watched, and the monitor knows none of them."""

from collections.abc import Sequence

import attrs

from persona.config import Settings
from persona.llm.breaker import CircuitBreaker
from persona.llm.watch import ModelWatch
from persona.monitor.memory import MEGABYTE
from persona.monitor.readings import Capacities, Readings
from persona.monitor.tree import RequestNode
from persona.rpc import figures as f
from persona.rpc.dispatch import Dispatcher, Registry
from persona.service.background import Background
from persona.service.scheduler import Scheduler
from persona.storage.pool import Database
from persona.transport.listener import Listener


@attrs.frozen(kw_only=True)
class Sampler:
    """Looks; changes nothing, and never waits."""

    listener: Listener
    dispatcher: Dispatcher
    registry: Registry
    database: Database
    background: Background
    scheduler: Scheduler
    circuit: CircuitBreaker
    model_watch: ModelWatch

    def look(self) -> Readings:
        """What there is at this moment."""
        database = self.database.statistics()
        outbox_bytes = requests_bytes = 0
        for connection in self.listener.connections.values():
            outbox_bytes += connection.pending_bytes
            requests_bytes += connection.requests_bytes
        return Readings(
            draining=self.dispatcher.draining,
            connections=len(self.listener.connections),
            half_open=self.listener.half_open,
            outbox_bytes=outbox_bytes,
            requests_bytes=requests_bytes,
            handlers_running=self.dispatcher.running,
            write_queue=database.write_queue_length,
            read_queue=database.read_queue_length,
            readers_busy=database.readers_busy,
            mean_batch=database.mean_batch_size,
            background_queued=self.background.queued,
            llm_running=self.scheduler.running,
            llm_queued=self.scheduler.queued,
            llm_available=self._llm_available(),
        )

    def _llm_available(self) -> bool | None:
        """A server may list models that it cannot load. So once chats have failed in a row, only a chat that
        is answered shows that it is back, and a half-open circuit is no sign of that."""
        return self.model_watch.available if self.circuit.state == "closed" else False

    def heaviest(self, count: int) -> list[f.Holding]:
        """The connections that most is held for, heaviest first."""
        return [
            f.Holding(
                session_id=connection.session.id,
                user=connection.session.identity.user,
                bytes=connection.held_bytes,
                outbox_bytes=connection.pending_bytes,
                requests_bytes=connection.requests_bytes,
            )
            for connection in self.listener.heaviest(count)
        ]

    def requests_of(self, session_id: str) -> Sequence[RequestNode]:
        """The requests that run in this session."""
        connection = self.listener.connections.get(session_id)
        requests = () if connection is None else connection.session.requests
        # Only names of ours: what a client asked for may be any text.
        return [
            RequestNode.of(
                request, method=request.method if self.registry.find(request.method) else "unknown"
            )
            for request in requests
        ]


def capacities(settings: Settings) -> Capacities:
    """How much there may be, as it is set."""
    limits = settings.limits
    return Capacities(
        max_connections=limits.max_connections,
        handler_pool_size=limits.handler_pool_size,
        max_personas=limits.max_personas,
        memory_soft_limit_bytes=limits.memory_soft_limit_mb * MEGABYTE,
        memory_limit_bytes=limits.memory_limit_mb * MEGABYTE,
        database_readers=settings.database.readers,
        background_queue_size=settings.background.queue_size,
        llm_max_concurrency=settings.llm.max_concurrency,
        llm_max_queue=settings.llm.max_queue,
    )
