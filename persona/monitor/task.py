"""The monitor task: once a second it looks, keeps what it saw, raises alerts, and tells who subscribed.

It knows no services: `app` hands it functions to look with and to act with.
"""

import time
from collections.abc import Callable
from typing import Any

import structlog
import trio

from persona.config import MonitorSettings
from persona.metrics import Metrics, counts
from persona.model import isoformat
from persona.monitor import report
from persona.monitor.alerts import Alerts, Change
from persona.monitor.memory import MemoryGuard
from persona.monitor.readings import Capacities, Readings
from persona.monitor.rules import ALERT_WINDOW_S, alert_rules, alert_values, error_ratio, without_methods
from persona.monitor.window import Snapshot, Window
from persona.rpc import figures as f

log = structlog.get_logger()

LOOKS_PER_SAMPLE = 4
"""Wakes between two samples, to see how late the loop is. One a second would miss most of what holds it up
for less than that."""
LOOK_INTERVAL_S = 0.25
DEFAULT_WINDOW_S = 60.0
TOPIC = "system.metrics"
HEAVIEST = 10
"""Connections that an admin is shown."""


class Monitor:
    """`run` is the service; `metrics` is what `system.metrics` answers."""

    def __init__(
        self,
        settings: MonitorSettings,
        *,
        memory: MemoryGuard,
        look: Callable[[], Readings],
        heaviest: Callable[[int], list[f.Holding]],
        capacities: Capacities,
        model_methods: frozenset[str],
        is_watched: Callable[[str], bool],
        publish: Callable[[str, str, Any], object],
        metrics: Metrics,
        now: Callable[[], float],
    ) -> None:
        self._memory = memory
        self._look = look
        self._heaviest = heaviest
        self._capacities = capacities
        self._model_methods = model_methods
        self._is_watched = is_watched
        self._publish = publish
        self._metrics = metrics
        self._now = now
        self._started_at = now()
        self._alerts = Alerts(alert_rules(settings, capacities))
        self._lag_s = 0.0
        self._window: Window | None = None
        metrics.start_time_seconds.set(self._started_at)
        for name in self._alerts.names:
            metrics.alert.labels(name).set(0)
        for field, limit in capacities.by_name().items():
            metrics.limit.labels(field).set(limit)

    def has_memory(self) -> bool:
        """Whether new connections may be let in."""
        return self._memory.has_memory()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look until cancelled."""
        self.sample()
        task_status.started()
        while True:
            for _ in range(LOOKS_PER_SAMPLE):
                due = trio.current_time() + LOOK_INTERVAL_S
                await trio.sleep_until(due)
                self._lag_s = max(self._lag_s, trio.current_time() - due)
            self.sample()

    def sample(self) -> None:
        """Look once, and act on it. Takes a few milliseconds at most, with thousands of connections."""
        started = time.perf_counter()
        lag_s, self._lag_s = self._lag_s, 0.0
        resident_bytes = self._memory.look()
        readings = self._look()
        snapshot = self._snapshot(resident_bytes, lag_s)
        if self._window is None:
            self._window = Window(snapshot)
        else:
            self._window.add(snapshot)
        self._set_gauges(readings, lag_s)
        minute = without_methods(self._window.over(ALERT_WINDOW_S), self._model_methods)
        values = alert_values(minute, readings, self._capacities, lag_s=lag_s, resident_bytes=resident_bytes)
        for change in self._alerts.look(values, self._now()):
            self._announce(change)
        if self._is_watched(TOPIC):
            self._publish(TOPIC, TOPIC, self._report(self._window, snapshot, readings, DEFAULT_WINDOW_S, []))
        self._metrics.monitor_seconds.observe(time.perf_counter() - started)

    def metrics(self, window_s: float = DEFAULT_WINDOW_S, *, for_admin: bool = False) -> f.SystemMetrics:
        """The figures of the last `window_s` seconds, up to now."""
        newest = None if self._window is None else self._window.newest
        snapshot = self._snapshot(
            None if newest is None else newest.resident_bytes, 0.0 if newest is None else newest.lag_s
        )
        window = self._window or Window(snapshot)
        heaviest = self._heaviest(HEAVIEST) if for_admin else []
        return self._report(window, snapshot, self._look(), window_s, heaviest)

    def _snapshot(self, resident_bytes: int | None, lag_s: float) -> Snapshot:
        return Snapshot.of(self._metrics, at=trio.current_time(), resident_bytes=resident_bytes, lag_s=lag_s)

    def _set_gauges(self, readings: Readings, lag_s: float) -> None:
        metrics = self._metrics
        metrics.loop_lag_seconds.set(lag_s)
        metrics.held_bytes.labels("outbox").set(readings.outbox_bytes)
        metrics.held_bytes.labels("requests").set(readings.requests_bytes)
        metrics.background_queued.set(readings.background_queued)
        available = readings.llm_available
        metrics.llm_available.set(float("nan") if available is None else available)

    def _announce(self, change: Change) -> None:
        rule = change.rule
        self._metrics.alert.labels(rule.name).set(change.is_raised)
        said = log.warning if change.is_raised else log.info
        said(
            "alert_raised" if change.is_raised else "alert_cleared",
            alert=rule.name,
            value=change.value,
            threshold=rule.threshold,
            text=rule.text,
        )
        self._publish(
            "system",
            "system.alert",
            {
                "name": rule.name,
                "state": "raised" if change.is_raised else "cleared",
                "value": change.value,
                "threshold": rule.threshold,
                "text": rule.text,
            },
        )

    def _report(
        self,
        window: Window,
        snapshot: Snapshot,
        readings: Readings,
        window_s: float,
        heaviest: list[f.Holding],
    ) -> f.SystemMetrics:
        span = window.over(window_s, snapshot)
        limits, metrics = self._capacities, self._metrics
        total, _ = metrics.messages.answered()
        return f.SystemMetrics(
            time=isoformat(self._now()),
            window_s=window_s,
            covered_s=round(span.seconds_long, 3),
            uptime_seconds=round(self._now() - self._started_at, 3),
            status="draining" if readings.draining else "ok",
            connections=f.ConnectionFigures(
                open=readings.connections,
                half_open=readings.half_open,
                max=limits.max_connections,
                refused=counts(metrics.refused),
                closed=dict(snapshot.closed),
            ),
            requests=report.requests(span, total=total, error_ratio=error_ratio(span)[0]),
            errors=span.errors,
            memory=f.MemoryFigures(
                resident_bytes=snapshot.resident_bytes,
                growth_bytes_per_s=span.growth_bytes_per_s,
                soft_limit_bytes=limits.memory_soft_limit_bytes,
                hard_limit_bytes=limits.memory_limit_bytes,
                held_bytes=readings.outbox_bytes + readings.requests_bytes,
                heaviest=heaviest,
            ),
            loop=f.LoopFigures(lag_s=round(snapshot.lag_s, 6), max_lag_s=round(span.max_lag_s, 6)),
            handlers=f.HandlerFigures(running=readings.handlers_running, limit=limits.handler_pool_size),
            database=f.DatabaseFigures(
                write_queue=readings.write_queue,
                read_queue=readings.read_queue,
                readers_busy=readings.readers_busy,
                readers=limits.database_readers,
                mean_batch=round(readings.mean_batch, 3),
            ),
            background=f.BackgroundFigures(
                queued=readings.background_queued,
                limit=limits.background_queue_size,
                dropped=sum(counts(metrics.background_dropped).values()),
            ),
            model=f.ModelFigures(
                running=readings.llm_running,
                slots=limits.llm_max_concurrency,
                queued=readings.llm_queued,
                limit=limits.llm_max_queue,
                tokens_per_second=round(span.rate(span.tokens), 3),
                available=readings.llm_available,
                first_token_s=report.percentiles(span.first_token),
                seconds=report.distribution(span.llm),
            ),
            monitor=report.monitor(metrics.monitor_seconds.durations),
            alerts=report.alert_views(self._alerts.raised),
        )
