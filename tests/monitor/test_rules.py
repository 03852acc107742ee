"""Which figures raise an alert: each rule is reached, and stays quiet just under its mark."""

from typing import Any

import attrs
import pytest

from persona.config import MonitorSettings
from persona.metrics import Metrics
from persona.monitor.readings import Capacities, Readings
from persona.monitor.rules import (
    MIN_CALLS,
    SERVER_FAULTS,
    SLOW_CLIENTS,
    alert_rules,
    alert_values,
    error_ratio,
    without_methods,
)
from persona.monitor.window import Snapshot, Span, Window
from persona.rpc.results import error_classes
from tests.monitor.house import CAPACITIES, READINGS


def span(metrics: Metrics) -> Span:
    """All that `metrics` ever counted."""
    window = Window(Snapshot.of(Metrics(), at=0.0))
    window.add(Snapshot.of(metrics, at=60.0))
    return window.over(60)


def answered(*outcomes: tuple[str, str, int], seconds: float = 0.001) -> Metrics:
    """Calls as the dispatcher counts them: each that fails is also an error."""
    metrics = Metrics()
    for method, outcome, count in outcomes:
        for _ in range(count):
            metrics.messages.count_answer(method, outcome, seconds)
        if outcome != "ok":
            metrics.errors.labels(outcome).inc(count)
    return metrics


def over(
    metrics: Metrics | None = None,
    readings: Readings = READINGS,
    capacities: Capacities = CAPACITIES,
    **figures: Any,
) -> set[str]:
    """The rules whose figure is over its threshold."""
    given = {"lag_s": 0.0, "resident_bytes": 50_000_000, **figures}
    values = alert_values(span(metrics or Metrics()), readings, capacities, **given)
    rules = alert_rules(MonitorSettings(), capacities)
    assert set(values) == {rule.name for rule in rules}
    return {
        rule.name for rule in rules if (value := values[rule.name]) is not None and value > rule.threshold
    }


def test_a_quiet_house_has_no_alert() -> None:
    assert over() == set()


def test_one_call_in_twenty_that_fails_is_the_mark() -> None:
    assert over(answered(("m", "ok", 95), ("m", "memory_error", 5))) == set()
    assert over(answered(("m", "ok", 94), ("m", "memory_error", 6))) == {"error_ratio"}


def test_what_clients_do_wrong_is_no_alarm() -> None:
    assert over(answered(("m", "ok", 1), ("m", "invalid_params", 90), ("m", "rate_limited", 9))) == set()


def test_a_few_calls_say_nothing() -> None:
    few = answered(("m", "internal_error", MIN_CALLS - 1), seconds=9)
    assert over(few) == set()
    few.messages.count_answer("m", "ok", 9.0)
    assert over(few) == {"error_ratio", "latency_p95"}


def test_what_is_refused_before_it_runs_is_a_call_that_failed() -> None:
    metrics = answered(("m", "ok", 60))
    metrics.errors.labels("overloaded").inc(40)
    assert error_ratio(span(metrics)) == (0.4, 100)
    assert error_ratio(span(Metrics())) == (0.0, 0)


def test_faults_of_the_server_are_errors_that_there_are() -> None:
    assert {cls.reason for cls in error_classes()} >= SERVER_FAULTS


def test_slow_calls_raise_an_alert_and_chats_do_not() -> None:
    metrics = answered(("m", "ok", 94))
    for _ in range(6):
        metrics.messages.count_answer("chat", "ok", 30.0)
    assert over(metrics) == {"latency_p95"}
    quiet = without_methods(span(metrics), frozenset({"chat"}))
    values = alert_values(quiet, READINGS, CAPACITIES, lag_s=0.0, resident_bytes=None)
    assert values["latency_p95"] == pytest.approx(0.001, rel=0.05)


@pytest.mark.parametrize(
    ("figures", "alert"),
    [
        ({"lag_s": 0.25}, None),
        ({"lag_s": 0.26}, "loop_lag"),
        ({"resident_bytes": CAPACITIES.memory_soft_limit_bytes}, None),
        ({"resident_bytes": CAPACITIES.memory_soft_limit_bytes + 1}, "memory"),
        ({"resident_bytes": None}, None),
        ({"readings": attrs.evolve(READINGS, handlers_running=90)}, None),
        ({"readings": attrs.evolve(READINGS, handlers_running=91)}, "handler_pool"),
        ({"readings": attrs.evolve(READINGS, llm_available=False)}, "llm_down"),
        ({"readings": attrs.evolve(READINGS, llm_available=True)}, None),
    ],
)
def test_marks(figures: dict[str, Any], alert: str | None) -> None:
    assert over(**figures) == ({alert} if alert else set())


@pytest.mark.parametrize("cause", ["slow_consumer", "write_deadline"])
def test_slow_clients_are_counted_whichever_way_they_were_cut(cause: str) -> None:
    metrics = Metrics()
    metrics.closed.labels(cause).inc(SLOW_CLIENTS)
    assert over(metrics) == set()
    metrics.closed.labels("client").inc(100)
    assert over(metrics) == set()
    metrics.closed.labels(cause).inc()
    assert over(metrics) == {"slow_clients"}


def test_a_mark_that_is_off_is_off() -> None:
    settings = MonitorSettings(alert_error_ratio=0, alert_p95_s=0, alert_loop_lag_s=0)
    off = {
        rule.name
        for rule in alert_rules(settings, attrs.evolve(CAPACITIES, memory_soft_limit_bytes=0))
        if not rule.threshold
    }
    assert off == {"error_ratio", "latency_p95", "loop_lag", "memory"}
