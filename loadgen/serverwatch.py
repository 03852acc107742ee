"""The server, watched beside the load: from outside where it is a process of ours, else by what it says.

A connection of its own asks for a ping each second; how long the answer takes is what an idle client would
have met, and follows the server's loop lag. What the server says of itself is asked for, too: methods that it
does not have are asked for once.
"""

import itertools
import time
from collections.abc import Mapping
from typing import Any

import psutil

from loadgen.script import Answer, Call, Pause, Script, User
from loadgen.servers import ServerProcess

INTERVAL_S = 1.0
SAID_EVERY = {"system.status": 4, "system.metrics": 2, "system.tasks": 10}
"""What a server is asked of itself, every so many seconds. A strange one may hold this connection to a rate
limit; with a ping in two seconds these come to 81 a minute, below the default of 100."""
SAID = {
    ("memory_usage_mb",): ("memory_mb", 1.0),
    ("active_connections",): ("connections", 1.0),
    ("loop", "lag_s"): ("loop_lag_ms", 1000.0),
    ("tasks",): ("tasks", 1.0),
}
"""Where an answer holds a figure, what it is called here, and its unit in ours."""

NO_SUCH_METHOD = ("method_not_found", "code_-32601")


class ServerWatch:
    """`sample` gives the latest figures; `script` is played by a connection that is no part of the load."""

    def __init__(self, process: ServerProcess | None) -> None:
        self._process = process
        self._said: dict[str, float] = {}
        self._unknown: set[str] = set()
        """Methods that this server does not have; they are not asked for again."""
        self._cpu_s = self._cpu_at = 0.0
        if process is not None:
            self._cpu_s, self._cpu_at = process.cpu_s(), time.perf_counter()

    def script(self, user: User) -> Script:
        """Ask again and again."""
        for second in itertools.count():
            if self._process is not None or second % 2 == 0:
                answer = yield Call("system.ping", {"payload": user.nonce})
                if answer.error is None:
                    self._said["ping_ms"] = round(answer.latency_s * 1000, 3)
            for method, every in SAID_EVERY.items():
                if second % every == 0 and method not in self._unknown:
                    self._take(method, (yield Call(method)))
            yield Pause(INTERVAL_S)

    def sample(self) -> Mapping[str, float]:
        """Memory in MB, processor share of one core, descriptors, threads, and the ping; what is not known is
        left out."""
        if self._process is None:
            return self._said
        try:
            now, cpu_s = time.perf_counter(), self._process.cpu_s()
            share = (cpu_s - self._cpu_s) / max(1e-6, now - self._cpu_at)
            self._cpu_s, self._cpu_at = cpu_s, now
            return {
                **self._said,
                "memory_mb": round(self._process.resident_bytes() / 1e6, 2),
                "cpu": round(share, 3),
                "descriptors": self._process.descriptors(),
                "threads": self._process.threads(),
            }
        except psutil.Error:
            # It died; the errors of the clients say so.
            return self._said

    def _take(self, method: str, answer: Answer) -> None:
        if answer.error in NO_SUCH_METHOD:
            self._unknown.add(method)
            return
        for path, (name, unit) in SAID.items():
            value: Any = answer.result
            for key in path:
                value = value.get(key) if isinstance(value, dict) else None
            if isinstance(value, int | float):
                self._said[name] = round(value * unit, 3)
