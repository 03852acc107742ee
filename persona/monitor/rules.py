"""Which figures raise an alert, and what they are read from."""

import attrs

from persona.config import MonitorSettings
from persona.monitor.alerts import AlertRule
from persona.monitor.readings import Capacities, Readings
from persona.monitor.window import Span

ALERT_WINDOW_S = 60
"""What ratios, percentiles and counts are taken over: long enough for a few slow calls to be no trend, and
short enough to be told within a minute."""
MIN_CALLS = 20
"""With fewer in the window, one failed or slow call would be an alert."""
FULL_POOL = 0.9
"""The guide's mark."""
SLOW_CLIENTS = 10
"""Cut in a minute. One phone that went into a tunnel is nothing; ten at once is a network, or a topic that is
too much for everybody."""
BRIEFLY = 3
"""Samples running that a moment's peak may last before it is an alert."""

SERVER_FAULTS = frozenset(
    {"internal_error", "memory_error", "llm_unavailable", "overloaded", "deadline_exceeded"}
)
"""Errors that are the server's doing. Others are the client's: one bad client must raise no alarm."""
SLOW_CAUSES = ("slow_consumer", "write_deadline")


def alert_rules(settings: MonitorSettings, capacities: Capacities) -> tuple[AlertRule, ...]:
    """All rules; those whose threshold is 0 are off."""
    return (
        AlertRule(
            name="error_ratio",
            threshold=settings.alert_error_ratio,
            text="More of the last minute's calls than the threshold failed by no fault of the client's.",
        ),
        AlertRule(
            name="latency_p95",
            threshold=settings.alert_p95_s,
            text="One in twenty of the last minute's calls, chats aside, took longer than the threshold.",
        ),
        AlertRule(
            name="memory",
            threshold=float(capacities.memory_soft_limit_bytes),
            # The mark from which new clients are let in again is nearer than other alerts' calm.
            calm=0.95,
            text="Memory is above the soft mark: new connections are refused.",
        ),
        AlertRule(
            name="handler_pool",
            threshold=FULL_POOL,
            raise_after=BRIEFLY,
            text="The handler pool is nearly full: further requests will be refused as overloaded.",
        ),
        AlertRule(
            name="loop_lag",
            threshold=settings.alert_loop_lag_s,
            text="The event loop came too late to what was due: something held it up, and so everybody.",
        ),
        AlertRule(
            name="slow_clients",
            threshold=float(SLOW_CLIENTS),
            text="Clients were cut in the last minute because they did not take what they were sent.",
        ),
        AlertRule(
            name="llm_down",
            threshold=0.5,
            clear_after=1,
            text="The model does not answer: chats fail until it is back.",
        ),
    )


def alert_values(
    minute: Span, readings: Readings, capacities: Capacities, *, lag_s: float, resident_bytes: int | None
) -> dict[str, float | None]:
    """Each rule's figure, by its name. `minute` leaves out calls that wait for the model."""
    calls = minute.all_calls()
    ratio, count = error_ratio(minute)
    return {
        "error_ratio": ratio if count >= MIN_CALLS else None,
        "latency_p95": calls.quantile(0.95) if calls.count >= MIN_CALLS else None,
        "memory": None if resident_bytes is None else float(resident_bytes),
        "handler_pool": readings.handlers_running / capacities.handler_pool_size,
        "loop_lag": lag_s,
        "slow_clients": float(sum(minute.closed.get(cause, 0) for cause in SLOW_CAUSES)),
        "llm_down": None if readings.llm_available is None else float(not readings.llm_available),
    }


def error_ratio(span: Span) -> tuple[float, int]:
    """The share of calls that failed by no fault of the client's, and how many calls there were. What was
    refused before it ran, such as for want of room, is a call that failed."""
    faults = sum(count for reason, count in span.errors.items() if reason in SERVER_FAULTS)
    well = sum(count for (_, outcome), count in span.outcomes.items() if outcome == "ok")
    calls = well + sum(span.errors.values())
    return (faults / calls if calls else 0.0), calls


def without_methods(span: Span, methods: frozenset[str]) -> Span:
    """`span`, with the durations of these methods left out."""
    kept = {method: counted for method, counted in span.seconds.items() if method not in methods}
    return attrs.evolve(span, seconds=kept)
