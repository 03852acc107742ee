"""Counters, gauges and histograms. No I/O; label sets are bounded: never an id, a user or free text.

One `Metrics` belongs to one server and keeps its own registry, so several servers in one process
(tests, the demo) do not add up.
"""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """The server's figures, named as the Prometheus ecosystem names them."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()

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
        self.received = counter("messages_received_total", "JSON-RPC frames received.")
        self.reads_paused = counter("reads_paused_total", "Reads put off for a client that takes too slowly.")
        self.dropped_responses = counter("responses_dropped_total", "Frames that looked like a response.")
        self.requests = counter("requests_total", "Calls answered.", "method", "outcome")
        self.request_seconds = histogram("request_seconds", "Time from call to answer.", "method")
        self.errors = counter("errors_total", "Errors answered.", "reason")
        self.handlers = gauge("handlers_running", "Handlers that hold a place in the handler pool.")
        self.events_dropped = counter("events_dropped_total", "Events a subscriber did not take.")
        self.turns = counter("turns_total", "Turns ended.", "finish_reason")
        self.tokens = counter("tokens_generated_total", "Tokens the model generated.")
        self.first_token_seconds = histogram("time_to_first_token_seconds", "Slot given to first token.")
        self.llm_queue_seconds = histogram("llm_queue_seconds", "Time waited for a slot of the model.")
        self.llm_running = gauge("llm_running", "Slots of the model in use.")
        self.llm_queued = gauge("llm_queued", "Turns waiting for a slot of the model.")
        self.background_dropped = counter("background_dropped_total", "Jobs dropped.", "job")
        self.background_failed = counter("background_failed_total", "Jobs that failed.", "job")
        self.memory_bytes = gauge("resident_memory_bytes", "Resident set size.")
        self.loop_lag_seconds = gauge("loop_lag_seconds", "How late the monitor woke last.")
        self.shed = counter("connections_shed_total", "Connections shed to save memory.", "choice")

    def of_requests(self, method: str, outcome: str) -> tuple[Counter, Histogram]:
        """What counts the calls of `method` that end so, and what takes their times."""
        return self.requests.labels(method, outcome), self.request_seconds.labels(method)

    def value(self, name: str, **labels: str) -> float:
        """One sample's value, 0 where it was never touched; for `system.status` and tests."""
        return self.registry.get_sample_value(f"persona_{name}", labels) or 0.0
