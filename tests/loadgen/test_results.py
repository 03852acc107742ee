"""From what was seen to figures and verdicts."""

from typing import Any

import orjson
import pytest

from loadgen.driver import Driver
from loadgen.link import Target
from loadgen.recorder import Recorder, Second
from loadgen.requests import ping
from loadgen.results import added, completed, latencies_by_kind, machine, measured
from loadgen.scenario import NO_ERRORS, Scenario, Stage, Threshold

SCENARIO = Scenario(
    name="test",
    summary="a test",
    stages=(Stage(seconds=4, connections=2, name="first"), Stage(seconds=4, connections=4, name="second")),
    request=ping,
    warm_up_s=2.0,
    expected=frozenset({"overloaded"}),
)


def seen(fill: Any, scenario: Scenario = SCENARIO) -> dict[str, Any]:
    """The document of a driver whose recorder holds what `fill` puts there."""
    driver = Driver(scenario, Target.of("ws://127.0.0.1:1/"))
    driver.recorder.start(0.0)
    fill(driver.recorder)
    return measured(driver)


def complete(document: dict[str, Any], scenario: Scenario = SCENARIO, **options: Any) -> dict[str, Any]:
    options = {"command": "loadgen run test", "server": "sansio", "exit_code": 0, "owned": True} | options
    return completed(document, scenario, **options)


def some(recorder: Recorder) -> None:
    for at in (2.0, 3.0, 5.0):
        recorder.answered("system.ping", at, at + 0.1)
    recorder.took("first_token", 3.0, 3.5)
    recorder.failed("overloaded", 3.0)
    recorder.failed("timeout", 5.0)
    for at_s, memory in enumerate((50, 90, 100, 102, 104, 106), 1):
        second = Second(at_s=at_s, connections=2, waiting=0, oldest_ms=0, server={"memory_mb": memory})
        recorder.end_second(second)


def test_figures() -> None:
    figures = complete(seen(some))["figures"]
    assert figures["answered"] == 3
    # Of 8 s, 2 are warm-up.
    assert figures["rate"] == 0.5
    assert figures["errors"] == 1
    assert figures["expected_errors"] == 1
    assert figures["error_share"] == 0.25
    assert figures["response.p99_ms"] == pytest.approx(100, rel=2e-3)
    # What is no answer does not enter the answers' latency.
    assert figures["response.max_ms"] == pytest.approx(100, rel=2e-3)
    assert figures["first_token.max_ms"] == pytest.approx(500, rel=2e-3)
    assert (figures["stage1.rate"], figures["stage2.rate"]) == (1.0, 0.25)
    assert (figures["stage1.errors"], figures["stage1.all_errors"]) == (0, 1)
    assert figures["stage2.errors"] == 1
    assert figures["clean_drain"] == 1
    # What it took at first is no leak: the slope is of the last two thirds, 2 MB a second.
    assert figures["server.memory_mb_per_minute"] == pytest.approx(120)
    assert (figures["server.memory_mb_max"], figures["server.memory_mb_end"]) == (106, 106)


def test_a_server_that_falls_behind_has_the_rate_at_which_it_answered() -> None:
    def backlog(recorder: Recorder) -> None:
        for n in range(60):
            # Ten a second were due from 2 s to 8 s, and the server does five a second.
            recorder.answered("system.ping", 2 + n / 10, 2.1 + n / 5)

    figures = complete(seen(backlog))["figures"]
    assert figures["answered"] == 60
    assert figures["rate"] == 5
    assert (figures["stage1.rate"], figures["stage2.rate"]) == (5, 5)
    # What was waited for after the end keeps its latency.
    assert figures["response.max_ms"] == pytest.approx(6000, rel=2e-3)


def test_a_document_survives_json() -> None:
    document = complete(seen(some))
    back = orjson.loads(orjson.dumps(document))
    assert {kind: each.figures() for kind, each in latencies_by_kind(back).items()} == {
        kind: each.figures() for kind, each in latencies_by_kind(document).items()
    }


def test_workers_are_added_up() -> None:
    def slow(recorder: Recorder) -> None:
        recorder.answered("system.ping", 3.0, 5.0)
        recorder.answered("system.status", 3.0, 3.5)
        recorder.wrong("not so", {}, 3.0)
        recorder.end_second(Second(at_s=1, connections=3, waiting=2, oldest_ms=9, busy=0.5))

    whole = complete(added([seen(some), seen(slow)]))
    assert whole["figures"]["answered"] == 5
    assert whole["figures"]["system.ping.count"] == 4
    assert whole["figures"]["rate"] == 5 / 6
    assert whole["figures"]["response.max_ms"] == 2000
    assert whole["figures"]["wrong"] == 1
    # Of the stage in which it was due: one wrong answer and one that was overloaded for each worker.
    assert (whole["figures"]["stage1.errors"], whole["figures"]["stage1.all_errors"]) == (1, 2)
    assert len(whole["generators"]) == 2
    # As long as the shorter one's; connections add up, and the busier one counts.
    (second,) = whole["seconds"]
    assert (second["connections"], second["busy"], second["oldest_ms"]) == (5, 0.5, 9)


def test_events_that_no_gap_tells_of_are_missed() -> None:
    def published(recorder: Recorder) -> None:
        some(recorder)
        recorder.events.promised += 50

    def heard(recorder: Recorder) -> None:
        some(recorder)
        recorder.events.received += 30
        recorder.failed("missed_event", 5.0)

    def left(recorder: Recorder) -> None:
        recorder.events.departed += 1

    whole = complete(added([seen(published), seen(heard)]))
    assert whole["stages"][-1]["errors"]["missed_event"] == 20
    assert any(line.startswith("errors is 22;") for line in whole["failed"])
    unknown = complete(added([seen(published), seen(heard), seen(left)]))
    assert unknown["stages"][-1]["errors"]["missed_event"] == 1


def test_one_worker_added_is_itself() -> None:
    document = seen(some)
    assert complete(added([document]))["figures"] == complete(document)["figures"]


@pytest.mark.parametrize(
    ("fill", "options", "complaint"),
    [
        (
            lambda recorder: recorder.wrong("a wrong answer", {}, 3.0),
            {},
            "1 wrong answers, the first: a wrong answer",
        ),
        (lambda _: None, {}, "nothing was answered"),
        (some, {"exit_code": -9}, "did not end cleanly: exit code -9"),
        (some, {"exit_code": None}, "did not end cleanly: exit code None"),
        (some, {}, "errors is 1; wanted at most 0"),
    ],
)
def test_what_fails_a_run(fill: Any, options: dict[str, Any], complaint: str) -> None:
    assert any(complaint in line for line in complete(seen(fill), **options)["failed"])


def test_a_run_may_hold_what_it_should() -> None:
    scenario = Scenario(
        name="test",
        summary="",
        stages=SCENARIO.stages,
        request=ping,
        expected=frozenset({"overloaded", "timeout"}),
        thresholds=(NO_ERRORS, Threshold("answered", at_least=3)),
    )
    assert complete(seen(some, scenario), scenario)["failed"] == []


def test_a_strange_server_has_no_drain_to_be_judged_by() -> None:
    document = complete(seen(some), owned=False, exit_code=None, server="ws://127.0.0.1:1/")
    assert "clean_drain" not in document["figures"]
    assert not any("exit code" in line for line in document["failed"])


def test_the_machine_is_told_without_its_name() -> None:
    told = machine()
    assert told["cores"] >= 1
    assert set(told) == {"cpu", "cores", "memory_gb", "system", "python"}
