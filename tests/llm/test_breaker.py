"""The circuit breaker before the model."""

import pytest
import structlog.testing
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from persona.errors import LLMUnavailable
from persona.llm.breaker import HUNG_SHARE, MAX_OPEN_S, PROBE_RETRY_AFTER_S, CircuitBreaker
from persona.metrics import Metrics

PATIENCE_S = 60.0


def make(failures: int = 3, open_s: float = 5.0, metrics: Metrics | None = None) -> CircuitBreaker:
    return CircuitBreaker(
        failures=failures,
        open_s=open_s,
        patience_s=PATIENCE_S,
        metrics=metrics or Metrics(),
        now=trio.current_time,
    )


def fail(breaker: CircuitBreaker, *, retry_after_s: float | None = None) -> None:
    with pytest.raises(LLMUnavailable, match="no answer"), breaker.attempt():
        raise LLMUnavailable.transient("no answer", retry_after_s=retry_after_s)


def succeed(breaker: CircuitBreaker) -> None:
    with breaker.attempt():
        pass


def refusal(breaker: CircuitBreaker) -> LLMUnavailable:
    """What a request now is told. Both ways of asking tell the same."""
    assert breaker.is_refusing
    with pytest.raises(LLMUnavailable) as caught, breaker.attempt():
        pytest.fail("the server was asked")
    with pytest.raises(LLMUnavailable, match=caught.value.message):
        breaker.check()
    return caught.value


async def test_failures_in_a_row_open_it_and_an_answer_begins_the_count_anew(
    autojump_clock: MockClock,
) -> None:
    breaker = make(failures=3)
    for _ in range(3):
        fail(breaker)
        fail(breaker)
        assert breaker.state == "closed"
        succeed(breaker)
    for _ in range(3):
        assert not breaker.is_refusing
        fail(breaker)
    assert breaker.state == "open"


async def test_an_open_one_refuses_with_the_last_problem_and_the_time_left(autojump_clock: MockClock) -> None:
    metrics = Metrics()
    breaker = make(failures=1, open_s=5.0, metrics=metrics)
    await trio.sleep(10)
    fail(breaker)
    await trio.sleep(2)
    error = refusal(breaker)
    assert error.message.endswith("no answer")
    assert error.retry_after_s == pytest.approx(3)
    assert not error.is_transient
    assert (breaker.state, breaker.since) == ("open", 10)
    assert metrics.value("llm_circuit_state") == 2
    assert metrics.value("llm_circuit_changes_total", state="open") == 1
    assert metrics.value("llm_refused_total", reason="circuit") == 2


async def test_a_probe_that_is_answered_closes_it(autojump_clock: MockClock) -> None:
    metrics = Metrics()
    breaker = make(failures=1, open_s=5.0, metrics=metrics)
    fail(breaker)
    await trio.sleep(7)
    # Since its time was up, whenever somebody looks.
    assert (breaker.state, breaker.since) == ("half_open", 5)
    with breaker.attempt():
        # Only one at a time.
        assert refusal(breaker).retry_after_s == PROBE_RETRY_AFTER_S
        await trio.sleep(1)
    assert (breaker.state, breaker.since) == ("closed", 8)
    assert metrics.value("llm_circuit_state") == 0
    # And the count is at nought again.
    succeed(breaker)


async def test_each_change_is_logged_once(autojump_clock: MockClock) -> None:
    before = structlog.get_config()
    structlog.reset_defaults()
    try:
        with structlog.testing.capture_logs() as entries:
            breaker = make(failures=2)
            fail(breaker)
            fail(breaker)
            for _ in range(3):
                refusal(breaker)
            await trio.sleep(5)
            for _ in range(3):
                assert breaker.state == "half_open"
            succeed(breaker)
            succeed(breaker)
    finally:
        structlog.configure(**before)
    assert [(entry["event"], entry["log_level"]) for entry in entries] == [
        ("llm_circuit_open", "warning"),
        ("llm_circuit_half_open", "info"),
        ("llm_circuit_closed", "info"),
    ]
    assert (entries[0]["failures"], entries[0]["problem"], entries[0]["probe_after_s"]) == (2, "no answer", 5)


async def test_a_probe_that_fails_opens_it_for_twice_as_long_up_to_a_minute(
    autojump_clock: MockClock,
) -> None:
    breaker = make(failures=2, open_s=5.0)
    fail(breaker)
    fail(breaker)
    for open_s in (5, 10, 20, 40, MAX_OPEN_S, MAX_OPEN_S):
        assert refusal(breaker).retry_after_s == pytest.approx(open_s)
        await trio.sleep(open_s)
        fail(breaker)
    await trio.sleep(MAX_OPEN_S)
    succeed(breaker)
    # Next time it begins from the beginning, with the count as with the time.
    fail(breaker)
    fail(breaker)
    assert refusal(breaker).retry_after_s == pytest.approx(5)


@pytest.mark.parametrize(("asked_s", "given_s"), [(1.0, 5.0), (30.0, 30.0), (3600.0, MAX_OPEN_S)])
async def test_a_server_that_asks_for_more_time_gets_it(
    asked_s: float, given_s: float, autojump_clock: MockClock
) -> None:
    breaker = make(failures=1, open_s=5.0)
    fail(breaker, retry_after_s=asked_s)
    assert refusal(breaker).retry_after_s == pytest.approx(given_s)


