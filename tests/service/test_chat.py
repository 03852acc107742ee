"""One turn: all of it is on disk, or none of it happened."""

import gc
import math
import weakref
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from persona.errors import (
    InternalError,
    InvalidParams,
    MemoryFailure,
    NotFound,
    Overloaded,
    PersonaError,
    PersonaNotFound,
    PersonaUnavailable,
    RequestCancelled,
)
from persona.llm.backend import Completed
from persona.llm.prompt import MESSAGE_OVERHEAD_TOKENS, estimate_tokens
from persona.service import chat as chat_module
from persona.service.sessions import Place, RunningRequest
from persona.service.turn import MAX_ANSWER_BYTES, MAX_BYTES_PER_TOKEN, Draft, TurnAnswer
from persona.storage import store
from persona.storage.pool import SHIELDED_WRITE_TIMEOUT_S
from tests.service.cuts import CUTS, cut_at_step, take_and_cut
from tests.service.stage import Watcher, open_stage


def said(turns: list[Any]) -> list[tuple[str, str]]:
    return [(turn.role, turn.content) for turn in turns]


async def test_a_turn_is_answered_once_both_lines_are_stored_in_one_write(autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        conversation_id, watcher = await stage.begin(), Watcher()
        before = stage.database.statistics().writes
        answer = await stage.say("Hello", conversation_id, watcher=watcher, client_msg_id="m1")
        assert stage.database.statistics().writes == before + 1
        assert watcher.told == ["started", "Well", " met", "."]
        (line, reply) = await stage.turns(conversation_id)
        assert said([line, reply]) == [("user", "Hello"), ("assistant", "Well met.")]
        assert (line.client_msg_id, line.finish_reason) == (None, None)
        assert reply.client_msg_id == "m1"
        assert reply.parent_id == line.id
        assert reply.created_at - line.created_at == pytest.approx(3)
        assert (answer.turn_id, answer.text, answer.finish_reason) == (reply.id, "Well met.", "stop")
        assert answer.parent_id == line.id
        assert (answer.model, answer.response_type) == ("played:1", "llm")
        assert answer.time_to_first_token_s == pytest.approx(1)
        assert answer.processing_time_s == pytest.approx(3)
        assert answer.tokens_used == estimate_tokens("Well met.")
        assert answer.social_energy < stage.aria.max_social_energy
        assert stage.metrics.value("turns_total", finish_reason="stop") == 1
        assert stage.metrics.value("tokens_generated_total") == answer.tokens_used


async def test_the_models_own_figures_go_before_an_estimate(autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        stage.model.script = (
            "a b c",
            Completed(finish_reason="length", model="big:7b", completion_tokens=42),
        )
        answer = await stage.say("Hello", await stage.begin(), max_tokens=42)
        assert (answer.finish_reason, answer.model, answer.tokens_used) == ("length", "big:7b", 42)
        assert stage.model.options[0].max_tokens == 42


async def test_how_the_persona_is_goes_to_disk_with_the_turn(autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        conversation_id = await stage.begin()
        writes = stage.database.statistics().writes
        await stage.say("Hello", conversation_id)
        assert stage.database.statistics().writes == writes + 1
        assert await stage.database.read(store.load_states) == [stage.personas.state(stage.aria)]


# Cuts: what was said is kept under its reason, and a turn that said nothing leaves no trace.


@pytest.mark.parametrize("how", CUTS)
async def test_a_turn_cut_in_the_middle_is_saved_with_what_there_is(
    how: str, autojump_clock: MockClock
) -> None:
    cut = CUTS[how]
    async with open_stage(first_token_timeout_s=5.0) as stage:
        conversation_id = await stage.begin()
        error = await take_and_cut(stage, how, conversation_id, mute=False)
        assert trio.current_time() == (7 if how == "silence" else 2.5)
        turns = await stage.turns(conversation_id)
        assert said(turns) == [("user", "Hello"), ("assistant", "Well met")]
        assert turns[1].finish_reason == cut.finish_reason
        assert stage.metrics.value("turns_total", finish_reason=cut.finish_reason) == 1
        assert stage.metrics.value("turns_total", finish_reason="stop") == 0
        assert stage.model.running == stage.scheduler.running == 0
        if cut.error is None:
            assert error is None
            return
        assert type(error) is cut.error
        assert error.details == {
            "partial_response": "Well met",
            "turn_id": turns[1].id,
            "finish_reason": cut.finish_reason,
        }


@pytest.mark.parametrize("how", CUTS)
async def test_a_turn_cut_before_its_first_token_leaves_no_trace(how: str, autojump_clock: MockClock) -> None:
    async with open_stage(first_token_timeout_s=5.0) as stage:
        conversation_id, rested = await stage.begin(), stage.personas.state(stage.aria).social_energy
        writes = stage.database.statistics().writes
        error = await take_and_cut(stage, how, conversation_id, mute=True)
        assert (type(error) if error else None) == CUTS[how].error
        assert error is None or error.details is None
        assert stage.database.statistics().writes == writes
        assert stage.personas.state(stage.aria).social_energy == rested
        assert stage.model.running == stage.scheduler.running == stage.background.queued == 0
        stage.model.script = ("Here",)
        assert (await stage.say("Hello", conversation_id, client_msg_id="again")).text == "Here"


@pytest.mark.parametrize(
    ("line", "error"),
    [("x" * 100_000, InvalidParams), ("Hello", Overloaded), ("Hello", PersonaUnavailable)],
)
async def test_what_cannot_begin_is_refused_and_nothing_stays_taken(
    line: str, error: type[PersonaError], autojump_clock: MockClock
) -> None:
    async with open_stage(slots=1, max_queue=1) as stage, trio.open_nursery() as nursery:
        conversation_id, watcher = await stage.begin(), Watcher()
        if error is Overloaded:
            for _ in range(2):
                nursery.start_soon(stage.say, "Hello", await stage.begin())
            await wait_all_tasks_blocked()
        if error is PersonaUnavailable:
            stage.personas.record_turn(stage.aria, line="", tokens_used=10**6, took_s=0, talked_s=0)
        with pytest.raises(error) as caught:
            await stage.say(line, conversation_id, watcher=watcher)
        assert caught.value.details is None
        # All but the model's queue is known before anything began.
        assert watcher.told == (["started"] if error is Overloaded else [])
        await trio.sleep(100)
        assert await stage.turns(conversation_id) == []
        assert (await stage.say("Hello", conversation_id)).text == "Well met."


@pytest.mark.parametrize("crowded", [False, True])
@pytest.mark.parametrize(("how", "kept_as"), [("client", "cancelled"), ("disconnect", "disconnected")])
async def test_a_cut_at_any_checkpoint_leaves_the_house_in_order(
    how: str, kept_as: str, crowded: bool, autojump_clock: MockClock
) -> None:
    """Whichever wait it falls in: nothing stays taken, turns are stored in pairs, and what the
    client was told is what is stored. `crowded`: somebody stands before it in the conversation's
    line, and the model is busy with others."""
    step, was_cut, kept = 0, True, set()
    while was_cut:
        step += 1
        async with open_stage(slots=1) as stage:
            conversation_id, elsewhere = await stage.begin(), await stage.begin()
            async with trio.open_nursery() as nursery:
                for line, where in [("Before", conversation_id), ("Elsewhere", elsewhere)] * crowded:
                    nursery.start_soon(stage.say, line, where)
                    await wait_all_tasks_blocked()
                was_cut, outcome, heard = await cut_at_step(stage, step, how, conversation_id)
                with trio.fail_after(10):
                    await stage.say("After", conversation_id)
            assert stage.scheduler.running == stage.scheduler.queued == stage.model.running == 0
            turns = await stage.turns(conversation_id)
        pairs = list(zip(turns[::2], turns[1::2], strict=True))
        assert all((line.role, answer.role) == ("user", "assistant") for line, answer in pairs)
        assert all(answer.parent_id == line.id for line, answer in pairs)
        mine = [answer for line, answer in pairs if line.content == "Me"]
        assert len(pairs) == crowded + len(mine) + 1
        assert [answer.content for answer in mine] == ([heard] if heard else [])
        if isinstance(outcome, TurnAnswer):
            assert (outcome.turn_id, outcome.finish_reason) == (mine[0].id, "stop")
        elif isinstance(outcome, RequestCancelled):
            assert (outcome.details or {}).get("partial_response", "") == heard
        kept.add(mine[0].finish_reason if mine else None)
    assert kept == {None, kept_as, "stop"}
    assert step > 10


# Saving


@pytest.mark.parametrize("how", ["cancelled", "the model is silent"])
async def test_a_turn_that_was_cut_does_not_wait_for_the_garbage_collector(
    how: str, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    drafts: list[weakref.ref[Draft]] = []

    def make(**fields: Any) -> Draft:
        draft = Draft(**fields)
        drafts.append(weakref.ref(draft))
        return draft

    monkeypatch.setattr(chat_module, "Draft", make)
    async with open_stage() as stage, trio.open_nursery() as nursery:
        conversation_id, running = await stage.begin(), RunningRequest(id=1, method="m")
        if how == "cancelled":
            nursery.start_soon(cancel_at, 1.5, running)
        else:
            stage.model.script = ("Well", math.inf)
        gc.disable()
        try:
            with suppress(PersonaError):
                await stage.say("Hello", conversation_id, running=running)
            await trio.lowlevel.checkpoint()
            assert [draft() for draft in drafts] == [None]
        finally:
            gc.enable()


async def cancel_at(seconds: float, running: RunningRequest) -> None:
    await trio.sleep(seconds)
    running.cancel("client")


async def test_a_save_is_finished_though_the_client_leaves(autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        conversation_id = await stage.begin()
        stage.disk.write_s = 5.0
        with trio.move_on_after(4):  # the answer is complete at 3, and saved at 8
            await stage.say("Hello", conversation_id)
        assert trio.current_time() == 8
        assert [turn.finish_reason for turn in await stage.turns(conversation_id)] == [None, "stop"]


@pytest.mark.parametrize("leaves_at", [2.5, 4.0, math.inf])
async def test_a_disk_that_is_stuck_holds_nobody_up_for_long(
    leaves_at: float, autojump_clock: MockClock
) -> None:
    async with open_stage() as stage:
        conversation_id = await stage.begin()
        stage.disk.write_s = math.inf
        with trio.CancelScope(deadline=leaves_at), pytest.raises(MemoryFailure) as caught:
            await stage.say("Hello", conversation_id)
        assert trio.current_time() == min(leaves_at, 3) + SHIELDED_WRITE_TIMEOUT_S
        assert await stage.turns(conversation_id) == []
        if leaves_at == math.inf:
            assert caught.value.retry_after_s == SHIELDED_WRITE_TIMEOUT_S
        stage.disk.write_s = 0.0
        assert (await stage.say("Hello", conversation_id)).text == "Well met."


@pytest.mark.parametrize(("whom", "error"), [("persona", PersonaNotFound), ("conversation", NotFound)])
async def test_what_is_gone_when_the_answer_comes_is_said(
    whom: str, error: type[PersonaError], autojump_clock: MockClock
) -> None:
    async with open_stage() as stage, trio.open_nursery() as nursery:
        aria, conversation_id = stage.aria, await stage.begin()
        if whom == "persona":

            async def delete() -> None:
                await trio.sleep(1.5)
                await stage.personas.delete(aria)

            nursery.start_soon(delete)
        with pytest.raises(error):
            await stage.say("Hello", conversation_id if whom == "persona" else "nowhere", persona=aria)
        # At once; and a conversation that is not there is no reason to ask the model.
        assert trio.current_time() == (1.5 if whom == "persona" else 0)
        assert stage.model.running == stage.scheduler.running == 0


async def test_a_persona_deleted_before_the_model_is_asked_is_said(autojump_clock: MockClock) -> None:
    async with open_stage(slots=1) as stage, trio.open_nursery() as nursery:
        aria, kira = stage.aria, stage.personas.find("kira")
        conversation_id = await stage.begin()
        elsewhere = await stage.conversations.current(stage.session(), kira)
        nursery.start_soon(lambda: stage.say("busy", elsewhere, persona=kira))
        await wait_all_tasks_blocked()
        nursery.start_soon(stage.personas.delete, aria)
        with pytest.raises(PersonaNotFound):
            await stage.say("Hello", conversation_id, persona=aria)
        assert len(stage.model.asked) == 1


@pytest.mark.parametrize("mute", [False, True])
async def test_a_bug_of_a_backend_ends_a_turn_as_any_fault_of_the_model(
    mute: bool, autojump_clock: MockClock
) -> None:
    async with open_stage() as stage:
        conversation_id = await stage.begin()
        stage.model.script = (*(() if mute else ("Well",)), ZeroDivisionError("a bug"))
        with pytest.raises(InternalError) as caught:
            await stage.say("Hello", conversation_id)
        assert caught.value.details is not None
        assert caught.value.details.pop("error_id")
        turns = await stage.turns(conversation_id)
        assert said(turns) == ([] if mute else [("user", "Hello"), ("assistant", "Well")])
        expected = (
            {}
            if mute
            else {
                "partial_response": "Well",
                "turn_id": turns[1].id,
                "finish_reason": "error",
            }
        )
        assert caught.value.details == expected
        assert stage.scheduler.running == stage.model.running == 0


async def test_a_backend_with_a_nursery_of_its_own_may_be_cut(autojump_clock: MockClock) -> None:
    """Its cancellation comes in a group."""
    async with open_stage() as stage:
        conversation_id = await stage.begin()
        generate = stage.model.generate

        @asynccontextmanager
        async def in_a_nursery(messages: Any, options: Any) -> AsyncIterator[Any]:
            async with trio.open_nursery() as nursery, generate(messages, options) as events:
                nursery.start_soon(trio.sleep_forever)
                yield events
                nursery.cancel_scope.cancel()

        stage.model.generate = in_a_nursery  # type: ignore[method-assign]
        await take_and_cut(stage, "disconnect", conversation_id, mute=False)
        assert [turn.finish_reason for turn in await stage.turns(conversation_id)] == [None, "disconnected"]


# The line of a conversation, and what the model is asked


async def test_turns_of_one_conversation_are_taken_in_order_and_others_beside_them(
    autojump_clock: MockClock,
) -> None:
    async with open_stage(slots=2) as stage:
        mine, other, ended = await stage.begin(), await stage.begin(), []

        async def send(line: str, conversation_id: str) -> None:
            place = Place(None)
            running = RunningRequest(id=line, method="m", order=place)
            nursery.start_soon(talk, line, conversation_id, running)
            # Placed as soon as it stands in the line, long before its turn comes.
            with trio.fail_after(0.01):
                await place.taken.wait()

        async def talk(line: str, conversation_id: str, running: RunningRequest) -> None:
            await stage.say(line, conversation_id, running=running)
            ended.append((line, trio.current_time()))

        async with trio.open_nursery() as nursery:
            for number in "123":
                await send(number, mine)
            await send("beside", other)
        assert sorted(ended, key=lambda e: (e[1], e[0])) == [("1", 3), ("beside", 3), ("2", 6), ("3", 9)]
        assert [turn.content for turn in await stage.turns(mine)][::2] == ["1", "2", "3"]
        contents = [message.content for message in stage.model.asked[-1][1:]]
        assert contents == ["1", "Well met.", "2", "Well met.", "3"]


async def test_only_the_newest_turns_that_fit_go_into_the_prompt(autojump_clock: MockClock) -> None:
    async with open_stage(context_tokens=1200, recovery_s=0) as stage:
        conversation_id = await stage.begin()
        stage.model.script = ("b" * 400,)
        for number in range(12):
            await stage.say(f"{number:02}" + "a" * 398, conversation_id, max_tokens=200)
        history = stage.model.asked[-1][1:-1]
        budget = sum(
            estimate_tokens(message.content) + MESSAGE_OVERHEAD_TOKENS for message in stage.model.asked[-1]
        )
        assert budget <= 1200 - 200 < budget + 2 * (100 + MESSAGE_OVERHEAD_TOKENS)
        assert [message.role for message in history] == ["user", "assistant"] * (len(history) // 2)
        assert history[0].content[:2] == f"{11 - len(history) // 2:02}"


async def test_what_a_turn_waits_is_not_charged_as_talk(autojump_clock: MockClock) -> None:
    async with open_stage(slots=1, max_queue=64) as stage:
        conversation_id, answers = await stage.begin(), list[TurnAnswer]()

        async def say(number: int) -> None:
            answers.append(await stage.say(str(number), conversation_id, watcher=Watcher()))

        async with trio.open_nursery() as nursery:
            for number in range(60):  # the last waits for three minutes
                nursery.start_soon(say, number)
        # A second of talk a second, and as much recovered meanwhile.
        assert {round(answer.available_time_s, 1) for answer in answers} == {stage.aria.max_available_time_s}
        assert max(answer.processing_time_s for answer in answers) == pytest.approx(180)


@pytest.mark.parametrize(
    ("script", "max_tokens", "text"),
    [
        (("x",) * 1000, 3, "xxx"),
        (("x" * 1000,) * 1000, 3, "x" * 3 * MAX_BYTES_PER_TOKEN),
        # What is not cut between two bytes of a letter is a byte shorter.
        (("a", "é" * 1000), 2, "a" + "é" * (MAX_BYTES_PER_TOKEN - 1)),
        (("x" * 1_000_000,) * 2, 32_768, "x" * MAX_ANSWER_BYTES),
    ],
)
async def test_a_model_that_does_not_stop_is_cut(
    script: tuple[str, ...], max_tokens: int, text: str, autojump_clock: MockClock
) -> None:
    async with open_stage(context_tokens=100_000, recovery_s=0) as stage:
        stage.model.script, watcher = script, Watcher()
        answer = await stage.say("Hello", await stage.begin(), max_tokens=max_tokens, watcher=watcher)
        assert (answer.text, answer.finish_reason, answer.model) == (text, "length", "played:1")
        assert watcher.heard == text
        assert answer.tokens_used <= max_tokens
        assert stage.model.running == 0


async def test_an_answer_of_just_the_budget_is_whole(autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        stage.model.script = ("x",) * 3
        answer = await stage.say("Hello", await stage.begin(), max_tokens=3)
        assert (answer.text, answer.finish_reason) == ("xxx", "stop")
