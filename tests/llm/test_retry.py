"""A backend that is asked again: when, how often, and when not."""

import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing, asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from persona.errors import LLMUnavailable
from persona.llm.backend import Completed, Delta, Event, GenerateOptions, Message
from persona.llm.breaker import CircuitBreaker
from persona.llm.retry import FIRST_PAUSE_S, MAX_PAUSE_S, RetryingBackend
from persona.metrics import Metrics

ASKED = (Message("user", "Hello"),)
OPTIONS = GenerateOptions(max_tokens=9)
END = Completed(finish_reason="stop", model="m")

Step = Event | Exception | float


class Flaky:
    """A model that plays one script a request: events, pauses in seconds, and failures. An `early` failure
    comes on entering."""

    provider = "flaky"
    model = "flaky:1"

    def __init__(self, *scripts: tuple[Step, ...]) -> None:
        self.scripts = list(scripts)
        self.asked_at: list[float] = []
        self.open = 0

    @asynccontextmanager
    async def generate(
        self, messages: tuple[Message, ...], options: GenerateOptions
    ) -> AsyncIterator[AsyncIterator[Event]]:
        assert (messages, options) == (ASKED, OPTIONS)
        self.asked_at.append(trio.current_time())
        script = self.scripts.pop(0)
        self.open += 1
        try:
            if script[:1] and isinstance(script[0], Exception):
                raise script[0]
            async with aclosing(self._events(script)) as events:
                yield events
        finally:
            self.open -= 1

    async def _events(self, script: tuple[Step, ...]) -> AsyncGenerator[Event, None]:
        for step in script:
            if isinstance(step, float):
                await trio.sleep(step)
            elif isinstance(step, Exception):
                raise step
            else:
                await trio.lowlevel.checkpoint()
                yield step

    async def models(self) -> tuple[str, ...]:
        return ("flaky:1",)


def busy(retry_after_s: float | None = None) -> LLMUnavailable:
    return LLMUnavailable.transient("busy", retry_after_s=retry_after_s)


def wrap(
    model: Flaky, *, max_retries: int = 2, failures: int = 99, metrics: Metrics | None = None
) -> tuple[RetryingBackend, CircuitBreaker]:
    metrics = metrics or Metrics()
    breaker = CircuitBreaker(
        failures=failures, open_s=5.0, patience_s=60.0, metrics=metrics, now=trio.current_time
    )
    chance = random.Random(0)
    return RetryingBackend(model, breaker, max_retries=max_retries, metrics=metrics, chance=chance), breaker


async def collect(backend: RetryingBackend) -> list[Event]:
    async with backend.generate(ASKED, OPTIONS) as events:
        return [event async for event in events]


async def test_what_succeeds_is_asked_once_and_passed_on_as_it_comes(autojump_clock: MockClock) -> None:
    model = Flaky((1.0, Delta("a"), 1.0, Delta("b"), END))
    backend, _ = wrap(model)
    async with backend.generate(ASKED, OPTIONS) as events:
        times = [(event, trio.current_time()) async for event in events]
    assert times == [(Delta("a"), 1.0), (Delta("b"), 2.0), (END, 2.0)]
    assert (model.asked_at, model.open) == ([0.0], 0)
    assert (backend.provider, backend.model) == ("flaky", "flaky:1")
    assert await backend.models() == ("flaky:1",)


@pytest.mark.parametrize("first", [(), (0.0,)])
async def test_busy_twice_then_well(first: tuple[Step, ...], autojump_clock: MockClock) -> None:
    """Whether it fails on entering or on waiting for the first event."""
    metrics = Metrics()
    model = Flaky((*first, busy()), (*first, busy()), (Delta("a"), END))
    backend, breaker = wrap(model, metrics=metrics)
    assert await collect(backend) == [Delta("a"), END]
    assert metrics.value("llm_retries_total") == 2
    pauses = [b - a for a, b in zip(model.asked_at, model.asked_at[1:], strict=False)]
    assert len(pauses) == 2
    for n, pause_s in enumerate(pauses):
        assert FIRST_PAUSE_S * 2**n / 2 <= pause_s <= FIRST_PAUSE_S * 2**n
    assert (breaker.state, model.open) == ("closed", 0)


async def test_pauses_are_spread_and_bounded(autojump_clock: MockClock) -> None:
    model = Flaky(*[(busy(),)] * 21)
    backend, _ = wrap(model, max_retries=20)
    with pytest.raises(LLMUnavailable, match="busy"):
        await collect(backend)
    pauses = [b - a for a, b in zip(model.asked_at, model.asked_at[1:], strict=False)]
    assert len(pauses) == 20
    assert all(MAX_PAUSE_S / 2 <= pause_s <= MAX_PAUSE_S for pause_s in pauses[3:])
    assert len(set(pauses[3:])) > 10


@pytest.mark.parametrize("max_retries", [0, 3])
async def test_no_more_retries_than_are_set(max_retries: int, autojump_clock: MockClock) -> None:
    model = Flaky(*[(busy(),)] * 9)
    backend, _ = wrap(model, max_retries=max_retries)
    with pytest.raises(LLMUnavailable, match="busy"):
        await collect(backend)
    assert len(model.asked_at) == max_retries + 1
    assert model.open == 0


