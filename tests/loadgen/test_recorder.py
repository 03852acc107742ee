"""What enters the figures, and what does not."""

from loadgen.recorder import (
    MAX_KIND_CHARACTERS,
    MAX_KINDS,
    MAX_WRONG_KEPT,
    OTHER,
    Recorder,
    Second,
)
from loadgen.scenario import Scenario, Stage


def recorder(**changes: object) -> Recorder:
    plan = {
        "name": "test",
        "summary": "",
        "stages": (Stage(seconds=10, connections=1), Stage(seconds=10, connections=1)),
        "warm_up_s": 2.0,
    }
    made = Recorder(Scenario(**{**plan, **changes}))
    made.start(100.0)
    return made


def second(at_s: float = 1.0) -> Second:
    return Second(at_s=at_s, connections=1, waiting=0, oldest_ms=0.0)


def test_the_warm_up_gives_no_latency_and_is_counted() -> None:
    seen = recorder()
    seen.answered("m", 101.9, 105.0)
    seen.took("first_token", 101.9, 105.0)
    seen.answered("m", 102.0, 102.5)
    assert seen.warm_up_answered == 1
    assert seen.stages[0].answered == 1
    assert seen.stages[0].latencies.keys() == {"m"}
    assert seen.stages[0].latencies["m"].figures()["max_ms"] == 500


def test_errors_of_the_warm_up_count() -> None:
    seen = recorder()
    seen.failed("timeout", 100.5)
    assert seen.error_count == 1


def test_a_request_belongs_to_the_stage_in_which_it_was_due() -> None:
    seen = recorder()
    seen.answered("m", 111.0, 111.1)
    # Late, after the next stage has begun: still the first one's.
    seen.answered("m", 109.0, 115.0)
    seen.failed("timeout", 109.5)
    assert [stage.answered for stage in seen.stages] == [1, 1]
    assert [dict(stage.errors) for stage in seen.stages] == [{"timeout": 1}, {}]
    assert seen.stages[0].latencies["m"].figures()["max_ms"] == 6000


def test_a_rate_is_of_answers_that_came_in_the_measured_time() -> None:
    seen = recorder()
    # Due in the warm-up, and answered after it; due in the first stage, and answered in the second.
    for due, came in ((101.0, 101.5), (101.0, 103.0), (104.0, 105.0), (109.0, 115.0)):
        seen.answered("m", due, came)
    # After the end there is no time to divide them by.
    seen.answered("m", 119.0, 120.0)
    assert [stage.answered_meanwhile for stage in seen.stages] == [2, 1]
    assert [stage.answered for stage in seen.stages] == [2, 1]


def test_before_the_start_all_is_warm_up_and_of_the_first_stage() -> None:
    seen = Recorder(Scenario(name="test", summary="", stages=(Stage(seconds=1, connections=1),)))
    seen.answered("m", 50.0, 51.0)
    seen.opened(50.0, 50.1, 50.3)
    assert seen.warm_up_answered == 1
    assert seen.stages[0].answered_meanwhile == 0
    assert seen.stages[0].latencies["handshake"].figures()["max_ms"] == 200


def test_expected_errors_are_kept_apart() -> None:
    seen = recorder(expected=frozenset({"overloaded"}))
    seen.failed("overloaded", 103.0)
    seen.failed("timeout", 103.0)
    assert seen.error_count == 1
    assert seen.stages[0].errors == {"overloaded": 1, "timeout": 1}
    line = second()
    seen.end_second(line)
    assert (line.errors, line.expected_errors) == (1, 1)


def test_wrong_answers_are_kept_within_bounds() -> None:
    seen = recorder()
    for _ in range(MAX_WRONG_KEPT + 5):
        seen.wrong("not what was asked", "x" * 10_000, 103.0)
    assert seen.wrong_count == MAX_WRONG_KEPT + 5
    assert len(seen.wrong_answers) == MAX_WRONG_KEPT
    assert len(seen.wrong_answers[0]) < 600
    assert seen.stages[0].wrong == MAX_WRONG_KEPT + 5


def test_what_a_server_says_does_not_command_the_terminal() -> None:
    seen = recorder()
    seen.wrong("no\n", "\x1b[2J" + "y" * 1000, 103.0)
    seen.failed("\x1b]0;pwn\x07evil\nFAKE: all good" + "z" * 1000, 103.0)
    assert seen.wrong_answers[0].startswith("no?: ?[2Jy")
    (kind,) = seen.stages[0].errors
    assert kind.startswith("?]0;pwn?evil?FAKE: all goodzz")
    assert len(kind) == MAX_KIND_CHARACTERS


def test_kinds_of_errors_are_kept_within_bounds() -> None:
    seen = recorder()
    for n in range(MAX_KINDS * 3):
        seen.failed(f"reason {n}", 103.0)
    seen.failed("reason 0", 103.0)
    errors = seen.stages[0].errors
    assert (len(errors), errors[OTHER], errors["reason 0"]) == (MAX_KINDS + 1, MAX_KINDS * 2, 2)
    assert sum(errors.values()) == seen.error_count == MAX_KINDS * 3 + 1


def test_a_second_holds_what_was_answered_in_it() -> None:
    seen = recorder()
    for ms in range(1, 101):
        seen.answered("m", 110.0, 110.0 + ms / 1000)
    first, idle = second(), second(2.0)
    seen.end_second(first)
    seen.end_second(idle)
    assert (first.answered, first.p50_ms, first.p99_ms, first.max_ms) == (100, 50, 99, 100)
    assert (idle.answered, idle.p50_ms) == (0, None)
    assert seen.seconds == [first, idle]
