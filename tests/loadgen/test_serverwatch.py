"""The server, from outside and by its own word."""

from random import Random

import attrs
import psutil

from loadgen.script import Answer, Call, Pause, User
from loadgen.serverwatch import SAID_EVERY, ServerWatch

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
    assert script.send(Answer(result={}, latency_s=0.25)) == Call("system.status")
    process.used_s = 1.0
    sample = watch.sample()
    assert sample["ping_ms"] == 250
    assert (sample["memory_mb"], sample["descriptors"], sample["threads"]) == (50.0, 12, 4)
    assert sample["cpu"] > 0


def play(watch: ServerWatch, answers: dict[str, Answer], seconds: int) -> list[str]:
    """Answer the script for so long; the methods that it called."""
    script, called, paused = watch.script(USER), [], 0.0
    command = script.send(None)
    while paused < seconds:
        if isinstance(command, Pause):
            paused += command.seconds
            command = script.send(Answer())
        else:
            called.append(command.method)
            command = script.send(answers.get(command.method, Answer(error="method_not_found")))
    return called


def test_a_server_says_itself_what_is_not_seen_from_outside() -> None:
    watch = ServerWatch(None)
    answers = {
        "system.ping": Answer(result={}, latency_s=0.5),
        "system.status": Answer(result={"memory_usage_mb": 81.5, "active_connections": 7, "status": "ok"}),
        "system.metrics": Answer(result={"loop": {"lag_s": 0.0125}}),
        "system.tasks": Answer(result={"tasks": 42, "tree": {}}),
    }
    play(watch, answers, 1)
    assert watch.sample() == {
        "ping_ms": 500,
        "memory_mb": 81.5,
        "connections": 7,
        "loop_lag_ms": 12.5,
        "tasks": 42,
    }


def test_a_strange_servers_rate_limit_is_not_met() -> None:
    answers = {method: Answer(result={}) for method in ("system.ping", *SAID_EVERY)}
    assert len(play(ServerWatch(None), answers, 60)) < 90


def test_what_a_server_does_not_have_is_asked_for_once() -> None:
    watch = ServerWatch(None)
    called = play(watch, {"system.ping": Answer(error="overloaded")}, 60)
    assert [method for method in called if method != "system.ping"] == list(SAID_EVERY)
    assert watch.sample() == {}


def test_a_process_that_died_has_no_figures() -> None:
    process = Process()
    watch = ServerWatch(process)
    process.is_dead = True
    assert watch.sample() == {}