@pytest.mark.parametrize(
    ("failure", "error"),
    [
        (LLMUnavailable("no such model"), LLMUnavailable),
        (ZeroDivisionError("a bug"), ZeroDivisionError),
    ],
)
async def test_what_would_fail_again_is_not_asked_again(
    failure: Exception, error: type[Exception], autojump_clock: MockClock
) -> None:
    model = Flaky((failure,), (END,))
    backend, breaker = wrap(model, failures=1)
    with pytest.raises(error):
        await collect(backend)
    assert len(model.asked_at) == 1
    assert breaker.state == "closed"


async def test_never_after_the_first_token(autojump_clock: MockClock) -> None:
    model = Flaky((Delta("a"), busy()), (Delta("b"), END))
    backend, breaker = wrap(model, failures=1)
    seen: list[Event] = []
    with pytest.raises(LLMUnavailable, match="busy"):
        async with backend.generate(ASKED, OPTIONS) as events:
            while True:
                seen.append(await anext(events))
    assert seen == [Delta("a")]
    assert (len(model.asked_at), model.open) == (1, 0)
    # A server that breaks off may have crashed on this very answer; it did answer.
    assert breaker.state == "closed"


async def test_an_error_of_the_callers_is_no_failure_of_the_models(autojump_clock: MockClock) -> None:
    model = Flaky((Delta("a"), END), (END,))
    backend, _ = wrap(model)
    with pytest.raises(LLMUnavailable, match="the caller"):
        async with backend.generate(ASKED, OPTIONS) as events:
            await anext(events)
            raise LLMUnavailable.transient("the caller")
    assert (len(model.asked_at), model.open) == (1, 0)


@pytest.mark.parametrize(("asked_s", "attempts", "waited_s"), [(1.5, 2, 1.5), (7.0, 1, 0.0)])
async def test_a_server_that_says_how_long_is_given_that_or_the_client_is_told(
    asked_s: float, attempts: int, waited_s: float, autojump_clock: MockClock
) -> None:
    model = Flaky((busy(asked_s),), (END,))
    backend, _ = wrap(model)
    if attempts == 1:
        with pytest.raises(LLMUnavailable) as caught:
            await collect(backend)
        assert caught.value.retry_after_s == asked_s
    else:
        assert await collect(backend) == [END]
    assert (len(model.asked_at), trio.current_time()) == (attempts, waited_s)


async def test_a_cancelled_request_is_not_asked_again(autojump_clock: MockClock) -> None:
    model = Flaky((busy(),), (busy(),), (END,))
    backend, breaker = wrap(model)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect, backend)
        await wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    assert trio.current_time() == 0
    await trio.sleep(60)
    assert (len(model.asked_at), model.open) == (1, 0)
    assert breaker.state == "closed"


async def test_cancelling_closes_what_is_open_before_and_after_the_first_event(
    autojump_clock: MockClock,
) -> None:
    for cancelled_at in (0.5, 1.5):
        model = Flaky((1.0, Delta("a"), 1.0, END))
        backend, breaker = wrap(model, failures=1)
        with trio.move_on_after(cancelled_at):
            await collect(backend)
        assert (model.open, breaker.state) == (0, "closed")


async def test_retries_end_when_the_circuit_opens_and_nobody_is_asked_while_it_is_open(
    autojump_clock: MockClock,
) -> None:
    model = Flaky(*[(busy(),)] * 3, (Delta("a"), END))
    backend, breaker = wrap(model, max_retries=20, failures=3)
    # The failure itself, not the circuit's refusal: it says what is wrong.
    with pytest.raises(LLMUnavailable) as caught:
        await collect(backend)
    assert caught.value.message == "busy"
    assert (len(model.asked_at), breaker.state) == (3, "open")
    with pytest.raises(LLMUnavailable) as caught:
        await collect(backend)
    assert caught.value.retry_after_s is not None
    assert len(model.asked_at) == 3
    await trio.sleep(5)
    assert await collect(backend) == [Delta("a"), END]
    assert breaker.state == "closed"


async def test_the_first_token_of_a_probe_closes_the_circuit_long_before_the_answers_end(
    autojump_clock: MockClock,
) -> None:
    model = Flaky((busy(),), (1.0, Delta("a"), 100.0, END), (END,))
    backend, breaker = wrap(model, max_retries=0, failures=1)
    with pytest.raises(LLMUnavailable):
        await collect(backend)
    await trio.sleep(5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(collect, backend)
        await wait_all_tasks_blocked()
        assert (breaker.state, breaker.is_refusing) == ("half_open", True)
        await trio.sleep(1.5)
        assert breaker.state == "closed"
        assert await collect(backend) == [END]
        nursery.cancel_scope.cancel()


async def test_an_answer_without_any_event_is_passed_on_as_it_is(autojump_clock: MockClock) -> None:
    backend, _ = wrap(Flaky(()))
    assert await collect(backend) == []
