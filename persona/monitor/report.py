"""From counts to what `system.metrics` shows."""

from collections.abc import Sequence
from itertools import zip_longest

from persona.metrics import SECONDS, Distribution
from persona.model import isoformat
from persona.monitor.alerts import Alert
from persona.monitor.window import Counted, Span
from persona.rpc import figures as f

DIGITS = 6
"""Microseconds are as much as any figure here can mean."""


def requests(span: Span, *, total: int, error_ratio: float) -> f.RequestFigures:
    """The section `requests`."""
    calls = span.all_calls()
    return f.RequestFigures(
        total=total,
        per_second=_round(span.rate(calls.count)),
        error_ratio=_round(error_ratio),
        latency_s=f.LatencyFigures(
            avg=_known(calls.mean),
            p50=_known(calls.quantile(0.5)),
            p95=_known(calls.quantile(0.95)),
            p99=_known(calls.quantile(0.99)),
        ),
        by_method={method: _method(span, counted) for method, counted in sorted(span.seconds.items())},
    )


def _method(span: Span, counted: Counted) -> f.MethodFigures:
    return f.MethodFigures(
        count=counted.count,
        per_second=_round(span.rate(counted.count)),
        p50=_known(counted.quantile(0.5)),
        p95=_known(counted.quantile(0.95)),
        p99=_known(counted.quantile(0.99)),
    )


def percentiles(counted: Counted) -> f.PercentileFigures:
    """The percentiles alone."""
    return f.PercentileFigures(
        p50=_known(counted.quantile(0.5)),
        p95=_known(counted.quantile(0.95)),
        p99=_known(counted.quantile(0.99)),
    )


def distribution(counted: Counted) -> f.DistributionFigures:
    """The percentiles, and every bucket."""
    bounds: Sequence[float] = SECONDS
    return f.DistributionFigures(
        p50=_known(counted.quantile(0.5)),
        p95=_known(counted.quantile(0.95)),
        p99=_known(counted.quantile(0.99)),
        buckets=[
            f.Bucket(le=bound, count=count)
            for bound, count in zip_longest(map(float, bounds), counted.buckets)
        ],
    )


def monitor(durations: Distribution) -> f.MonitorFigures:
    """The section `monitor`."""
    counted = Counted.of(durations)
    return f.MonitorFigures(samples=counted.count, sample_s=percentiles(counted))


def alert_views(raised: Sequence[Alert]) -> list[f.AlertView]:
    """The section `alerts`."""
    return [
        f.AlertView(
            name=alert.rule.name,
            since=isoformat(alert.since),
            value=_round(alert.value),
            threshold=alert.rule.threshold,
            text=alert.rule.text,
        )
        for alert in raised
    ]


def _round(value: float) -> float:
    return round(value, DIGITS)


def _known(value: float | None) -> float | None:
    return None if value is None else round(value, DIGITS)
