"""Figures for the dashboard, each of them different from all others, and a server that says only these."""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import attrs
import orjson
from websockets.exceptions import ConnectionClosed
from websockets.sync.server import Server, ServerConnection, serve

TOPIC = "system.metrics"


def figures() -> dict[str, Any]:
    """What the topic `system.metrics` tells, as it looks on a busy server."""
    quick = {"p50": 0.0012, "p95": 0.0043, "p99": 0.0091}
    return {
        "time": "2026-01-31T12:00:00.000Z",
        "window_s": 60,
        "uptime_seconds": 93784.5,
        "status": "ok",
        "connections": {
            "open": 212,
            "half_open": 3,
            "max": 500,
            "refused": {"max_connections": 4, "origin": 2},
            "closed": {"client": 70, "keepalive": 5},
        },
        "requests": {
            "total": 48123,
            "per_second": 83.4,
            "error_ratio": 0.0213,
            "latency_s": {"avg": 0.0021, "p50": 0.0011, "p95": 0.0474, "p99": 0.182},
            "by_method": {
                "system.ping": {"count": 4100, "per_second": 68.3, **quick},
                "persona.chat": {"count": 904, "per_second": 15.1, "p50": 2.4, "p95": 6.1, "p99": 8.8},
            },
        },
        "errors": {"rate_limited": 61, "overloaded": 33, "<b>odd</b>": 1},
        "memory": {
            "resident_bytes": 191_400_000,
            "growth_bytes_per_s": 15_200,
            "soft_limit_bytes": 1_600_000_000,
            "hard_limit_bytes": 2_000_000_000,
            "heaviest": [],
        },
        "loop": {"lag_s": 0.002, "max_lag_s": 0.0137},
        "handlers": {"running": 17, "limit": 100},
        "database": {"write_queue": 9, "read_queue": 6, "readers_busy": 1, "readers": 2, "mean_batch": 3.7},
        "background": {"queued": 41, "limit": 2000, "dropped": 8},
        "model": {
            "running": 4,
            "slots": 4,
            "queued": 29,
            "limit": 512,
            "tokens_per_second": 118.6,
            "available": True,
            "first_token_s": {"p50": 0.31, "p95": 1.27, "p99": 2.2},
            "seconds": {
                "p50": 2.6,
                "p95": 7.3,
                "p99": 11.5,
                "buckets": [
                    {"le": 0.5, "count": 0},
                    {"le": 1, "count": 14},
                    {"le": 2.5, "count": 45},
                    {"le": 5, "count": 27},
                    {"le": 10, "count": 11},
                    {"le": None, "count": 2},
                ],
            },
        },
        "alerts": [
            {
                "name": "model_slots",
                "since": "2026-01-31T11:58:00.000Z",
                "value": 1.0,
                "threshold": 0.9,
                "text": "All slots of the model have been taken for two minutes.",
            }
        ],
    }


@attrs.define
class Feed:
    """Publishes `figures` every `every_s` seconds to whoever has subscribed, and nothing while `silent`."""

    figures: dict[str, Any]
    every_s: float = 0.2
    silent: bool = False
    url: str = ""
    _ended: threading.Event = attrs.field(factory=threading.Event)

    def _speak(self, link: ServerConnection) -> None:
        request = orjson.loads(link.recv())
        assert request["method"] == "events.subscribe"
        assert request["params"] == {"topics": [TOPIC]}
        link.send(
            orjson.dumps({"jsonrpc": "2.0", "id": request["id"], "result": {"topics": [TOPIC]}}).decode()
        )
        while not self._ended.wait(self.every_s):
            if not self.silent:
                event = {"topic": TOPIC, "type": TOPIC, "seq": 1, "timestamp": "", "data": self.figures}
                message = {"jsonrpc": "2.0", "method": "event", "params": event}
                link.send(orjson.dumps(message).decode())

    def _handle(self, link: ServerConnection) -> None:
        # A page that was closed.
        with contextlib.suppress(ConnectionClosed):
            self._speak(link)

    @contextlib.contextmanager
    def running(self) -> Iterator["Feed"]:
        server: Server = serve(self._handle, "127.0.0.1", 0, subprotocols=["mcp"])  # type: ignore[list-item]
        self.url = f"ws://127.0.0.1:{server.socket.getsockname()[1]}/mcp"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            self._ended.set()
            server.shutdown()
            thread.join(10)
