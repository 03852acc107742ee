"""A house that is what the test says, and a monitor that looks at it."""

from typing import Any

import attrs

from persona.config import MonitorSettings
from persona.metrics import Metrics
from persona.monitor.memory import MemoryGuard
from persona.monitor.readings import Capacities, Readings
from persona.monitor.task import Monitor
from persona.rpc import figures as f

READINGS = Readings(
    draining=False,
    connections=3,
    half_open=1,
    outbox_bytes=1000,
    requests_bytes=200,
    handlers_running=2,
    write_queue=5,
    read_queue=6,
    readers_busy=1,
    mean_batch=1.5,
    background_queued=7,
    llm_running=4,
    llm_queued=8,
    llm_available=None,
)
CAPACITIES = Capacities(
    max_connections=500,
    handler_pool_size=100,
    max_personas=1000,
    memory_soft_limit_bytes=100_000_000,
    memory_limit_bytes=200_000_000,
    database_readers=2,
    background_queue_size=2000,
    llm_max_concurrency=4,
    llm_max_queue=512,
)


@attrs.define
class House:
    """`events` is what was published, by topic and type."""

    readings: Readings = READINGS
    resident_mb: float = 50
    is_watched: bool = False
    looks: int = 0
    settings: MonitorSettings = attrs.field(factory=MonitorSettings)
    metrics: Metrics = attrs.field(factory=Metrics)
    events: list[tuple[str, str, Any]] = attrs.field(factory=list)
    now: float = 1_767_225_600.0
    monitor: Monitor = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.monitor = Monitor(
            self.settings,
            memory=MemoryGuard(
                soft_limit_mb=100,
                hard_limit_mb=200,
                resident_bytes=lambda: int(self.resident_mb * 1_000_000),
                shed=lambda count: count,
                drop_caches=lambda: None,
                metrics=self.metrics,
            ),
            look=self._look,
            heaviest=self._heaviest,
            capacities=CAPACITIES,
            model_methods=frozenset({"persona.chat"}),
            is_watched=lambda topic: self.is_watched and topic == "system.metrics",
            publish=lambda topic, kind, data: self.events.append((topic, kind, data)),
            metrics=self.metrics,
            now=lambda: self.now,
        )

    def _look(self) -> Readings:
        self.looks += 1
        return self.readings

    def _heaviest(self, count: int) -> list[f.Holding]:
        return [f.Holding(session_id="s1", user="ann", bytes=3, outbox_bytes=1, requests_bytes=2)][:count]

    def alerts(self) -> list[tuple[str, str]]:
        """What was said of alerts, and how it was said: as events."""
        return [(data["name"], data["state"]) for topic, kind, data in self.events if kind == "system.alert"]
