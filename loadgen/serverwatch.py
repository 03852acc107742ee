"""The server, watched beside the load: from outside where it is a process of ours, else by what it says.

A connection of its own asks for a ping each second; how long the answer takes is what an idle client would
have met, and follows the server's loop lag.
"""

import time
from collections.abc import Mapping
from typing import Any

import psutil

from loadgen.script import Call, Pause, Script, User
from loadgen.servers import ServerProcess

INTERVAL_S = 1.0
STATUS_INTERVAL_S = 2.0
"""A strange server may hold this connection to a rate limit; 30 a minute is far below the default."""
SAID = {"memory_usage_mb": "memory_mb", "active_connections": "connections"}
"""What `system.status` says, and what it is called here."""


class ServerWatch:
    """`sample` gives the latest figures; `script` is played by a connection that is no part of the load."""

    def __init__(self, process: ServerProcess | None) -> None:
        self._process = process
        self._said: dict[str, float] = {}
        self._cpu_s = self._cpu_at = 0.0
        if process is not None:
            self._cpu_s, self._cpu_at = process.cpu_s(), time.perf_counter()

    def script(self, user: User) -> Script:
        """Ask again and again."""
        while True:
            call = Call("system.ping", {"payload": user.nonce}) if self._process else Call("system.status")
            answer = yield call
            if answer.error is None:
                self._said["ping_ms"] = round(answer.latency_s * 1000, 3)
                self._take(answer.result)
            yield Pause(INTERVAL_S if self._process else STATUS_INTERVAL_S)

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

    def _take(self, result: Any) -> None:
        if isinstance(result, dict):
            for theirs, ours in SAID.items():
                value = result.get(theirs)
                if isinstance(value, int | float):
                    self._said[ours] = float(value)
