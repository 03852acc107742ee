"""`conversation.*`: what was said."""

import trio
from trio.testing import MockClock

from persona.model import isoformat
from persona.storage.seed import ARIA_ID
from persona.testing import EPOCH
from tests.rpc.methods.asking import TOKENS, open_party


async def test_history_is_what_was_said_with_the_current_persona(autojump_clock: MockClock) -> None:
    async with open_party() as party:
        asking = await party.join()
        assert (await asking.refused("conversation.history")).reason == "no_active_persona"
        switched = await asking.ask("persona.switch", persona_id="aria")
        answer = await asking.ask("persona.chat", message="Hello")
        history = await asking.ask("conversation.history")
        assert history["conversation_id"] == switched["conversation_id"]
        assert (history["has_more"], history["next_before"]) == (False, None)
        alone = {
            "sibling_index": 1,
            "sibling_count": 1,
            "previous_sibling_id": None,
            "next_sibling_id": None,
        }
        assert history["turns"] == [
            {
                "id": answer["turn_id"] - 1,
                "role": "user",
                "speaker_id": "anonymous",
                "content": "Hello",
                "created_at": isoformat(EPOCH),
                "tokens_used": 0,
                "finish_reason": None,
                "parent_id": None,
                **alone,
            },
            {
                "id": answer["turn_id"],
                "role": "assistant",
                "speaker_id": ARIA_ID,
                "content": answer["response"],
                "created_at": isoformat(EPOCH + trio.current_time()),
                "tokens_used": answer["tokens_used"],
                "finish_reason": "stop",
                "parent_id": answer["turn_id"] - 1,
                **alone,
            },
        ]
        assert history["current_turn_id"] == answer["turn_id"]


async def test_history_can_be_asked_for_by_persona_or_by_conversation(autojump_clock: MockClock) -> None:
    async with open_party() as party:
        asking, other = await party.join(), await party.join()
        answer = await asking.ask("persona.chat", persona_id="kira", message="Hello")
        await asking.ask("persona.switch", persona_id="aria")
        by_persona = await asking.ask("conversation.history", persona_id="kira")
        # An anonymous client that knows the id may read on.
        by_id = await other.ask("conversation.history", conversation_id=answer["conversation_id"])
        assert by_persona == by_id
        assert [turn["content"] for turn in by_id["turns"]] == ["Hello", answer["response"]]
        assert (await asking.ask("conversation.history"))["turns"] == []
        both = {"persona_id": "kira", "conversation_id": answer["conversation_id"]}
        error = await asking.refused("conversation.history", **both)
        assert (error.reason, error.field) == ("invalid_params", "persona_id")


async def test_history_comes_in_pages(autojump_clock: MockClock) -> None:
    async with open_party() as party:
        asking = await party.join()
        await asking.ask("persona.switch", persona_id="aria")
        for number in range(3):
            await asking.ask("persona.chat", message=f"line {number}")
        page = await asking.ask("conversation.history", limit=4)
        assert [turn["content"] for turn in page["turns"]][::2] == ["line 1", "line 2"]
        assert (page["has_more"], page["next_before"]) == (True, page["turns"][0]["id"])
        first = await asking.ask("conversation.history", limit=4, before=page["next_before"])
        assert [turn["content"] for turn in first["turns"]][::2] == ["line 0"]
        assert not first["has_more"]


async def test_a_users_conversations_are_listed_newest_first_and_in_pages(autojump_clock: MockClock) -> None:
    async with open_party(auth={"tokens": TOKENS}) as party:
        ann, root = await party.join("ann"), await party.join("root")
        with_aria = await ann.ask("persona.switch", persona_id="aria")
        await trio.sleep(1)
        with_kira = await ann.ask("persona.chat", persona_id="kira", message="Hello")
        listed = (await (await party.join("ann")).ask("conversation.list"))["conversations"]
        assert [entry["id"] for entry in listed] == [
            with_kira["conversation_id"],
            with_aria["conversation_id"],
        ]
        assert listed[0] == {
            "id": with_kira["conversation_id"],
            "persona_id": with_kira["persona_id"],
            "persona_name": "Kira",
            "created_at": isoformat(EPOCH + 1),
            "updated_at": isoformat(EPOCH + trio.current_time()),
            "turn_count": 2,
        }
        page = await ann.ask("conversation.list", limit=1)
        assert (page["conversations"], page["has_more"]) == (listed[:1], True)
        rest = await ann.ask("conversation.list", limit=1, before=page["next_before"])
        assert (rest["conversations"], rest["has_more"], rest["next_before"]) == (listed[1:], False, None)
        only = await ann.ask("conversation.list", persona_id="ARIA")
        assert only["conversations"] == listed[1:]
        assert (await root.ask("conversation.list"))["conversations"] == []


async def test_what_is_no_cursor_and_who_is_nobody_are_said(autojump_clock: MockClock) -> None:
    async with open_party() as party:
        asking = await party.join()
        error = await asking.refused("conversation.list", before="nonsense")
        assert (error.reason, error.field) == ("invalid_params", "before")
        assert (await asking.refused("conversation.list", persona_id="nobody")).reason == "persona_not_found"


async def test_a_conversation_of_somebody_else_is_as_good_as_none(autojump_clock: MockClock) -> None:
    async with open_party(auth={"tokens": TOKENS}) as party:
        ann, root = await party.join("ann"), await party.join("root")
        roots = (await root.ask("persona.switch", persona_id="aria"))["conversation_id"]
        anns = (await ann.ask("persona.switch", persona_id="aria"))["conversation_id"]
        for method, params in (("conversation.history", {}), ("persona.chat", {"message": "Hello"})):
            theirs = await ann.refused(method, conversation_id=roots, **params)
            nobodys = await ann.refused(method, conversation_id="nowhere", **params)
            assert theirs.reason == nobodys.reason == "not_found"
            assert theirs.message == nobodys.message
        # An admin reads them all.
        assert (await root.ask("conversation.history", conversation_id=anns))["conversation_id"] == anns


async def test_reading_a_history_starts_no_conversation(autojump_clock: MockClock) -> None:
    async with open_party() as party:
        asking = await party.join()
        for _ in range(2):
            history = await asking.ask("conversation.history", persona_id="kira")
            nothing = dict.fromkeys(("conversation_id", "next_before", "current_turn_id"))
            assert history == {**nothing, "turns": [], "has_more": False}
        assert (await asking.ask("conversation.list"))["conversations"] == []
        status = await asking.ask("persona.status", persona_id="kira")
        assert status["memory_stats"]["total_conversations"] == 0
