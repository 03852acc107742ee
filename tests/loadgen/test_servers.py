"""Servers in processes of their own, and the peers among them."""

import importlib.util
import os
import signal
import subprocess
import sys
import time

import psutil
import pytest

from loadgen import servers
from loadgen.servers import OURS, PEERS, running
from loadgen.wire import broadcast, connected, ping_loop, subscribe

NEEDS = {"aiohttp": "aiohttp", "before": "aiohttp", "uvicorn": "uvicorn", "picows": "picows"}
pytestmark = pytest.mark.slow


def needs(name: str) -> None:
    package = NEEDS.get(name)
    if package is not None and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed; it comes with the extra `peers`")


@pytest.mark.parametrize("name", [*OURS, *PEERS])
def test_each_answers_pings_and_is_gone_afterwards(name: str) -> None:
    needs(name)
    before = os.sched_getaffinity(0)
    with running(name) as server, connected(server.url, 3) as clients:
        ping_loop(clients, seconds=0.2, in_flight=4, is_echo=name.endswith("echo"))
        assert all(client.answered for client in clients)
        assert server.cpu_s() > 0
        assert server.resident_bytes() > 1_000_000
        pids = [child.pid for child in psutil.Process().children()]
        if len(before) > 1:
            # Whoever drives a server must not share its core.
            (pid,) = pids
            assert os.sched_getaffinity(pid).isdisjoint(os.sched_getaffinity(0))
    assert os.sched_getaffinity(0) == before
    assert not any(psutil.pid_exists(pid) for pid in pids)


@pytest.mark.parametrize("name", [name for name in (*OURS, *PEERS) if not name.endswith("echo")])
def test_each_broadcasts_to_everybody_else(name: str) -> None:
    needs(name)
    with running(name) as server, connected(server.url, 4) as clients:
        subscribe(clients, "tests")
        assert len(broadcast(clients, "tests", size_bytes=500, rounds=3)) == 3


def test_one_that_does_not_start_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(servers.PEERS, "broken", "loadgen.peers.no_such_peer")
    with pytest.raises(RuntimeError, match="broken did not start"), running("broken"):
        pass


ONE_UP = """
import time
from loadgen.servers import running
with running("sansio") as server:
    print(server.pid, flush=True)
    time.sleep(60)
"""


def is_gone(pid: int, within_s: float = 30.0) -> bool:
    """Whether it has ended by then; nobody may be there to ask for its exit code."""
    end = time.monotonic() + within_s
    while time.monotonic() < end:
        if not psutil.pid_exists(pid) or psutil.Process(pid).status() == psutil.STATUS_ZOMBIE:
            return True
        time.sleep(0.02)
    return False


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere nobody tells a child that its parent is gone")
def test_none_outlives_who_started_it() -> None:
    with subprocess.Popen([sys.executable, "-c", ONE_UP], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.send_signal(signal.SIGKILL)
    assert is_gone(pid)
