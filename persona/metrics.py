"""Counters, gauges and histograms. No I/O; label sets are bounded: never an id, a user or free text.

One `Metrics` belongs to one server and keeps its own registry, so several servers in one process
(tests, the demo) do not add up.

What is counted for each message is counted in plain numbers and given to the registry when that is read:
prometheus-client's own counters take a lock and check themselves each time, for threads that there are
none of here, and made a tenth of what a ping costs.
"""

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Metric
from prometheus_client.metrics_core import CounterMetricFamily, HistogramMetricFamily
from prometheus_client.registry import Collector

# Two or three to a decade, from what a ping takes to what a chat may: a percentile is known to one of them.
SECONDS = (
    *(0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0),
)
"""Upper bounds of the buckets of every histogram, in seconds."""


class Distribution:
    """How many came to how much: times in seconds, or sizes. For the event loop's thread alone."""

    __slots__ = ("_bounds", "buckets", "total")

    def __init__(self, bounds: tuple[float, ...] = SECONDS) -> None:
        self._bounds = bounds
        # The last one is for all above.
        self.buckets = [0] * (len(bounds) + 1)
        self.total = 0.0

    def observe(self, value: float) -> None:
        """Count one that came to so much."""
        self.buckets[bisect_left(self._bounds, value)] += 1
        self.total += value

    @property
    def count(self) -> int:
        """How many there were."""
        return sum(self.buckets)

    @property
    def mean(self) -> float:
        """Of all there were; 0 when there were none."""
        count = self.count
        return self.total / count if count else 0.0

    def cumulated(self) -> Iterator[tuple[str, float]]:
        """Upper bound, as text, and how many came to no more."""
        count = 0
        for bound, bucket in zip((*map(str, map(float, self._bounds)), "+Inf"), self.buckets, strict=True):
            count += bucket
            yield bound, count

    def copy(self) -> "Distribution":
        """As it is now."""
        copied = Distribution(self._bounds)
        copied.buckets[:], copied.total = self.buckets, self.total
        return copied


class MethodCounts(Distribution):
    """One method's calls: how long they took, and what became of them."""

    __slots__ = ("failures",)

    def __init__(self) -> None:
        super().__init__()
        self.failures: dict[str, int] = defaultdict(int)
        """By outcome; all others came out "ok"."""

    def outcomes(self) -> dict[str, int]:
        """How many came to what; only what came up."""
        succeeded = self.count - sum(self.failures.values())
        return {"ok": succeeded, **self.failures} if succeeded else dict(self.failures)


class MessageFigures(Collector):
    """What is counted for each message, as the registry's reader wants it."""

    def __init__(self) -> None:
        self.received = 0
        """Frames; the reader adds to it."""
        self._methods: dict[str, MethodCounts] = defaultdict(MethodCounts)

    def count_answer(self, method: str, outcome: str, seconds: float) -> None:
        """Count a call of `method` that ended so and took so long."""
        counts = self._methods[method]
        if outcome != "ok":
            counts.failures[outcome] += 1
        # `observe`, without the price of a call.
        counts.buckets[bisect_left(SECONDS, seconds)] += 1
        counts.total += seconds

    def answered(self) -> tuple[int, float]:
        """How many calls were answered, and their time in all, in seconds."""
        return (
            sum(counts.count for counts in self._methods.values()),
            sum(counts.total for counts in self._methods.values()),
        )

    def outcomes(self) -> dict[tuple[str, str], int]:
        """Calls answered since the start, by method and outcome."""
        return {
            (method, outcome): count
            for method, counts in self._methods.items()
            for outcome, count in counts.outcomes().items()
        }

    def seconds(self) -> Mapping[str, Distribution]:
        """How long the calls of each method took, since the start. Not a copy."""
        return self._methods

    def collect(self) -> Iterator[Metric]:
        """See `prometheus_client.registry.Collector`."""
        yield CounterMetricFamily(
            "persona_messages_received", "JSON-RPC frames received.", value=self.received
        )
        answered = CounterMetricFamily("persona_requests", "Calls answered.", labels=("method", "outcome"))
        for labels, count in self.outcomes().items():
            answered.add_metric(labels, count)
        yield answered
        seconds = HistogramMetricFamily(
            "persona_request_seconds", "Time from call to answer.", labels=("method",)
        )
        for method, durations in self._methods.items():
            seconds.add_metric((method,), list(durations.cumulated()), durations.total)
        yield seconds


class Timings(Collector):
    """A histogram in plain numbers, which the monitor can read every second."""

    def __init__(self, name: str, text: str) -> None:
        self.durations = Distribution()
        self._name = name
        self._text = text

    def observe(self, seconds: float) -> None:
        """Count one that took so long."""
        self.durations.observe(seconds)

    def collect(self) -> Iterator[Metric]:
        """See `prometheus_client.registry.Collector`."""
        durations = self.durations
        yield HistogramMetricFamily(
            self._name, self._text, buckets=list(durations.cumulated()), sum_value=durations.total
        )


