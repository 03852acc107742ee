"""The tree as turns make it: siblings beside what was said."""

import math

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from persona.errors import InvalidParams, NotFound, PersonaError, PersonaNotFound
from persona.service.turn import TurnAnswer
from tests.service.cuts import CUTS, cut_at_step, take_and_cut
from tests.service.stage import Stage, Watcher, open_stage


async def two_turns(stage: Stage) -> tuple[str, TurnAnswer, TurnAnswer]:
    """A conversation in which "1" and "2" were said and answered with "one" and "two"."""
    conversation_id = await stage.begin()
    stage.model.script = ("one",)
    first = await stage.say("1", conversation_id)
    stage.model.script = ("two",)
    return conversation_id, first, await stage.say("2", conversation_id)


def asked(stage: Stage) -> list[str]:
    """The model's last prompt without the system message."""
    return [message.content for message in stage.model.asked[-1][1:]]


async def places(stage: Stage, conversation_id: str) -> list[tuple[int, int]]:
    page = await stage.conversations.history(conversation_id, limit=200, before=None)
    return [(siblings.index, siblings.count) for _, siblings in page.turns]


# Another answer


@pytest.mark.parametrize("named", ["nothing", "the answer", "the line"])
async def test_another_answer_is_a_sibling_of_the_first(named: str, autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        conversation_id, _, second = await two_turns(stage)
        turn_id = {"nothing": None, "the answer": second.turn_id, "the line": second.parent_id}[named]
        stage.model.script = ("another two",)
        watcher = Watcher()
        writes = stage.database.statistics().writes
        answer = await stage.say(None, conversation_id, instead_of=turn_id, watcher=watcher)
        assert stage.database.statistics().writes == writes + 1
        assert watcher.told == ["started", "another two"]
        # The model is asked as for the first answer, and told nothing of it.
        assert asked(stage) == ["1", "one", "2"]
        assert (answer.text, answer.parent_id) == ("another two", second.parent_id)
        assert await stage.lines(conversation_id) == ["1", "one", "2", "another two"]
        assert await places(stage, conversation_id) == [(1, 1), (1, 1), (1, 1), (2, 2)]
        await stage.conversations.select(conversation_id, second.turn_id)
        assert await stage.lines(conversation_id) == ["1", "one", "2", "two"]


async def test_another_answer_further_up_leaves_what_followed_on_a_branch_beside(
    autojump_clock: MockClock,
) -> None:
    async with open_stage() as stage:
        conversation_id, first, _ = await two_turns(stage)
        stage.model.script = ("another one",)
        await stage.say(None, conversation_id, instead_of=first.turn_id)
        assert asked(stage) == ["1"]
        assert await stage.lines(conversation_id) == ["1", "another one"]
        # What is said next is said there.
        stage.model.script = ("three",)
        await stage.say("3", conversation_id)
        assert asked(stage) == ["1", "another one", "3"]
        await stage.conversations.select(conversation_id, first.turn_id)
        assert await stage.lines(conversation_id) == ["1", "one", "2", "two"]
        await stage.say("4", conversation_id)
        assert asked(stage) == ["1", "one", "2", "two", "4"]


async def test_a_line_left_without_an_answer_can_be_answered_or_gone_on_from(
    autojump_clock: MockClock,
) -> None:
    async with open_stage() as stage:
        conversation_id, _, second = await two_turns(stage)
        await stage.conversations.delete_branch(conversation_id, second.turn_id)
        assert await stage.lines(conversation_id) == ["1", "one", "2"]
        stage.model.script = ("new two",)
        await stage.say(None, conversation_id)
        assert await stage.lines(conversation_id) == ["1", "one", "2", "new two"]
        (*_, line, answer) = await stage.turns(conversation_id)
        await stage.conversations.delete_branch(conversation_id, answer.id)
        await stage.say("3", conversation_id)
        # Many chat templates refuse two lines of a user in a row.
        assert asked(stage) == ["1", "one", "2\n\n3"]
        assert (await stage.turns(conversation_id))[-2].parent_id == line.id


# A line said differently


async def test_a_line_said_differently_is_a_sibling_with_an_answer_of_its_own(
    autojump_clock: MockClock,
) -> None:
    async with open_stage() as stage:
        conversation_id, first, second = await two_turns(stage)
        stage.model.script = ("zwei",)
        answer = await stage.say("2!", conversation_id, instead_of=second.parent_id)
        assert asked(stage) == ["1", "one", "2!"]
        assert await stage.lines(conversation_id) == ["1", "one", "2!", "zwei"]
        assert await places(stage, conversation_id) == [(1, 1), (1, 1), (2, 2), (1, 1)]
        (*_, line, reply) = await stage.turns(conversation_id)
        assert (line.parent_id, reply.parent_id, reply.id) == (first.turn_id, line.id, answer.turn_id)
        # The very first line, too.
        await stage.say("0", conversation_id, instead_of=first.parent_id)
        assert asked(stage) == ["0"]
        assert await places(stage, conversation_id) == [(2, 2), (1, 1)]
        await stage.conversations.select(conversation_id, second.turn_id)
        assert await stage.lines(conversation_id) == ["1", "one", "2", "two"]


@pytest.mark.parametrize("line", [None, "x"])
async def test_what_cannot_be_branched_from_is_refused_before_it_begins(
    line: str | None, autojump_clock: MockClock
) -> None:
    async with open_stage() as stage:
        conversation_id, first, _ = await two_turns(stage)
        other = await stage.begin()
        foreign = await stage.say("elsewhere", other)
        watcher, prompts = Watcher(), len(stage.model.asked)
        empty = await stage.begin()
        cases: list[tuple[str, int | None, type[PersonaError], str]] = [
            (conversation_id, foreign.turn_id, NotFound, "turn_id"),
            (conversation_id, 999, NotFound, "turn_id"),
            ("nowhere", first.turn_id, NotFound, "turn_id"),
        ]
        if line is None:
            cases += [
                (empty, None, NotFound, "turn_id"),
                ("nowhere", None, NotFound, "conversation_id"),
            ]
        else:
            cases.append((conversation_id, first.turn_id, InvalidParams, "turn_id"))
        for where, turn_id, error, field in cases:
            with pytest.raises(error) as caught:
                await stage.say(line, where, instead_of=turn_id, watcher=watcher)
            assert caught.value.field == field
        assert watcher.told == []
        assert len(stage.model.asked) == prompts


@pytest.mark.parametrize("how", CUTS)
@pytest.mark.parametrize("kind", ["regenerate", "edit"])
async def test_a_branch_cut_in_the_middle_is_kept_as_any_turn(
    how: str, kind: str, autojump_clock: MockClock
) -> None:
    async with open_stage(first_token_timeout_s=5.0) as stage:
        conversation_id, _, second = await two_turns(stage)
        line = None if kind == "regenerate" else "2!"
        cut = {"line": line, "instead_of": second.parent_id}
        await take_and_cut(stage, how, conversation_id, mute=True, **cut)
        assert await stage.lines(conversation_id) == ["1", "one", "2", "two"]
        await take_and_cut(stage, how, conversation_id, mute=False, **cut)
        (*_, said, answer) = await stage.turns(conversation_id)
        assert (said.content, answer.content) == (line or "2", "Well met")
        assert answer.finish_reason == CUTS[how].finish_reason


@pytest.mark.parametrize("how", ["client", "disconnect"])
@pytest.mark.parametrize("kind", ["regenerate", "edit"])
async def test_a_cut_at_any_checkpoint_leaves_a_tree_in_order(
    how: str, kind: str, autojump_clock: MockClock
) -> None:
    line = None if kind == "regenerate" else "2!"
    step, was_cut, kept = 0, True, set()
    while was_cut:
        step += 1
        async with open_stage(slots=1) as stage:
            conversation_id, _, second = await two_turns(stage)
            stage.model.script = (1.0, "Well", 1.0, " met.")
            was_cut, outcome, heard = await cut_at_step(
                stage, step, how, conversation_id, line=line, instead_of=second.parent_id
            )
            turns = await stage.turns(conversation_id)
            contents = [turn.content for turn in turns]
            assert contents == ["1", "one", "2", "two"] if not heard else ["1", "one", line or "2", heard]
            if isinstance(outcome, TurnAnswer):
                assert outcome.turn_id == turns[-1].id
            assert (await stage.conversations.delete(conversation_id)) == 4 + bool(heard) * (1 + bool(line))
            assert stage.scheduler.running == stage.scheduler.queued == stage.model.running == 0
        kept.add(turns[-1].finish_reason if heard else None)
    assert kept == {None, {"client": "cancelled", "disconnect": "disconnected"}[how], "stop"}
    assert step > 7


async def test_two_at_once_are_made_one_after_the_other(autojump_clock: MockClock) -> None:
    async with open_stage(slots=2) as stage:
        conversation_id, _, second = await two_turns(stage)
        stage.model.script = (1.0, "again")
        answers: list[TurnAnswer] = []

        async def regenerate() -> None:
            answers.append(await stage.say(None, conversation_id, instead_of=second.turn_id))
            assert stage.model.running <= 1

        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(regenerate)
        page = await stage.conversations.history(conversation_id, limit=1, before=None)
        ((turn, siblings),) = page.turns
        assert turn.id == answers[-1].turn_id == max(answer.turn_id for answer in answers)
        assert (siblings.index, siblings.count) == (4, 4)
        assert asked(stage) == ["1", "one", "2"]


# Beside a turn that runs


async def test_a_branch_chosen_while_a_turn_runs_stays_chosen(autojump_clock: MockClock) -> None:
    async with open_stage() as stage, trio.open_nursery() as nursery:
        conversation_id, first, second = await two_turns(stage)
        stage.model.script = ("another one",)
        await stage.say(None, conversation_id, instead_of=first.turn_id)
        stage.model.script = (1.0, "three")
        answers: list[TurnAnswer] = []

        async def talk() -> None:
            answers.append(await stage.say("3", conversation_id))

        nursery.start_soon(talk)
        await trio.sleep(0.5)
        await stage.conversations.select(conversation_id, second.turn_id)
        await trio.sleep(1)
        assert await stage.lines(conversation_id) == ["1", "one", "2", "two"]
        # What was answered meanwhile is where it was asked.
        await stage.conversations.select(conversation_id, answers[0].turn_id)
        assert await stage.lines(conversation_id) == ["1", "another one", "3", "three"]


async def test_a_branch_chosen_while_a_turn_waits_for_the_model_is_the_one_it_goes_on_from(
    autojump_clock: MockClock,
) -> None:
    async with open_stage(slots=1) as stage, trio.open_nursery() as nursery:
        conversation_id, first, second = await two_turns(stage)
        await stage.say(None, conversation_id, instead_of=first.turn_id)
        stage.model.script = (1.0, "x")
        nursery.start_soon(stage.say, "busy", await stage.begin())
        await wait_all_tasks_blocked()
        nursery.start_soon(stage.say, "3", conversation_id)
        await trio.sleep(0.5)
        await stage.conversations.select(conversation_id, second.turn_id)
        await trio.sleep(5)
        assert await stage.lines(conversation_id) == ["1", "one", "2", "two", "3", "x"]


class Regenerating:
    """A turn that ends with an error, and when."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.error: PersonaError | None = None
        self.ended_at = math.inf

    async def run(self, conversation_id: str, turn_id: int | None) -> None:
        try:
            await self._stage.say(None, conversation_id, instead_of=turn_id)
        except PersonaError as exc:
            self.error = exc
        self.ended_at = trio.current_time()


@pytest.mark.parametrize("when", ["in line", "waiting", "running", "saving"])
@pytest.mark.parametrize("what", ["conversation", "branch", "persona"])
async def test_what_is_deleted_under_a_turn_ends_it_and_stays_deleted(
    what: str, when: str, autojump_clock: MockClock
) -> None:
    async with open_stage(slots=1) as stage, trio.open_nursery() as nursery:
        conversation_id, first, second = await two_turns(stage)
        turn, before = Regenerating(stage), Regenerating(stage)
        stage.model.script = (1.0, "Well", 0.5 if when == "saving" else math.inf)
        if when == "waiting":
            kira = stage.personas.find("kira")
            elsewhere = await stage.conversations.current(stage.session(), kira)
            nursery.start_soon(lambda: stage.say("busy", elsewhere, persona=kira))
        if when == "in line":
            nursery.start_soon(before.run, conversation_id, second.turn_id)
        await wait_all_tasks_blocked()
        nursery.start_soon(turn.run, conversation_id, second.turn_id)
        await trio.sleep(1.25)
        if when == "saving":
            stage.disk.write_s = 2.0
            await trio.sleep(0.5)
            stage.disk.write_s = 0.0
        deleted_at = trio.current_time()
        if what == "conversation":
            assert await stage.conversations.delete(conversation_id) == 4
        elif what == "persona":
            await stage.personas.delete(stage.aria)
        else:
            assert await stage.conversations.delete_branch(conversation_id, second.parent_id or 0) == (
                2,
                first.turn_id,
            )
        await trio.sleep(3)
        for ended in (turn, before) if when == "in line" else (turn,):
            assert isinstance(ended.error, PersonaNotFound if what == "persona" else NotFound)
            assert ended.error.details is None
            # At once; a write that has begun comes to its end.
            assert ended.ended_at == (deleted_at + 1.75 if when == "saving" else deleted_at)
        assert stage.model.running == stage.scheduler.running == (when == "waiting")
        assert stage.scheduler.queued == 0
        if what == "branch":
            assert await stage.lines(conversation_id) == ["1", "one"]
        else:
            with pytest.raises(NotFound):
                await stage.turns(conversation_id)
        nursery.cancel_scope.cancel()


async def test_a_turn_on_another_branch_is_not_ended(autojump_clock: MockClock) -> None:
    async with open_stage() as stage, trio.open_nursery() as nursery:
        conversation_id, first, _ = await two_turns(stage)
        stage.model.script = (1.0, "uno")
        nursery.start_soon(lambda: stage.say("1!", conversation_id, instead_of=first.parent_id))
        await trio.sleep(0.5)
        assert await stage.conversations.delete_branch(conversation_id, first.parent_id or 0) == (4, None)
        await trio.sleep(1)
        assert await stage.lines(conversation_id) == ["1!", "uno"]
