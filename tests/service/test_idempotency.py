"""One `client_msg_id`, one turn: what is sent again is not said again."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from persona.errors import Conflict, RequestCancelled
from persona.llm.backend import GenerateOptions
from persona.service.sessions import RunningRequest
from persona.service.turn import TurnAnswer, TurnRequest
from tests.service.cuts import CUTS, take_and_cut
from tests.service.stage import Watcher, open_stage
from tests.service.test_chat import said
from tests.service.test_turn import places, two_turns

KINDS: dict[str, Any] = {
    "chat": {"line": "3"},
    "edit": {"line": "2!", "instead_of": "second line"},
    "regenerate": {"line": None, "instead_of": "second answer"},
    "regenerate the last": {"line": None},
}


def of_kind(kind: str, second: TurnAnswer) -> dict[str, Any]:
    ids = {"second line": second.parent_id, "second answer": second.turn_id}
    return {name: ids.get(value, value) for name, value in KINDS[kind].items()}


@pytest.mark.parametrize("kind", KINDS)
async def test_the_same_request_again_gets_what_was_stored(kind: str, autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        conversation_id, _, second = await two_turns(stage)
        asked_for = of_kind(kind, second)
        first = await stage.say(conversation_id=conversation_id, client_msg_id="m", **asked_for)
        stage.model.script = ("something else",)
        prompts, watcher = len(stage.model.asked), Watcher()
        again = await stage.say(
            conversation_id=conversation_id, client_msg_id="m", watcher=watcher, **asked_for
        )
        assert again == first
        # As one piece, and then its end: also where it is streamed.
        assert watcher.told == ["started", first.text]
        assert len(stage.model.asked) == prompts
        # It is given again from whatever branch is current by then, and changes none.
        await stage.say("elsewhere", conversation_id, instead_of=second.parent_id)
        lines = await stage.lines(conversation_id)
        assert (
            await stage.say(conversation_id=conversation_id, client_msg_id="m", **asked_for)
        ).turn_id == first.turn_id
        assert await stage.lines(conversation_id) == lines


@pytest.mark.parametrize("kind", KINDS)
async def test_the_same_request_sent_while_the_first_runs_waits_for_it(
    kind: str, autojump_clock: MockClock
) -> None:
    async with open_stage() as stage:
        conversation_id, _, second = await two_turns(stage)
        stage.model.script = (1.0, "Well", 1.0, " met")
        answers: list[TurnAnswer] = []
        prompts = len(stage.model.asked)

        async def send() -> None:
            answers.append(
                await stage.say(conversation_id=conversation_id, client_msg_id="m", **of_kind(kind, second))
            )

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(send)
        assert answers[0] == answers[1] == answers[2]
        assert len(stage.model.asked) == prompts + 1


async def test_the_one_that_waits_takes_over_when_the_first_is_cut(autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        conversation_id, running = await stage.begin(), RunningRequest(id=1, method="m")
        stage.model.script = (1.0, "Well", 1.0, " met")
        outcomes: list[Any] = []

        async def send(mine: RunningRequest | None) -> None:
            try:
                answer = await stage.say("Hello", conversation_id, client_msg_id="m", running=mine)
                outcomes.append(answer.text)
            except RequestCancelled as exc:
                outcomes.append(exc.details)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send, running)
            await wait_all_tasks_blocked()
            nursery.start_soon(send, None)
            await trio.sleep(1.5)
            running.cancel("client")
        assert outcomes[0]["partial_response"] == "Well"
        assert outcomes[1] == "Well met"
        assert await stage.lines(conversation_id) == ["Hello", "Well met"]
        assert await places(stage, conversation_id) == [(1, 1), (2, 2)]


BODY: dict[str, Any] = {"line": "2!", "max_tokens": 100}
OTHER_BODIES: dict[str, dict[str, Any]] = {
    "line": {"line": "2?"},
    "another answer": {"line": None},
    "turn": {"instead_of": "first"},
    "no turn": {"instead_of": None},
    "token_budget": {"max_tokens": 101},
    "temperature": {"temperature": 0.5},
    "top_p": {"top_p": 0.5},
    "stop": {"stop": ("x",)},
    "seed": {"seed": 0},
    "model": {"model": "played:2"},
}


@pytest.mark.parametrize("what", OTHER_BODIES)
async def test_another_body_under_the_same_id_is_a_conflict(what: str, autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        conversation_id, first, second = await two_turns(stage)
        body = {**BODY, "instead_of": second.parent_id}
        answer = await stage.say(conversation_id=conversation_id, client_msg_id="m", **body)
        other = {**body, **OTHER_BODIES[what]}
        if other["instead_of"] == "first":
            other["instead_of"] = first.parent_id
        with pytest.raises(Conflict) as caught:
            await stage.say(conversation_id=conversation_id, client_msg_id="m", **other)
        assert caught.value.field == "client_msg_id"
        assert await stage.say(conversation_id=conversation_id, client_msg_id="m", **body) == answer


@pytest.mark.parametrize("how", CUTS)
async def test_another_body_is_a_conflict_also_where_the_answer_was_cut(
    how: str, autojump_clock: MockClock
) -> None:
    async with open_stage(first_token_timeout_s=5.0) as stage:
        conversation_id = await stage.begin()
        await take_and_cut(stage, how, conversation_id, mute=False, client_msg_id="m1")
        with pytest.raises(Conflict):
            await stage.say("Hello", conversation_id, client_msg_id="m1", max_tokens=7)


def test_what_a_hash_is_of_does_not_change_with_options_that_come_later() -> None:
    request = TurnRequest(
        persona=None,  # type: ignore[arg-type]
        conversation_id="c",
        user="u",
        party="p",
        line="Hello",
        options=GenerateOptions(max_tokens=500),
        client_msg_id="m",
    )
    # Written down in databases: of {"line":"Hello","max_tokens":500}.
    assert request.body_hash().hex() == "ef8c975b036bf9c1818b6d84cce26761"


@pytest.mark.parametrize("kind", KINDS)
async def test_a_cut_request_sent_again_is_answered_beside_the_part_there_was(
    kind: str, autojump_clock: MockClock
) -> None:
    async with open_stage() as stage:
        conversation_id, _, second = await two_turns(stage)
        asked_for = of_kind(kind, second)
        await take_and_cut(stage, "client", conversation_id, mute=False, client_msg_id="m", **asked_for)
        stage.model.script = ("Whole",)
        answer = await stage.say(conversation_id=conversation_id, client_msg_id="m", **asked_for)
        lines = await stage.lines(conversation_id)
        assert lines[-2:] == [asked_for["line"] or "2", "Whole"]
        index = (await places(stage, conversation_id))[-1]
        assert index == ((3, 3) if kind.startswith("regenerate") else (2, 2))
        assert await stage.say(conversation_id=conversation_id, client_msg_id="m", **asked_for) == answer


async def test_a_late_repeat_does_not_take_the_user_away_from_where_it_is(autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        conversation_id = await stage.begin()
        await take_and_cut(stage, "client", conversation_id, mute=False, client_msg_id="m")
        stage.model.script = ("two",)
        await stage.say("2", conversation_id)
        stage.model.script = ("Whole",)
        await stage.say("Hello", conversation_id, client_msg_id="m")
        assert await stage.lines(conversation_id) == ["Hello", "Well met", "2", "two"]
        assert (await places(stage, conversation_id))[1] == (1, 2)


async def test_a_line_sent_again_gets_the_answer_given_before(autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        conversation_id, watcher = await stage.begin(), Watcher()
        first = await stage.say("Hello", conversation_id, client_msg_id="m1")
        # Not even a persona that rests has to think about it.
        stage.personas.record_turn(stage.aria, line="", tokens_used=10**6, took_s=0, talked_s=0)
        assert await stage.say("Hello", conversation_id, client_msg_id="m1", watcher=watcher) == first
        assert watcher.told == ["started", "Well met."]
        assert len(stage.model.asked) == 1
        with pytest.raises(Conflict) as caught:
            await stage.say("Goodbye", conversation_id, client_msg_id="m1")
        assert caught.value.field == "client_msg_id"
        assert len(await stage.turns(conversation_id)) == 2


@pytest.mark.parametrize("how", CUTS)
async def test_a_line_whose_answer_was_cut_is_answered_anew(how: str, autojump_clock: MockClock) -> None:
    async with open_stage(first_token_timeout_s=5.0) as stage:
        conversation_id = await stage.begin()
        await take_and_cut(stage, how, conversation_id, mute=False, client_msg_id="m1")
        stage.model.script = ("Well met, again.",)
        answer = await stage.say("Hello", conversation_id, client_msg_id="m1")
        assert (answer.text, answer.finish_reason) == ("Well met, again.", "stop")
        # It is a sibling of the one that was cut, and from now on the one to be given.
        page = await stage.conversations.history(conversation_id, limit=9, before=None)
        (line, _), (whole, siblings) = page.turns
        assert said([line, whole]) == [("user", "Hello"), ("assistant", "Well met, again.")]
        assert (siblings.index, siblings.count) == (2, 2)
        assert await stage.say("Hello", conversation_id, client_msg_id="m1") == answer
        assert siblings.previous_id is not None
        await stage.conversations.select(conversation_id, siblings.previous_id)
        assert await stage.lines(conversation_id) == ["Hello", "Well met"]
        assert len(stage.model.asked) == 2


async def test_the_same_id_elsewhere_is_another_line(autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        for line in ("Hello", "Goodbye"):
            await stage.say(line, await stage.begin(), client_msg_id="m1")
        assert len(stage.model.asked) == 2


async def test_a_line_sent_twice_at_once_is_answered_once(autojump_clock: MockClock) -> None:
    answers = []
    async with open_stage() as stage:
        conversation_id = await stage.begin()

        async def send() -> None:
            answers.append(await stage.say("Hello", conversation_id, client_msg_id="m1"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(send)
            nursery.start_soon(send)
        assert answers[0] == answers[1]
        assert len(stage.model.asked) == 1
