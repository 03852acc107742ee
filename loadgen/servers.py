"""Servers in processes of their own: ours with either engine, and the peers.

Each is held to one core, and whoever drives it moves to the others.
"""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

import attrs
import psutil

OURS = ("sansio", "trio-websocket")
PEERS = {
    "aiohttp": "loadgen.peers.aiohttp_peer",
    "uvicorn": "loadgen.peers.uvicorn_peer",
    "picows": "loadgen.peers.picows_peer",
    "before": "loadgen.peers.before_peer",
    "trio-websocket echo": "loadgen.peers.trio_websocket_peer",
    "sansio, switched": "loadgen.peers.switched_peer",
}
START_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 60.0
UNLIMITED = {
    "PERSONA_LIMITS_RATE_LIMIT_PER_MINUTE": "0",
    "PERSONA_LIMITS_MAX_CONNECTIONS": "10000",
    "PERSONA_PERSONAS_RECOVERY_S": "0",
}
"""What a client would meet that asks as fast as it can."""


@attrs.frozen
class ServerProcess:
    """A running server."""

    name: str
    url: str
    pid: int
    _process: psutil.Process
    _child: "subprocess.Popen[str]"

    def cpu_s(self) -> float:
        """Processor time used so far."""
        times = self._process.cpu_times()
        return float(times.user + times.system)

    def loop_cpu_s(self) -> float:
        """The same of its first thread alone, and to the microsecond where the system tells."""
        try:
            return int(Path(f"/proc/{self.pid}/task/{self.pid}/schedstat").read_text().split()[0]) / 1e9
        except OSError:
            return self.cpu_s()

    def resident_bytes(self) -> int:
        """Resident set size."""
        return int(self._process.memory_info().rss)

    def descriptors(self) -> int:
        """Open files and sockets."""
        return int(self._process.num_fds())

    def threads(self) -> int:
        """Of the whole process."""
        return int(self._process.num_threads())

    def stop(self) -> int | None:
        """Ask it to end, as an operator would, and wait; its exit code, `None` where it did not end in a
        minute. What is negative is the signal that ended it."""
        self._child.send_signal(signal.SIGTERM)
        try:
            return self._child.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            return None


@contextmanager
def _on_the_first_core() -> Iterator[None]:
    """What is started meanwhile is held to one core; afterwards this process has the others."""
    if not hasattr(os, "sched_setaffinity"):
        yield
        return
    before = os.sched_getaffinity(0)
    server_core = min(before)
    os.sched_setaffinity(0, {server_core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before - {server_core} or before)


@contextmanager
def all_cores() -> Iterator[set[int]]:
    """Undo, at the end, what `running` does to this process; its cores, where the system tells."""
    before = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set()
    try:
        yield before
    finally:
        if before:
            os.sched_setaffinity(0, before)


def _command(name: str, database: Path) -> list[str]:
    # Only Linux tells a process that its parent is gone.
    leash = (sys.executable, "-m", "loadgen.leash", str(os.getpid())) if sys.platform == "linux" else ()
    if name in OURS:
        return [
            *(*leash, sys.executable, "-m", "persona", "serve", "--port", "0", "--http-port", "0"),
            *("--engine", name, "--db", str(database), "--llm", "scripted", "--log-level", "error"),
        ]
    return [*leash, sys.executable, "-m", PEERS[name], "0"]


@contextmanager
def running(name: str, settings: Mapping[str, object] | None = None) -> Iterator[ServerProcess]:
    """One of `OURS` or `PEERS` on a free port. Raises `RuntimeError` when it does not start. On Linux it does
    not outlive the thread that starts it.

    `settings` are ours, by name, over those that take away what a load test would meet on purpose:
    `{"limits.max_connections": 100}`. Peers have none.
    """
    with all_cores(), tempfile.TemporaryDirectory() as folder:
        environ = {key: value for key, value in os.environ.items() if not key.startswith("PERSONA_")}
        with _on_the_first_core():
            process = subprocess.Popen(  # noqa: S603 - our own modules
                _command(name, Path(folder) / "bench.db"),
                stdout=subprocess.PIPE,
                text=True,
                env={**environ, **UNLIMITED, **_as_environ(settings or {})},
            )
        try:
            url = _url(process, name)
            yield ServerProcess(name, url, process.pid, psutil.Process(process.pid), process)
        finally:
            process.kill()
            process.wait()
            assert process.stdout is not None
            process.stdout.close()


@contextmanager
def running_all(
    names: Iterable[str], settings: Mapping[str, object] | None = None
) -> Iterator[list[ServerProcess]]:
    """Several at once, all held to the same core: to be asked in turns. As `running` otherwise."""
    with ExitStack() as stack:
        cores = stack.enter_context(all_cores())
        servers = []
        for name in names:
            if cores:
                os.sched_setaffinity(0, cores)
            servers.append(stack.enter_context(running(name, settings)))
        yield servers


def _as_environ(settings: Mapping[str, object]) -> dict[str, str]:
    """`{"limits.max_connections": 10}` as `{"PERSONA_LIMITS_MAX_CONNECTIONS": "10"}`."""
    return {f"PERSONA_{name.replace('.', '_').upper()}": str(value) for name, value in settings.items()}


def _url(process: "subprocess.Popen[str]", name: str) -> str:
    assert process.stdout is not None
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        line = process.stdout.readline()
        if not line:
            break
        if "listening on " in line:
            return line.split("listening on ")[1].strip()
    raise RuntimeError(f"{name} did not start; are the packages of the extra `peers` installed?")