async def test_an_error_of_another_kind_is_an_answer(autojump_clock: MockClock) -> None:
    breaker = make(failures=2)
    for _ in range(5):
        fail(breaker)
        with pytest.raises(LLMUnavailable, match="no such model"), breaker.attempt():
            raise LLMUnavailable("no such model")
    assert breaker.state == "closed"
    fail(breaker)
    fail(breaker)
    await trio.sleep(5)
    with pytest.raises(LLMUnavailable, match="no such model"), breaker.attempt():
        raise LLMUnavailable("no such model")
    assert breaker.state == "closed"


async def test_a_cancelled_probe_says_nothing_and_the_next_request_is_the_probe(
    autojump_clock: MockClock,
) -> None:
    breaker = make(failures=1)
    fail(breaker)
    await trio.sleep(5)
    with trio.move_on_after(1), breaker.attempt():
        await trio.sleep_forever()
    assert (breaker.state, breaker.is_refusing) == ("half_open", False)
    with pytest.raises(ZeroDivisionError), breaker.attempt():
        raise ZeroDivisionError
    assert (breaker.state, breaker.is_refusing) == ("half_open", False)
    succeed(breaker)
    assert breaker.state == "closed"


@pytest.mark.parametrize("hung_s", [PATIENCE_S, PATIENCE_S * HUNG_SHARE])
async def test_a_probe_that_hangs_until_patience_is_out_has_failed(
    hung_s: float, autojump_clock: MockClock
) -> None:
    """Its caller cancels it then, and may have begun to count a little earlier."""
    breaker = make(failures=1, open_s=5.0)
    fail(breaker)
    await trio.sleep(5)
    with trio.move_on_after(hung_s), breaker.attempt():
        await trio.sleep_forever()
    error = refusal(breaker)
    assert breaker.state == "open"
    assert error.retry_after_s == pytest.approx(10)
    assert error.message.endswith(f"the model was silent for {hung_s:g} s")
    await trio.sleep(10)
    succeed(breaker)
    assert breaker.state == "closed"


async def test_silence_is_no_failure_while_it_is_closed(autojump_clock: MockClock) -> None:
    """The model may have much to do, and answers others meanwhile."""
    breaker = make(failures=1)
    with trio.move_on_after(PATIENCE_S), breaker.attempt():
        await trio.sleep_forever()
    assert breaker.state == "closed"


async def test_the_longer_a_probe_hangs_the_later_others_are_told_to_come_back(
    autojump_clock: MockClock,
) -> None:
    """As if half of its time were over; but not later than it is known to have failed."""
    breaker = make(failures=1, open_s=5.0)
    fail(breaker)
    await trio.sleep(5)
    began, told = trio.current_time(), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hang, breaker)
        await wait_all_tasks_blocked()
        while breaker.state == "half_open":
            retry_after_s = refusal(breaker).retry_after_s
            assert retry_after_s is not None
            told.append((trio.current_time() - began, retry_after_s))
            await trio.sleep(retry_after_s)
            await wait_all_tasks_blocked()
    assert told == [(0, PROBE_RETRY_AFTER_S), (1, 1), (2, 2), (4, 4), (8, 8), (16, 16), (32, 28)]
    assert breaker.state == "open"


async def hang(breaker: CircuitBreaker) -> None:
    with trio.move_on_after(PATIENCE_S), breaker.attempt():
        await trio.sleep_forever()


@pytest.mark.parametrize("outcome", [None, LLMUnavailable.transient("late")])
async def test_what_began_before_a_change_has_no_say_after_it(
    outcome: LLMUnavailable | None, autojump_clock: MockClock
) -> None:
    breaker = make(failures=1)

    async def slow(seconds: float) -> None:
        try:
            with breaker.attempt():
                await trio.sleep(seconds)
                if outcome is not None:
                    raise outcome
        except LLMUnavailable:
            pass

    async with trio.open_nursery() as nursery:
        nursery.start_soon(slow, 3)
        nursery.start_soon(slow, 7)
        await trio.sleep(1)
        fail(breaker)
        await trio.sleep(3)
        assert (breaker.state, breaker.since) == ("open", 1)
        assert refusal(breaker).retry_after_s == pytest.approx(2)
        await trio.sleep(2)
        assert breaker.state == "half_open"
        with breaker.attempt():
            await trio.sleep(3)  # the second slow one ends meanwhile
            assert refusal(breaker).retry_after_s == 3
    assert breaker.state == "closed"


STEPS = st.lists(
    st.sampled_from(["fails", "answers", "is cancelled"]) | st.integers(1, 40).map(float), max_size=40
)


@settings(max_examples=200, deadline=None)
@given(failures=st.integers(1, 4), steps=STEPS)
def test_whatever_happened_it_never_stays_shut(failures: int, steps: list[str | float]) -> None:
    """Refused is only who comes within the time that the last failure set, and a server that answers again
    closes it, at the latest after `MAX_OPEN_S`."""

    async def main() -> None:
        breaker, in_a_row, last_failure = make(failures=failures), 0, -1e9
        for step in steps:
            if isinstance(step, float):
                await trio.sleep(step)
            elif breaker.is_refusing:
                assert in_a_row >= failures
                left_s = refusal(breaker).retry_after_s
                assert left_s is not None
                assert 0 < left_s <= last_failure + MAX_OPEN_S - trio.current_time()
            elif step == "fails":
                fail(breaker)
                in_a_row, last_failure = in_a_row + 1, trio.current_time()
                assert breaker.is_refusing == (in_a_row >= failures)
            elif step == "answers":
                succeed(breaker)
                in_a_row = 0
                assert breaker.state == "closed"
            else:
                with pytest.raises(KeyError), breaker.attempt():
                    raise KeyError
        await trio.sleep(MAX_OPEN_S)
        succeed(breaker)
        assert breaker.state == "closed"

    trio.run(main, clock=MockClock(autojump_threshold=0))
