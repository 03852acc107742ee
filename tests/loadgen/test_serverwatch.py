"""The server, from outside and by its own word."""

from random import Random

import attrs
import psutil

from loadgen.script import Answer, Call, Pause, User
from loadgen.serverwatch import STATUS_INTERVAL_S, ServerWatch

USER = User(-1, Random(0), "nonce")


@attrs.define
class Process:
    """As much of a `ServerProcess` as is looked at."""

    used_s: float = 0.0
    is_dead: bool = False

    def cpu_s(self) -> float:
        if self.is_dead:
            raise psutil.NoSuchProcess(1)
        return self.used_s

    def resident_bytes(self) -> int:
        return 50_000_000

    def descriptors(self) -> int:
        return 12

    def threads(self) -> int:
        return 4


def test_a_process_of_ours_is_looked_at_and_pinged() -> None:
    process = Process()
    watch = ServerWatch(process)
    script = watch.script(USER)
    assert script.send(None) == Call("system.ping", {"payload": "nonce"})
    assert isinstance(script.send(Answer(result={}, latency_s=0.25)), Pause)
    process.used_s = 1.0
    sample = watch.sample()
    assert sample["ping_ms"] == 250
    assert (sample["memory_mb"], sample["descriptors"], sample["threads"]) == (50.0, 12, 4)
    assert sample["cpu"] > 0


def test_a_strange_server_says_it_itself_and_is_not_asked_too_often() -> None:
    watch = ServerWatch(None)
    script = watch.script(USER)
    assert script.send(None) == Call("system.status")
    said = {"memory_usage_mb": 81.5, "active_connections": 7, "status": "ok"}
    assert script.send(Answer(result=said, latency_s=0.5)) == Pause(STATUS_INTERVAL_S)
    assert watch.sample() == {"ping_ms": 500, "memory_mb": 81.5, "connections": 7}


def test_what_it_does_not_say_is_left_out() -> None:
    watch = ServerWatch(None)
    script = watch.script(USER)
    script.send(None)
    script.send(Answer(error="code_-32601"))
    assert watch.sample() == {}


def test_a_process_that_died_has_no_figures() -> None:
    process = Process()
    watch = ServerWatch(process)
    process.is_dead = True
    assert watch.sample() == {}