class Metrics:
    """The server's figures, named as the Prometheus ecosystem names them."""

    def __init__(self, messages: MessageFigures | None = None) -> None:
        self.registry = registry = CollectorRegistry()
        self.messages = messages or MessageFigures()
        registry.register(self.messages)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, namespace="persona", registry=registry)

        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(name, text, labels, namespace="persona", registry=registry)

        def timings(name: str, text: str) -> Timings:
            made = Timings(f"persona_{name}", text)
            registry.register(made)
            return made

        self.connections = gauge("connections", "Open WebSocket connections.")
        self.handshakes = gauge("handshakes", "Half-open connections.")
        self.refused = counter("handshakes_refused_total", "Handshakes refused.", "reason")
        self.refusals_cut_short = counter("refusals_cut_short_total", "Refusals not waited for to be read.")
        self.closed = counter("connections_closed_total", "Connections ended.", "cause")
        self.reads_paused = counter("reads_paused_total", "Reads put off for a client that takes too slowly.")
        self.dropped_responses = counter("responses_dropped_total", "Frames that looked like a response.")
        self.errors = counter("errors_total", "Errors answered.", "reason")
        self.handlers = gauge("handlers_running", "Handlers that hold a place in the handler pool.")
        self.events_dropped = counter("events_dropped_total", "Events a subscriber did not take.")
        self.turns = counter("turns_total", "Turns ended.", "finish_reason")
        self.tokens = counter("tokens_generated_total", "Tokens the model generated.")
        self.first_token_seconds = timings("time_to_first_token_seconds", "Slot given to first token.")
        self.llm_seconds = timings("llm_seconds", "Time a slot of the model was held.")
        self.llm_queue_seconds = timings("llm_queue_seconds", "Time waited for a slot of the model.")
        self.llm_running = gauge("llm_running", "Slots of the model in use.")
        self.llm_queued = gauge("llm_queued", "Turns waiting for a slot of the model.")
        self.llm_lined_up = gauge("llm_lined_up", "Turns waiting for an earlier one of their conversation.")
        self.llm_refused = counter("llm_refused_total", "Turns refused before the model was asked.", "reason")
        self.llm_retries = counter("llm_retries_total", "Times the model was asked again.")
        self.llm_circuit_state = gauge("llm_circuit_state", "0 closed, 1 half open, 2 open.")
        self.llm_circuit_changes = counter(
            "llm_circuit_changes_total", "Times the circuit came into a state.", "state"
        )
        self.llm_available = gauge("llm_available", "Whether the model answered when last asked.")
        self.personas = gauge("personas", "Personas there are.")
        self.background_queued = gauge("background_queued", "Jobs waiting for a worker.")
        self.background_dropped = counter("background_dropped_total", "Jobs dropped.", "job")
        self.background_failed = counter("background_failed_total", "Jobs that failed.", "job")
        self.empty_conversations_removed = counter(
            "empty_conversations_removed_total", "Conversations removed in which nothing was said."
        )
        self.memory_bytes = gauge("resident_memory_bytes", "Resident set size.")
        self.loop_lag_seconds = gauge(
            "loop_lag_seconds", "The latest that the monitor woke in the last second."
        )
        self.http_requests = counter("http_requests_total", "HTTP requests answered.", "path", "status")
        self.http_connections = gauge("http_connections", "Open connections to the HTTP port.")
        self.http_refused = counter("http_refused_total", "HTTP connections and requests refused.", "reason")
        self.shed = counter("connections_shed_total", "Connections shed to save memory.", "choice")
        self.caches_dropped = counter("caches_dropped_total", "Times caches were emptied to save memory.")
        self.monitor_seconds = timings("monitor_sample_seconds", "Time a sample of the monitor took.")
        self.held_bytes = gauge("held_bytes", "Bytes held for clients.", "kind")
        self.slow_requests = counter("slow_requests_total", "Calls over log.slow_request_s.", "method")
        self.alert = gauge("alert", "1 while an alert is raised.", "name")
        self.limit = gauge("limit", "The limits that figures are compared with.", "name")
        self.start_time_seconds = gauge("start_time_seconds", "When the server started, in Unix time.")

    def value(self, name: str, /, **labels: str) -> float:
        """One sample's value, 0 where it was never touched; for tests, since it asks all that is counted."""
        return self.registry.get_sample_value(f"persona_{name}", labels) or 0.0


def reading(metric: Counter | Gauge) -> float:
    """What a metric without labels came to."""
    (family,) = metric.collect()
    return family.samples[0].value


def counts(counter: Counter) -> dict[str, int]:
    """What a counter with one label came to, by that label's values."""
    return {
        next(iter(sample.labels.values())): int(sample.value)
        for family in counter.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    }
