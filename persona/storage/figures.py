"""The database's figures, as the metrics registry's reader wants them.

Nothing is measured here: a `CallQueue` and its lanes keep plain counts, one entry a batch, and this asks
for them when somebody reads the registry.
"""

from collections.abc import Callable, Iterator

from prometheus_client import Metric
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

from persona.metrics import Distribution
from persona.storage.pool import DatabaseStatistics


class DatabaseFigures(Collector):
    """`persona_database_*`. Register it with the `Metrics` of the server that has the database."""

    def __init__(self, statistics: Callable[[], DatabaseStatistics]) -> None:
        self._statistics = statistics

    def collect(self) -> Iterator[Metric]:
        """See `prometheus_client.registry.Collector`."""
        figures = self._statistics()
        yield _by_side(
            GaugeMetricFamily("persona_database_queue_length", "Calls that wait.", labels=("side",)),
            figures.write_queue_length,
            figures.read_queue_length,
        )
        yield _by_side(
            CounterMetricFamily(
                "persona_database_refused", "Calls that found no place in the queue.", labels=("side",)
            ),
            figures.writes_refused,
            figures.reads_refused,
        )
        yield _histogram(
            "persona_database_batch_size",
            "Calls that shared a transaction.",
            write=figures.write_batches,
            read=figures.read_batches,
        )
        yield _histogram(
            "persona_database_wait_seconds",
            "Of each batch, how long its first call had waited to be taken.",
            write=figures.write_waits,
            read=figures.read_waits,
        )
        commits = HistogramMetricFamily("persona_database_commit_seconds", "Time of a commit.")
        commits.add_metric((), list(figures.commits.cumulated()), figures.commits.total)
        yield commits
        yield GaugeMetricFamily(
            "persona_database_readers_busy", "Readers that run a batch.", value=figures.readers_busy
        )
        yield CounterMetricFamily(
            "persona_database_lock_waits",
            "Transactions that another program's lock held up.",
            value=figures.lock_waits,
        )
        yield CounterMetricFamily(
            "persona_database_lock_wait_seconds",
            "Time that another program's lock held transactions up.",
            value=figures.lock_wait_s,
        )
        yield CounterMetricFamily(
            "persona_database_connections_replaced",
            "Connections that broke.",
            value=figures.replaced_connections,
        )
        failures = CounterMetricFamily("persona_database_failures", "Failures of SQLite.", labels=("kind",))
        for kind, count in figures.failures.items():
            failures.add_metric((kind,), count)
        yield failures
        yield GaugeMetricFamily(
            "persona_database_wal_bytes", "Size of the write-ahead log's file.", value=figures.wal_bytes
        )
        yield CounterMetricFamily(
            "persona_database_wal_checkpoints",
            "How often the write-ahead log was taken in.",
            value=figures.wal_checkpoints,
        )
        yield CounterMetricFamily(
            "persona_database_wal_checkpoints_put_off",
            "How often a part of the log stayed, since somebody still read from it.",
            value=figures.wal_checkpoints_put_off,
        )
        yield CounterMetricFamily(
            "persona_database_upkeep_failures",
            "Checkpoints and looks at the planner's statistics that failed.",
            value=figures.upkeep_failures,
        )


def _by_side(
    family: GaugeMetricFamily | CounterMetricFamily, write: float, read: float
) -> GaugeMetricFamily | CounterMetricFamily:
    family.add_metric(("write",), write)
    family.add_metric(("read",), read)
    return family


def _histogram(name: str, text: str, **by_side: Distribution) -> HistogramMetricFamily:
    family = HistogramMetricFamily(name, text, labels=("side",))
    for side, distribution in by_side.items():
        family.add_metric((side,), list(distribution.cumulated()), distribution.total)
    return family
