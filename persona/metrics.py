"""Counters, gauges and histograms. No I/O; label sets are bounded: never an id, a user or free text.

One `Metrics` belongs to one server and keeps its own registry, so several servers in one process
(tests, the demo) do not add up.

What is counted for each message is counted in plain numbers and given to the registry when that is read:
prometheus-client's own counters take a lock and check themselves each time, for threads that there are
none of here, and made a tenth of what a ping costs.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Distribution:
    """How many came to how much: times in seconds, or sizes. For the event loop's thread alone."""

    __slots__ = ("_bounds", "_buckets", "total")

    def __init__(self, bounds: tuple[float, ...] = _SECONDS) -> None:
        self._bounds = bounds
        # The last one is for all above.
        self._buckets = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one that came to so much."""
        self._buckets[bisect_left(self._bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self._buckets)

    @property
    def mean(self) -> float:
        """Of all there were; 0 when there were none."""
        count = self.count
        return self.total / count if count else 0.0

    def cumulated(self) -> Iterator[tuple[str, float]]:
        """Upper bound, as text, and how many came to no more."""
        count = 0
        for bound, bucket in zip((*map(str, map(float, self._bounds)), "+Inf"), self._buckets, strict=True):
            count += bucket
            yield bound, count

    def copy(self) -> "Distribution":
        """As it is now."""
        copied = Distribution(self._bounds)
        copied._buckets[:], copied.total = self._buckets, self.total
        return copied


class MessageFigures(Collector):
    """What is counted for each message, as the registry's reader wants it."""

    def __init__(self) -> None:
        self.received = 0
        """Frames; the reader adds to it."""
        self._answered: dict[tuple[str, str], int] = defaultdict(int)
        self._seconds: dict[str, Distribution] = defaultdict(Distribution)

    def count_answer(self, method: str, outcome: str, seconds: float) -> None:
        """Count a call of `method` that ended so and took so long."""
        self._answered[method, outcome] += 1
        self._seconds[method].observe(seconds)

    def answered(self) -> tuple[int, float]:
        """How many calls were answered, and their time in all, in seconds."""
        return (
            sum(durations.count for durations in self._seconds.values()),
            sum(durations.total for durations in self._seconds.values()),
        )

    def collect(self) -> Iterator[Metric]:
        """See `prometheus_client.registry.Collector`."""
        yield CounterMetricFamily(
            "persona_messages_received", "JSON-RPC frames received.", value=self.received
        )
        answered = CounterMetricFamily("persona_requests", "Calls answered.", labels=("method", "outcome"))
        for labels, count in self._answered.items():
            answered.add_metric(labels, count)
        yield answered
        seconds = HistogramMetricFamily(
            "persona_request_seconds", "Time from call to answer.", labels=("method",)
        )
        for method, durations in self._seconds.items():
            seconds.add_metric((method,), list(durations.cumulated()), durations.total)
        yield seconds


class Metrics:
    """The server's figures, named as the Prometheus ecosystem names them."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.messages = MessageFigures()
        registry.register(self.messages)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, namespace="persona", registry=registry)

        def gauge(name: str, text: str) -> Gauge:
            return Gauge(name, text, namespace="persona", registry=registry)

        def histogram(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(name, text, labels, namespace="persona", registry=registry, buckets=_SECONDS)

        self.connections = gauge("connections", "Open WebSocket connections.")
        self.handshakes = gauge("handshakes", "Half-open connections.")
        self.refused = counter("handshakes_refused_total", "Handshakes refused.", "reason")
        self.closed = counter("connections_closed_total", "Connections ended.", "cause")
        self.reads_paused = counter("reads_paused_total", "Reads put off for a client that takes too slowly.")
        self.dropped_responses = counter("responses_dropped_total", "Frames that looked like a response.")
        self.errors = counter("errors_total", "Errors answered.", "reason")
        self.handlers = gauge("handlers_running", "Handlers that hold a place in the handler pool.")
        self.events_dropped = counter("events_dropped_total", "Events a subscriber did not take.")
        self.turns = counter("turns_total", "Turns ended.", "finish_reason")
        self.tokens = counter("tokens_generated_total", "Tokens the model generated.")
        self.first_token_seconds = histogram("time_to_first_token_seconds", "Slot given to first token.")
        self.llm_queue_seconds = histogram("llm_queue_seconds", "Time waited for a slot of the model.")
        self.llm_running = gauge("llm_running", "Slots of the model in use.")
        self.llm_queued = gauge("llm_queued", "Turns waiting for a slot of the model.")
        self.llm_lined_up = gauge("llm_lined_up", "Turns waiting for an earlier one of their conversation.")
        self.llm_refused = counter("llm_refused_total", "Turns refused before the model was asked.", "reason")
        self.llm_retries = counter("llm_retries_total", "Times the model was asked again.")
        self.llm_circuit_state = gauge("llm_circuit_state", "0 closed, 1 half open, 2 open.")
        self.llm_circuit_changes = counter(
            "llm_circuit_changes_total", "Times the circuit came into a state.", "state"
        )
        self.background_dropped = counter("background_dropped_total", "Jobs dropped.", "job")
        self.background_failed = counter("background_failed_total", "Jobs that failed.", "job")
        self.empty_conversations_removed = counter(
            "empty_conversations_removed_total", "Conversations removed in which nothing was said."
        )
        self.memory_bytes = gauge("resident_memory_bytes", "Resident set size.")
        self.loop_lag_seconds = gauge("loop_lag_seconds", "How late the monitor woke last.")
        self.shed = counter("connections_shed_total", "Connections shed to save memory.", "choice")

    def value(self, name: str, **labels: str) -> float:
        """One sample's value, 0 where it was never touched; for `system.status` and tests."""
        return self.registry.get_sample_value(f"persona_{name}", labels) or 0.0
