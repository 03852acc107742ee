"""What every peer answers: the job itself, without a transport."""

import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import orjson


def answer(message: str | bytes, subscribe: Callable[[], None], publish: Callable[[bytes], int]) -> bytes:
    """The answer to one request. `publish` sends a frame to every subscriber and says to how many."""
    request = orjson.loads(message)
    method, params = request["method"], request.get("params") or {}
    if method == "system.ping":
        result: dict[str, Any] = {"pong": True, "payload": params.get("payload"), "time": _now()}
    elif method == "events.subscribe":
        subscribe()
        result = {"topics": params["topics"]}
    elif method == "system.broadcast":
        event = {
            "topic": params["topic"],
            "type": params["type"],
            "data": params["data"],
            "timestamp": _now(),
        }
        sent = publish(orjson.dumps({"jsonrpc": "2.0", "method": "event", "params": event}))
        result = {"delivered": sent, "dropped": 0}
    else:
        error = {"code": -32601, "message": "no such method"}
        return orjson.dumps({"jsonrpc": "2.0", "id": request["id"], "error": error})
    return orjson.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result})


def _now() -> str:
    return datetime.fromtimestamp(time.time(), UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def announce(port: int) -> None:
    """Tell whoever started the peer where it listens."""
    sys.stdout.write(f"listening on ws://127.0.0.1:{port}/mcp\n")
    sys.stdout.flush()
