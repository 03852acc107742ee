"""What no longer fits is summed up, once, by the model."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from persona.errors import LLMUnavailable
from persona.llm.backend import Message
from persona.llm.prompt import EARLIER, SUMMARISE, estimate_tokens, summary_room
from persona.service.background import Importance
from persona.service.summaries import MAX_SUMMARY_S
from persona.storage.summaries import Summary, find_summary
from tests.service.stage import Stage, open_stage

CONTEXT_TOKENS = 1024
LINE = "word " * 40  # some fifty tokens; with its answer, eight or so of them fit


@asynccontextmanager
async def talkative(**options: Any) -> AsyncIterator[tuple[Stage, str]]:
    """A stage whose background works, and a conversation on it."""
    async with open_stage(context_tokens=CONTEXT_TOKENS, **options) as stage, trio.open_nursery() as nursery:
        await nursery.start(stage.background.run)
        stage.model.script = ("It is so.",)
        yield stage, await stage.begin()
        nursery.cancel_scope.cancel()


async def talk(stage: Stage, conversation_id: str, times: int) -> None:
    said = len(await stage.turns(conversation_id)) // 2
    for number in range(said, said + times):
        await stage.say(f"line {number:03d} {LINE}", conversation_id)
        await wait_all_tasks_blocked()


def summaries_asked(stage: Stage) -> list[tuple[Message, ...]]:
    return [messages for messages in stage.model.asked if messages[0].content == SUMMARISE]


async def summary_of(stage: Stage, conversation_id: str) -> Summary | None:
    leaf_id = (await stage.turns(conversation_id))[-1].id
    return await stage.database.read(lambda conn: find_summary(conn, conversation_id, leaf_id))


async def test_while_everything_fits_there_is_none(autojump_clock: MockClock) -> None:
    async with talkative() as (stage, conversation_id):
        await talk(stage, conversation_id, 5)
        assert summaries_asked(stage) == []
        assert await summary_of(stage, conversation_id) is None


async def test_what_no_longer_fits_is_told_in_short(autojump_clock: MockClock) -> None:
    async with talkative() as (stage, conversation_id):
        while not summaries_asked(stage):
            stage.model.script = ("They met.",)
            await talk(stage, conversation_id, 1)
        (asked,) = summaries_asked(stage)
        # From the first line on, and not what still fits.
        assert asked[1].role == "user"
        assert asked[1].content.startswith(f"User: line 000 {LINE}")
        found = await summary_of(stage, conversation_id)
        assert found is not None
        assert found.content == "They met."
        answer = await stage.say("And now?", conversation_id)
        prompt = stage.model.asked[-1]
        assert prompt[1].role == "user"
        assert prompt[1].content.startswith(EARLIER.format("They met."))
        covered = [turn for turn in await stage.turns(conversation_id) if turn.id <= found.turn_id]
        text = "\n".join(message.content for message in prompt)
        assert not any(turn.content in text for turn in covered if turn.role == "user")
        rest = [turn for turn in await stage.turns(conversation_id) if turn.id > found.turn_id][:-2]
        assert all(turn.content in text for turn in rest)
        assert answer.context is not None
        assert (answer.context["turns"], answer.context["summary"]) == (len(rest), True)


async def test_each_turn_is_summed_up_once_and_no_prompt_is_too_large(autojump_clock: MockClock) -> None:
    async with talkative() as (stage, conversation_id):
        stage.model.script = ("So it went.",)
        await talk(stage, conversation_id, 60)
        asked = [messages[1].content for messages in summaries_asked(stage)]
        assert 2 < len(asked) < 25  # half of the room must be full again before the next one
        for number in range(30):
            assert sum(f"User: line {number:03d} {LINE.strip()}" in text for text in asked) == 1
        # Each takes in the one before.
        assert all("So it went." in text for text in asked[1:])
        leaf = (await stage.turns(conversation_id))[-1]
        assert leaf.details is not None
        assert leaf.details["context"]["estimated_tokens"] <= CONTEXT_TOKENS - 100


async def test_a_long_conversation_of_before_is_caught_up_with(
    autojump_clock: MockClock,
) -> None:
    async with talkative() as (stage, conversation_id):
        provider, stage.model.provider = stage.model.provider, "scripted"
        await talk(stage, conversation_id, 100)
        assert summaries_asked(stage) == []  # a script sums nothing up; what is old is left out
        stage.model.provider = provider
        seen = -1
        while len(summaries_asked(stage)) > seen:
            seen = len(summaries_asked(stage))
            await stage.say("?", conversation_id)
            await wait_all_tasks_blocked()
        found = await summary_of(stage, conversation_id)
        assert found is not None
        late = [turn for turn in await stage.turns(conversation_id) if turn.id > found.turn_id]
        assert len(late) < 40


async def test_other_branches_have_their_own(autojump_clock: MockClock) -> None:
    async with talkative() as (stage, conversation_id):
        stage.model.script = ("So it went.",)
        await talk(stage, conversation_id, 20)
        first = (await stage.turns(conversation_id))[0]
        found = await summary_of(stage, conversation_id)
        assert found is not None
        # The first line said differently: nothing of what followed belongs there.
        await stage.say("Anew", conversation_id, instead_of=first.id)
        assert len(stage.model.asked[-1]) == 2
        assert await summary_of(stage, conversation_id) is None


@pytest.mark.parametrize("trouble", ["gone", "silent", "empty", "endless"])
async def test_a_model_in_trouble_costs_a_summary_and_nothing_else(
    trouble: str, autojump_clock: MockClock
) -> None:
    async with talkative() as (stage, conversation_id):
        while not summaries_asked(stage):
            stage.model.script = {
                "gone": ("half", LLMUnavailable("gone")),
                "silent": (MAX_SUMMARY_S + 1, "late"),
                "empty": (" ",),
                "endless": ("x" * 1000,) * 100,
            }[trouble]
            played, stage.model.script = stage.model.script, ("Well.",)
            turn = await stage.say(LINE, conversation_id)
            assert turn.finish_reason == "stop"
            stage.model.script = played
            await wait_all_tasks_blocked()
        await trio.sleep(MAX_SUMMARY_S + 2)
        found = await summary_of(stage, conversation_id)
        if trouble == "endless":
            assert found is not None
            # What fits, and no more.
            assert estimate_tokens(found.content) == summary_room(CONTEXT_TOKENS - 300)
        else:
            assert found is None
        assert stage.scheduler.running == 0
        # The next turn tries again.
        stage.model.script = ("They met.",)
        for _ in range(20):
            await talk(stage, conversation_id, 1)
        found = await summary_of(stage, conversation_id)
        assert found is not None
        assert found.content == "They met."


async def test_a_model_that_says_nothing_of_it_holds_its_slot_no_longer_than_for_a_chat(
    autojump_clock: MockClock,
) -> None:
    async with talkative(slots=1, first_token_timeout_s=2) as (stage, conversation_id):
        while not summaries_asked(stage):
            stage.model.script = ("Well.",)
            await stage.say(LINE, conversation_id)
            stage.model.script = (MAX_SUMMARY_S, "late")
            await wait_all_tasks_blocked()
        began_at = trio.current_time()
        stage.model.script = ("Well.",)
        await stage.say(LINE, conversation_id)
        assert trio.current_time() - began_at == pytest.approx(2)


async def test_one_that_gave_way_to_more_important_work_is_made_later(autojump_clock: MockClock) -> None:
    async with open_stage(context_tokens=CONTEXT_TOKENS) as stage, trio.open_nursery() as nursery:
        conversation_id = await stage.begin()
        stage.model.script = ("It is so.",)
        while not stage.background.queued:
            await stage.say(LINE, conversation_id)

        async def other() -> None: ...

        while not stage.metrics.value("background_dropped_total", job="summarise"):
            stage.background.submit("other", other, Importance.NORMAL)
        await nursery.start(stage.background.run)
        await talk(stage, conversation_id, 1)
        assert len(summaries_asked(stage)) == 1
        nursery.cancel_scope.cancel()


async def test_one_answer_that_fits_no_prompt_bars_nobody(autojump_clock: MockClock) -> None:
    async with talkative() as (stage, conversation_id):
        stage.model.script = ("It is so.",)
        await talk(stage, conversation_id, 3)
        huge = tuple("w" * 30 + " " for _ in range(100))
        stage.model.script = huge * 2
        await stage.say(LINE, conversation_id, max_tokens=300)
        stage.model.script = ("It is so.",)
        await talk(stage, conversation_id, 30)
        found = await summary_of(stage, conversation_id)
        assert found is not None
        assert len([turn for turn in await stage.turns(conversation_id) if turn.id > found.turn_id]) < 20


async def test_it_takes_a_slot_of_the_model_like_anybody(autojump_clock: MockClock) -> None:
    async with talkative(slots=1) as (stage, conversation_id):
        while not summaries_asked(stage):
            stage.model.script = ("Well.",)
            await stage.say(LINE, conversation_id)
            stage.model.script = (5.0, "They met.")
            await wait_all_tasks_blocked()
        assert stage.scheduler.running == 1
        # And one at a time for a conversation, whatever is said meanwhile.
        started_at = trio.current_time()
        stage.model.script = ("Well.",)
        await stage.say(LINE, conversation_id)
        assert trio.current_time() - started_at == 5
        assert len(summaries_asked(stage)) == 1


async def test_a_conversation_deleted_meanwhile_stays_deleted(autojump_clock: MockClock) -> None:
    async with talkative() as (stage, conversation_id):
        stage.model.script = ("Well.",)
        while not summaries_asked(stage):
            stage.model.script = ("Well.",)
            await stage.say(LINE, conversation_id)
            stage.model.script = (5.0, "They met.")
            await wait_all_tasks_blocked()
        await stage.conversations.delete(conversation_id)
        await trio.sleep(6)
        assert (
            await stage.database.read(
                lambda conn: conn.execute("SELECT count(*) FROM summaries").fetchone()[0]
            )
            == 0
        )
