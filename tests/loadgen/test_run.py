"""Whole runs against real servers in processes of their own."""

import os
import signal
import threading
from pathlib import Path

import pytest

from loadgen.recorder import Second
from loadgen.results import Document
from loadgen.run import Plan, run
from loadgen.workers import Workers
from tests.loadgen.answering import answering, result

pytestmark = pytest.mark.slow

OPEN = """
from loadgen.requests import ping
from loadgen.scenario import NO_ERRORS, Scenario, Stage

SCENARIO = Scenario(
    name="open", summary="", stages=(Stage(seconds=10, connections=20, rate=100),), request=ping,
    arrivals="constant", warm_up_s=1.0, thresholds=(NO_ERRORS,),
)
"""


@pytest.fixture
def open_load(tmp_path: Path) -> str:
    file = tmp_path / "open.py"
    file.write_text(OPEN)
    return str(file)


def frozen_for_5_s(pid: int, seconds: list[Second]) -> threading.Timer:
    """Freeze a server; what thaws it 5 s later."""
    os.kill(pid, signal.SIGSTOP)
    thaw = threading.Timer(5.0, os.kill, (pid, signal.SIGCONT))
    thaw.start()
    assert seconds
    return thaw


@pytest.mark.parametrize("engine", ["trio-websocket", "sansio"])
def test_a_frozen_server_shows_in_the_percentiles(
    open_load: str, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """5 s without a sign of life under 100 arrivals a second. A generator that waits for each answer would
    have sent one request meanwhile, and shown a p99 of milliseconds."""
    from loadgen import run as run_module

    seen: list[Second] = []
    thaws: list[threading.Timer] = []
    pids: list[int] = []
    watched = run_module.ServerWatch

    def remember(process: object) -> object:
        pids.append(process.pid)
        return watched(process)

    def freeze(second: Second) -> None:
        seen.append(second)
        if len(seen) == 2:
            thaws.append(frozen_for_5_s(pids[0], seen))

    monkeypatch.setattr(run_module, "ServerWatch", remember)
    document = run(Plan(scenario=open_load), server=engine, on_second=freeze)
    thaws[0].join()
    figures = document["figures"]
    assert figures["response.p99_ms"] > 3000
    # Of 900 measured, 500 were due while it was frozen: the slowest tenth of all waited for 4 s.
    assert figures["response.p90_ms"] > 3000
    assert figures["response.p50_ms"] > 100
    assert figures["answered"] + figures["errors"] == pytest.approx(900, abs=2)
    assert figures["errors"] == 0
    # Seen as it happened, and not only in the end.
    assert any(second.answered == 0 and second.oldest_ms > 1000 for second in seen)


def smoke(scenario: str, **options: object) -> Document:
    return run(Plan(scenario=scenario, seconds=10, connections=50), **options)


@pytest.mark.parametrize("engine", ["trio-websocket", "sansio"])
def test_ten_seconds_without_an_error_and_a_clean_drain(engine: str) -> None:
    document = smoke("chat", server=engine)
    figures = document["figures"]
    assert figures["errors"] == figures["wrong"] == 0
    assert figures["clean_drain"] == 1
    assert document["server_exit_code"] == 0
    assert figures["answered"] > 10
    assert figures["first_token.count"] >= figures["answered"]
    assert figures["connections_max"] == 50
    assert figures["server.memory_mb_max"] > 10
    assert figures["server.descriptors_max"] > 50
    assert figures["server.ping_ms_max"] > 0


@pytest.mark.parametrize(
    "scenario", ["ramp", "broadcast", "spike", "slow-readers", "reconnect-storm", "storage", "fairness"]
)
def test_each_scenario_runs_without_an_error(scenario: str) -> None:
    figures = run(Plan(scenario=scenario, seconds=6), server="sansio")["figures"]
    assert figures["errors"] == figures["wrong"] == 0
    assert figures["clean_drain"] == 1
    assert figures["answered"] > 0


def test_stress_is_refused_and_served_again() -> None:
    document = run(Plan(scenario="stress", seconds=12), server="sansio")
    figures = document["figures"]
    assert figures["errors"] == figures["wrong"] == 0
    assert figures["expected_errors"] > 0
    assert figures["stage4.rate"] > 0


def test_workers_share_the_load_and_are_added_up(open_load: str) -> None:
    seconds: list[Second] = []
    plan = Plan(scenario=open_load, seconds=4, warm_up_s=0)
    document = run(plan, server="sansio", workers=3, on_second=seconds.append)
    figures = document["figures"]
    assert len(document["generators"]) == 3
    # Three that each send a third, at the same instants: 33 or 34 a second each.
    assert figures["answered"] == pytest.approx(400, abs=6)
    assert figures["response.count"] == figures["answered"]
    assert figures["errors"] == 0
    assert {second.connections for second in seconds} == {20}
    assert figures["server.memory_mb_max"] > 10


def test_a_worker_that_breaks_ends_the_run() -> None:
    plan = {"scenario": "ramp", "no such field": 1}
    with Workers(plan, "ws://127.0.0.1:1/mcp", 2) as crowd, pytest.raises(RuntimeError, match="broke"):
        crowd.run(dict, lambda _: None)


def test_a_server_that_answers_wrongly_fails_the_run(open_load: str) -> None:
    with answering(lambda request: [result(request, {"pong": True})]) as server:
        document = run(Plan(scenario=open_load, seconds=2), url=server.url)
    assert "wrong answers, the first: a wrong answer to" in document["failed"][0]
    assert document["figures"]["answered"] == 0
    assert "response.p99_ms" not in document["figures"]
