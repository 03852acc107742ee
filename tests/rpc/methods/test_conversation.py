"""`conversation.*`: what was said."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from persona.model import isoformat
from persona.service.conversations import Conversations
from persona.storage.seed import ARIA_ID
from persona.testing import EPOCH
from tests.rpc.methods.asking import TOKENS, Asking, open_party


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


# Branches


async def talked(asking: Asking) -> tuple[Any, Any]:
    """Two turns with Aria, who is the current persona: their answers."""
    await asking.ask("persona.switch", persona_id="aria")
    return await asking.ask("persona.chat", message="1"), await asking.ask("persona.chat", message="2")


async def lines(asking: Asking, **params: Any) -> list[str]:
    turns = (await asking.ask("conversation.history", **params))["turns"]
    return [turn["content"] for turn in turns if turn["role"] == "user"]


async def test_a_branch_is_of_the_conversation_named_or_the_current_one(autojump_clock: MockClock) -> None:
    async with open_party() as party:
        asking, other = await party.join(), await party.join()
        first, second = await talked(asking)
        where = {"conversation_id": first["conversation_id"]}
        for params in ({}, {"persona_id": "Aria"}, {**where, "persona_id": "aria"}):
            again = await asking.ask("conversation.regenerate", **params)
            assert (again["conversation_id"], again["parent_id"]) == (
                second["conversation_id"],
                second["parent_id"],
            )
        # A session that names it goes on in it, as with a chat.
        edited = await other.ask("conversation.edit", turn_id=first["parent_id"], message="1!", **where)
        await other.ask("persona.switch", persona_id="aria")
        said = await other.ask("persona.chat", message="3")
        assert edited["conversation_id"] == said["conversation_id"] == first["conversation_id"]
        assert await lines(asking) == ["1!", "3"]
        error = await asking.refused("conversation.regenerate", **where, persona_id="kira")
        assert (error.reason, error.field) == ("invalid_params", "persona_id")


async def test_what_wants_an_older_turn_begins_no_conversation(autojump_clock: MockClock) -> None:
    async with open_party() as party:
        asking = await party.join()
        for method, params in (
            ("conversation.regenerate", {}),
            ("conversation.edit", {"turn_id": 1, "message": "x"}),
            ("conversation.select", {"turn_id": 1}),
        ):
            assert (await asking.refused(method, **params)).reason == "no_active_persona"
            error = await asking.refused(method, persona_id="kira", **params)
            assert (error.reason, error.field) == ("not_found", "conversation_id")
        assert (await asking.ask("conversation.list"))["conversations"] == []


async def test_branches_of_somebody_else_are_as_good_as_none(autojump_clock: MockClock) -> None:
    async with open_party(auth={"tokens": TOKENS}) as party:
        ann, root = await party.join("ann"), await party.join("root")
        first, _ = await talked(root)
        where = {"conversation_id": first["conversation_id"]}
        await talked(ann)
        for method, params in (
            ("conversation.regenerate", {}),
            ("conversation.edit", {"turn_id": first["parent_id"], "message": "x"}),
            ("conversation.select", {"turn_id": first["turn_id"]}),
            ("conversation.delete", {}),
            ("conversation.delete", {"turn_id": first["turn_id"]}),
        ):
            error = await ann.refused(method, **where, **params)
            assert (error.reason, error.field) == ("not_found", "conversation_id")
            # Nor by way of a conversation of one's own.
            if "turn_id" in params and method != "conversation.delete":
                error = await ann.refused(method, **params)
                assert (error.reason, error.field) == ("not_found", "turn_id")
        assert await lines(root) == ["1", "2"]
        # An admin may.
        anns = (await ann.ask("conversation.list"))["conversations"][0]["id"]
        assert (await root.ask("conversation.delete", conversation_id=anns))["turns_deleted"] == 4


async def test_what_is_sent_without_waiting_is_done_in_that_order(autojump_clock: MockClock) -> None:
    async with open_party() as party, trio.open_nursery() as nursery:
        asking = await party.join()
        first, _ = await talked(asking)
        for method, params in (
            ("conversation.select", {"turn_id": first["turn_id"]}),
            ("conversation.edit", {"turn_id": first["parent_id"], "message": "1!"}),
            ("persona.chat", {"message": "2!"}),
            ("conversation.regenerate", {}),
            ("persona.chat", {"message": "3!"}),
        ):
            nursery.start_soon(asking.client.call, method, params)
            await wait_all_tasks_blocked()
        await trio.sleep(100)
        turns = (await asking.ask("conversation.history"))["turns"]
        assert await lines(asking) == ["1!", "2!", "3!"]
        assert [turn["sibling_count"] for turn in turns] == [2, 1, 1, 2, 1, 1]


async def test_a_call_has_the_time_its_client_gives_it(autojump_clock: MockClock) -> None:
    async with open_party() as party:
        asking = await party.join()
        first, second = await talked(asking)
        edit = {"turn_id": second["parent_id"], "message": "2!", "client_msg_id": "m"}
        # The first token comes after a second.
        error = await asking.refused("conversation.regenerate", timeout_s=0.5)
        assert error.reason == "deadline_exceeded"
        error = await asking.refused("conversation.edit", timeout_s=1.25, **edit)
        assert error.reason == "deadline_exceeded"
        assert error.data["turn_id"] > second["turn_id"]
        whole = await asking.ask("conversation.edit", **edit)
        turns = (await asking.ask("conversation.history"))["turns"]
        assert [turn["id"] for turn in turns[-2:]] == [whole["parent_id"], whole["turn_id"]]
        assert (turns[-1]["sibling_count"], turns[-1]["previous_sibling_id"]) == (2, error.data["turn_id"])
        for method, params in (
            ("conversation.select", {"turn_id": first["turn_id"]}),
            ("conversation.delete", {"conversation_id": first["conversation_id"]}),
        ):
            assert await asking.ask(method, timeout_s=5, **params)


async def test_who_was_in_a_conversation_that_is_deleted_begins_another(autojump_clock: MockClock) -> None:
    async with open_party(auth={"tokens": TOKENS}) as party:
        one, other = await party.join("ann"), await party.join("ann")
        first, _ = await talked(one)
        where = first["conversation_id"]
        assert await lines(other, persona_id="aria") == ["1", "2"]
        deleted = await one.ask("conversation.delete", conversation_id=where)
        assert deleted == {
            "conversation_id": where,
            "deleted": True,
            "turns_deleted": 4,
            "current_turn_id": None,
        }
        for asking in (one, other):
            history = await asking.ask("conversation.history", persona_id="aria")
            assert history["conversation_id"] is None
        assert (await one.refused("conversation.delete", conversation_id=where)).reason == "not_found"
        said = await other.ask("persona.chat", persona_id="aria", message="3")
        assert said["conversation_id"] != where
        assert await lines(one) == ["3"]


async def test_a_repeat_finds_its_answer_whatever_branch_is_shown(autojump_clock: MockClock) -> None:
    async with open_party() as party:
        asking = await party.join()
        first, second = await talked(asking)
        params = {"turn_id": second["turn_id"], "client_msg_id": "r"}
        again = await asking.ask("conversation.regenerate", **params)
        await asking.ask("conversation.select", turn_id=second["turn_id"])
        assert await asking.ask("conversation.regenerate", **params) == again
        error = await asking.refused("conversation.regenerate", turn_id=first["turn_id"], client_msg_id="r")
        assert (error.reason, error.field) == ("conflict", "client_msg_id")
        error = await asking.refused("persona.chat", message="2", client_msg_id="r")
        assert error.reason == "conflict"
        turns = (await asking.ask("conversation.history"))["turns"]
        assert (turns[-1]["id"], turns[-1]["sibling_count"]) == (second["turn_id"], 2)


@pytest.mark.parametrize("what", ["select", "delete_branch"])
async def test_a_chat_waits_for_the_branch_that_was_chosen_before_it(
    what: str, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = getattr(Conversations, what)

    async def slowly(*args: Any) -> Any:
        await trio.sleep(5)
        return await done(*args)

    monkeypatch.setattr(Conversations, what, slowly)
    async with open_party() as party:
        asking = await party.join()
        first, second = await talked(asking)
        where = {"conversation_id": first["conversation_id"]}
        again = await asking.ask("conversation.regenerate", turn_id=first["turn_id"])
        if what == "select":
            await asking.client.notify("conversation.select", {"turn_id": second["turn_id"]})
        else:
            params = {**where, "turn_id": again["turn_id"]}
            await asking.client.notify("conversation.delete", params)
        await asking.ask("persona.chat", message="3")
        assert await lines(asking) == ["1", "2", "3"]


async def test_a_session_left_in_a_conversation_that_is_gone_finds_out_of_it(
    autojump_clock: MockClock,
) -> None:
    async with open_party() as party:
        asking = await party.join()
        first, _ = await talked(asking)
        where = first["conversation_id"]
        await asking.ask("conversation.delete", conversation_id=where)
        # As if it had been taken up in the very instant in which it was deleted.
        (session,) = party.server.server.sessions
        session.conversations[first["persona_id"]] = where
        error = await asking.refused("persona.chat", message="3")
        assert (error.reason, error.field) == ("not_found", "conversation_id")
        assert (await asking.ask("persona.chat", message="3"))["conversation_id"] != where
