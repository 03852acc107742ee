"""Whether the model answers, asked now and then."""

import math

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import MockClock, wait_all_tasks_blocked

from persona.errors import InternalError, LLMUnavailable
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
            await trio.sleep(FIRST_AFTER_S + WATCH_INTERVAL_S + 1)
            with pytest.raises(InternalError) as caught:
                await watch.models()
            nursery.cancel_scope.cancel()
    assert watch.available is False
    assert [(event["event"], event["where"]) for event in events] == [("request_failed", "model watch")] * 3
    assert caught.value.details == {"error_id": events[-1]["error_id"]}


class Asked(PlayedModel):
    """Keeps when it was asked for its models."""

    def __init__(self) -> None:
        super().__init__()
        self.asked_at: list[float] = []

    async def models(self) -> tuple[str, ...]:
        self.asked_at.append(trio.current_time())
        return await super().models()


async def test_all_who_ask_share_one_question(autojump_clock: MockClock) -> None:
    """Whoever began it, and whoever leaves."""
    model, answers = Asked(), []
    model.answers_after_s = 1.0
    watch = ModelWatch(model)

    async def ask() -> None:
        answers.append((await watch.models(), trio.current_time()))

    async with trio.open_nursery() as nursery:
        await nursery.start(watch.run)
        with trio.move_on_after(0.5):
            async with trio.open_nursery() as askers:
                askers.start_soon(watch.models)
                await wait_all_tasks_blocked()
                for _ in range(3):
                    nursery.start_soon(ask)
        await trio.sleep(1)
        assert (answers, model.asked_at) == ([(model.names, 1.0)] * 3, [0.0])
        assert (watch.answered, watch.available) == (True, True)
        # The next one is a new question.
        await ask()
        assert model.asked_at == [0.0, 1.5]
        nursery.cancel_scope.cancel()


async def test_a_server_that_hangs_is_asked_by_one_and_all_are_told(autojump_clock: MockClock) -> None:
    model, told = Asked(), []
    model.answers_after_s = math.inf
    watch = ModelWatch(model)

    async def ask() -> None:
        with pytest.raises(LLMUnavailable, match=f"in {ANSWER_TIMEOUT_S:g} s"):
            await watch.models()
        told.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        await nursery.start(watch.run)
        for _ in range(100):
            nursery.start_soon(ask)
        await trio.sleep(ANSWER_TIMEOUT_S + 0.1)
        assert (told, model.asked_at) == ([ANSWER_TIMEOUT_S] * 100, [0.0])
        assert (watch.answered, watch.available) == (False, None)
        nursery.cancel_scope.cancel()


async def test_questions_of_clients_neither_replace_the_own_ones_nor_count_as_several(
    autojump_clock: MockClock,
) -> None:
    model = Asked()
    model.names = LLMUnavailable("gone")
    watch = ModelWatch(model)
    async with trio.open_nursery() as nursery:
        await nursery.start(watch.run)
        await trio.sleep(0.5)
        for _ in range(14):
            with pytest.raises(LLMUnavailable, match="gone"):
                await watch.models()
            assert watch.available is None
            await trio.sleep(1)
        await trio.sleep(1)
        assert watch.available is False
        own = [FIRST_AFTER_S, FIRST_AFTER_S + WATCH_INTERVAL_S]
        assert model.asked_at == sorted([*(n + 0.5 for n in range(14)), *own])
        nursery.cancel_scope.cancel()
