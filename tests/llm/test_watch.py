"""Whether the model answers, asked now and then."""

import math

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock

from persona.errors import LLMUnavailable
from persona.llm.watch import ANSWER_TIMEOUT_S, DOWN_AFTER, FIRST_AFTER_S, WATCH_INTERVAL_S, ModelWatch
from tests.service.stage import PlayedModel


async def test_it_is_not_known_before_the_first_answer(autojump_clock: MockClock) -> None:
    model = PlayedModel()
    model.answers_after_s = 1.0
    watch = ModelWatch(model)
    async with trio.open_nursery() as nursery:
        await nursery.start(watch.run)
        await trio.sleep(FIRST_AFTER_S + 0.9)
        assert watch.available is None
        await trio.sleep(0.2)
        assert watch.available is True
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("way", ["refuses", "hangs"])
async def test_it_is_down_when_it_missed_several_and_up_with_the_next_answer(
    way: str, autojump_clock: MockClock
) -> None:
    model = PlayedModel()
    names = model.names
    watch = ModelWatch(model)
    round_s = WATCH_INTERVAL_S + (ANSWER_TIMEOUT_S if way == "hangs" else 0)
    async with trio.open_nursery() as nursery:
        await nursery.start(watch.run)
        await trio.sleep(FIRST_AFTER_S + 1)
        if way == "refuses":
            model.names = LLMUnavailable("gone")
        else:
            model.answers_after_s = math.inf
        await trio.sleep(WATCH_INTERVAL_S + (DOWN_AFTER - 2) * round_s + ANSWER_TIMEOUT_S)
        assert watch.available is True
        await trio.sleep(round_s)
        assert watch.available is False
        model.names, model.answers_after_s = names, 0.0
        await trio.sleep(round_s)
        assert watch.available is True
        nursery.cancel_scope.cancel()


async def test_a_bug_in_the_backend_is_logged_and_no_end(autojump_clock: MockClock) -> None:
    class Broken(PlayedModel):
        async def models(self) -> tuple[str, ...]:
            await trio.lowlevel.checkpoint()
            raise KeyError("secret")

    watch = ModelWatch(Broken())
    with capture_logs() as events:
        async with trio.open_nursery() as nursery:
            await nursery.start(watch.run)
            await trio.sleep(FIRST_AFTER_S + 2 * WATCH_INTERVAL_S + 1)
            nursery.cancel_scope.cancel()
    assert watch.available is False
    assert [event["event"] for event in events] == ["model_watch_failed"] * 3
