"""Which conversation a session is in, and who may read it."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from persona.errors import MemoryFailure, NotFound, PersonaNotFound
from persona.service import conversations as conversations_module
from persona.service.sessions import Session
from tests.service.stage import open_stage


async def test_a_named_users_last_conversation_is_taken_up_again(autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        current = stage.conversations.current
        ids = []
        for user in ("ann", "bob"):
            ids.append(await current(stage.session(user), stage.aria))
            await stage.say("Hello", ids[-1])
        assert await current(stage.session("ann"), stage.aria) == ids[0]
        assert await current(stage.session("bob"), stage.aria) == ids[1]
        assert await current(stage.session("ann"), stage.personas.find("kira")) not in ids


async def test_the_conversation_taken_up_is_the_one_that_had_the_last_turn(autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        older = await stage.conversations.current(stage.session("ann"), stage.aria)
        starting_anew = stage.session("ann")
        starting_anew.clear()
        newer = await stage.conversations.current(starting_anew, stage.aria)
        assert older != newer
        for last in (newer, older):
            await stage.say("Hello", last)
            assert await stage.conversations.current(stage.session("ann"), stage.aria) == last


async def test_clients_without_a_token_each_start_their_own(autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        session = stage.session()
        first = await stage.conversations.current(session, stage.aria)
        assert await stage.conversations.current(session, stage.aria) == first
        assert await stage.conversations.current(stage.session(), stage.aria) != first
        session.clear()
        assert await stage.conversations.current(session, stage.aria) != first


@pytest.mark.parametrize("user", [None, "ann"])
async def test_two_requests_at_once_speak_in_the_same_conversation(
    user: str | None, autojump_clock: MockClock
) -> None:
    async with open_stage() as stage:
        session, ids = stage.session(user), []
        stage.disk.read_s = stage.disk.write_s = 1.0

        async def ask() -> None:
            ids.append(await stage.conversations.current(session, stage.aria))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            nursery.start_soon(ask)
        assert len(ids) == 2
        assert set(ids) == {session.conversations[stage.aria.id]}


async def test_with_who_is_gone_there_is_no_conversation(autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        aria, session = stage.aria, stage.session()
        await stage.personas.delete(aria)
        with pytest.raises(PersonaNotFound):
            await stage.conversations.current(session, aria)
        assert session.conversations == {}


async def test_a_conversation_is_its_users_and_any_other_is_as_good_as_none(
    autojump_clock: MockClock,
) -> None:
    async with open_stage() as stage:
        conversations = stage.conversations
        anns = await conversations.current(stage.session("ann"), stage.aria)
        nobodys = await conversations.current(stage.session(), stage.aria)
        assert (await conversations.open(stage.session("ann"), anns)).id == anns
        assert (await conversations.open(stage.session("root", role="admin"), anns)).user == "ann"
        # Its id cannot be guessed, so who knows it may go on with it.
        assert (await conversations.open(stage.session(), nobodys)).user == "anonymous"
        refusals = set()
        for session, conversation_id in (
            (stage.session("bob"), anns),
            (stage.session("bob"), nobodys),
            (stage.session(), anns),
            # A role alone, without a token, is everybody on this machine.
            (stage.session(role="admin"), anns),
            (stage.session("ann"), "nowhere"),
        ):
            with pytest.raises(NotFound) as caught:
                await conversations.open(session, conversation_id)
            refusals.add((str(caught.value), caught.value.field))
        assert refusals == {("no such conversation", "conversation_id")}


async def test_history_comes_in_pages_from_the_end(autojump_clock: MockClock) -> None:
    async with open_stage(recovery_s=0) as stage:
        conversation_id = await stage.begin()
        for number in range(3):
            await stage.say(f"line {number}", conversation_id)
        seen, before, more = [], None, True
        while more:
            page = await stage.conversations.history(conversation_id, limit=4, before=before)
            seen[:0] = [turn.id for turn, _ in page.turns]
            before, more = seen[0], page.has_more
        assert seen == [turn.id for turn in await stage.turns(conversation_id)]
        assert len(seen) == 6


async def test_a_user_sees_all_of_its_conversations_and_a_client_without_a_token_this_sessions(
    autojump_clock: MockClock,
) -> None:
    async with open_stage() as stage:
        kira = stage.personas.find("kira")

        async def listed(session: Session, persona_id: str | None = None) -> list[str]:
            page, _ = await stage.conversations.list(session, persona_id=persona_id, limit=10, before=None)
            return [conversation.id for conversation in page]

        session = stage.session("ann")
        with_aria = await stage.conversations.current(session, stage.aria)
        await trio.sleep(1)
        with_kira = await stage.conversations.current(session, kira)
        assert await listed(stage.session("ann")) == [with_kira, with_aria]
        assert await listed(stage.session("ann"), kira.id) == [with_kira]
        assert await listed(stage.session("bob")) == []
        nobody, other = stage.session(), stage.session()
        mine = await stage.conversations.current(nobody, stage.aria)
        await stage.conversations.current(other, stage.aria)
        assert await listed(nobody) == [mine]
        assert await listed(nobody, kira.id) == []


async def test_a_list_of_conversations_comes_in_pages(autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        started, session = [], stage.session("ann")
        for _ in range(5):
            session.clear()
            started.append(await stage.conversations.current(session, stage.aria))
            await trio.sleep(1)
        seen, before = [], None
        while not seen or before is not None:
            page, before = await stage.conversations.list(session, persona_id=None, limit=2, before=before)
            seen += [conversation.id for conversation in page]
        assert seen == started[::-1]


async def test_counts(autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        session = stage.session()
        assert await stage.conversations.statistics(stage.aria) == (0, 0, None)
        started = await stage.conversations.current(session, stage.aria)
        began_at = (await stage.conversations.open(session, started)).created_at
        await stage.conversations.current(session, stage.personas.find("kira"))
        await trio.sleep(97)
        await stage.say("Hello", started)
        assert await stage.conversations.statistics(stage.aria) == (2, 1, began_at + 100)
        assert await stage.conversations.count(since=0) == 2
        assert await stage.conversations.count(since=began_at + 50) == 1
        assert await stage.conversations.count(since=began_at + 100.5) == 0


async def test_a_history_that_is_read_meanwhile_does_not_undo_a_clear(autojump_clock: MockClock) -> None:
    async with open_stage() as stage, trio.open_nursery() as nursery:
        session = stage.session("ann")
        old = await stage.conversations.current(session, stage.aria)
        await stage.say("Hello", old)
        session = stage.session("ann")
        stage.disk.read_s = 1.0
        found = []

        async def read() -> None:
            found.append(await stage.conversations.find_current(session, stage.aria))

        nursery.start_soon(read)
        await wait_all_tasks_blocked()
        session.clear()
        await trio.sleep(2)
        assert found == [None]
        assert await stage.conversations.current(session, stage.aria) != old


async def test_a_page_of_long_turns_has_fewer(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(conversations_module, "MAX_PAGE_BYTES", 30)
    async with open_stage(recovery_s=0) as stage:
        conversation_id = await stage.begin()
        for line in ("1", "2", "3", "x" * 100, "5"):
            stage.model.script = ("0123456789",)
            await stage.say(line, conversation_id)
        pages, before = [], None
        while before is not None or not pages:
            page = await stage.conversations.history(conversation_id, limit=200, before=before)
            pages.append([turn.content[:1] for turn, _ in page.turns])
            before = page.turns[0][0].id if page.has_more else None
        assert pages == [["0", "5", "0"], ["x"], ["2", "0", "3", "0"], ["1", "0"]]


async def test_a_branch_is_chosen_and_history_follows_it(autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        conversation_id = await stage.begin()
        first = await stage.say("1", conversation_id)
        second = await stage.say("2", conversation_id, instead_of=first.parent_id)
        assert await stage.conversations.select(conversation_id, first.parent_id or 0) == first.turn_id
        assert (await stage.lines(conversation_id))[0] == "1"
        assert await stage.conversations.select(conversation_id, second.turn_id) == second.turn_id
        with pytest.raises(NotFound):
            await stage.conversations.select(conversation_id, 999)


async def test_who_asks_is_told_of_what_is_deleted_once_it_is(autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        conversation_id = await stage.begin()
        first = await stage.say("1", conversation_id)
        second = await stage.say("2", conversation_id)
        told = stage.deletions
        stage.disk.failure = MemoryFailure("the disk is gone")
        for attempt in (
            stage.conversations.delete_branch(conversation_id, second.turn_id),
            stage.conversations.delete(conversation_id),
        ):
            with pytest.raises(MemoryFailure):
                await attempt
        stage.disk.failure = None
        with pytest.raises(NotFound):
            await stage.conversations.delete_branch(conversation_id, 999)
        assert told == []

        found = await stage.conversations.delete_branch(conversation_id, second.parent_id or 0)
        assert found == (2, first.turn_id)
        # Whoever leaves while it is written leaves with it done, and told of.
        stage.disk.write_s = 5.0
        with trio.move_on_after(1):
            assert await stage.conversations.delete(conversation_id) == 2
        stage.disk.write_s = 0.0
        assert told == [
            (conversation_id, {second.parent_id, second.turn_id}),
            (conversation_id, None),
        ]
        with pytest.raises(NotFound):
            await stage.conversations.delete(conversation_id)
        assert len(told) == 2
