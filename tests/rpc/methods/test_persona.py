"""`persona.*` but the talking."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock

from persona.model import isoformat
from persona.storage.seed import ARIA_ID
from persona.testing import EPOCH
from tests.rpc.methods.asking import open_party

BOB = {
    "name": "Bob",
    "description": "a builder",
    "personality_traits": {"steady": 90, "humour": "dry"},
    "topic_preferences": {"bricks": 100},
    "charisma": 4,
    "intelligence": 12,
    "social_rank": "craftsman",
    "backstory": "He fixed it.",
    "current_priority": "business",
    "max_social_energy": 80.0,
    "max_available_time": 120.0,
}
ODD_NAMES = ["", " Bob", "\xa0", "Bob\n", "Bo\nb", "Bo\u2028b", "Bo\x85b", "B" * 81]


async def test_what_was_created_is_what_is_got(autojump_clock: MockClock) -> None:
    async with open_party() as party:
        asking = await party.join()
        created = await asking.ask("persona.create", **BOB)
        assert created == {
            "persona_id": created["persona_id"],
            "name": "Bob",
            "created": True,
            "version": 1,
        }
        at = isoformat(EPOCH)
        whole = {**BOB, "id": created["persona_id"], "version": 1, "created_at": at, "updated_at": at}
        for reference in (created["persona_id"], "bob", "BOB"):
            assert await asking.ask("persona.get", persona_id=reference) == whole


async def test_the_last_persona_there_may_be_and_one_more(autojump_clock: MockClock) -> None:
    async with open_party(limits={"max_personas": 3}) as party:
        asking, metrics = await party.join(), party.server.server.metrics
        await asking.ask("persona.create", **BOB)
        error = await asking.refused("persona.create", name="Cid", description="d")
        assert (error.reason, error.message) == ("conflict", "there are 3 personas already; delete one first")
        assert metrics.value("personas") == metrics.value("limit", name="max_personas") == 3
        assert metrics.value("errors_total", reason="conflict") == 1
        assert (await asking.ask("persona.list"))["total_count"] == 3
        await asking.ask("persona.delete", persona_id="bob")
        await asking.ask("persona.create", name="Cid", description="d")


async def test_what_was_left_out_has_defaults(autojump_clock: MockClock) -> None:
    async with open_party() as party:
        asking = await party.join()
        await asking.ask("persona.create", name="Bob", description="d")
        bob = await asking.ask("persona.get", persona_id="bob")
        assert (bob["charisma"], bob["social_rank"], bob["current_priority"]) == (10, "commoner", "casual")
        assert (bob["max_social_energy"], bob["max_available_time"]) == (100.0, 300.0)
        assert (bob["personality_traits"], bob["topic_preferences"], bob["backstory"]) == ({}, {}, "")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"name": "ARIA"}, "name"),
        *(({"name": name}, "name") for name in ODD_NAMES),
        ({"charisma": 21}, "charisma"),
        ({"topic_preferences": {"x": 101}}, None),
    ],
)
async def test_a_persona_that_cannot_be_is_refused(
    change: dict[str, Any], field: str | None, autojump_clock: MockClock
) -> None:
    async with open_party() as party:
        asking = await party.join()
        error = await asking.refused("persona.create", **{**BOB, **change})
        assert error.reason == ("conflict" if change == {"name": "ARIA"} else "invalid_params")
        assert error.field == field or field is None
        assert (await asking.ask("persona.list"))["total_count"] == 2


async def test_an_update_changes_what_is_given_and_nothing_else(autojump_clock: MockClock) -> None:
    async with open_party() as party:
        asking = await party.join()
        await asking.ask("persona.create", **BOB)
        before = await asking.ask("persona.get", persona_id="bob")
        await trio.sleep(60)
        changes = {"name": "Rob", "max_available_time": 60.0, "backstory": ""}
        after = await asking.ask("persona.update", persona_id="bob", version=1, **changes)
        assert after == {**before, **changes, "version": 2, "updated_at": isoformat(EPOCH + 60)}
        assert await asking.ask("persona.get", persona_id="rob") == after
        assert (await asking.refused("persona.get", persona_id="bob")).reason == "persona_not_found"


@pytest.mark.parametrize(
    ("params", "reason", "field"),
    [
        ({}, "invalid_params", "params"),
        ({"version": 1}, "invalid_params", "params"),
        ({"version": 7, "charisma": 1}, "conflict", "version"),
        ({"name": "kira"}, "conflict", "name"),
        ({"name": None}, "invalid_params", "name"),
    ],
)
async def test_an_update_that_cannot_be_changes_nothing(
    params: dict[str, Any], reason: str, field: str, autojump_clock: MockClock
) -> None:
    async with open_party() as party:
        asking = await party.join()
        error = await asking.refused("persona.update", persona_id="aria", **params)
        assert (error.reason, error.field) == (reason, field)
        assert (await asking.ask("persona.get", persona_id="aria"))["version"] == 1


async def test_deleting_takes_conversations_and_current_persona_along(autojump_clock: MockClock) -> None:
    async with open_party() as party:
        asking = await party.join()
        switched = await asking.ask("persona.switch", persona_id="aria")
        await asking.ask("persona.chat", message="Hello")
        deleted = await asking.ask("persona.delete", persona_id="Aria")
        assert (deleted["persona_id"], deleted["name"], deleted["deleted"]) == (ARIA_ID, "Aria", True)
        for method, params in (
            ("persona.delete", {"persona_id": "aria"}),
            ("persona.chat", {"message": "Hello"}),
            ("persona.status", {}),
        ):
            assert (await asking.refused(method, **params)).reason == "persona_not_found"
        gone = await asking.refused("conversation.history", conversation_id=switched["conversation_id"])
        assert gone.reason == "not_found"
        assert (await asking.ask("conversation.list"))["conversations"] == []


async def test_changes_are_told_to_who_subscribed(autojump_clock: MockClock) -> None:
    async with open_party() as party:
        asking, watching = await party.join(), await party.join()
        await watching.ask("events.subscribe", topics=["personas"])
        await asking.ask("persona.create", **BOB)
        updated = await asking.ask("persona.update", persona_id="bob", charisma=5)
        await asking.ask("persona.delete", persona_id="bob")
        events = await watching.news()
        assert [(event["topic"], event["type"], event["seq"]) for event in events] == [
            ("personas", "persona.created", 1),
            ("personas", "persona.updated", 2),
            ("personas", "persona.deleted", 3),
        ]
        assert events[1]["data"] == events[2]["data"] == updated
        assert await asking.news() == []


async def test_switching_gives_a_conversation_and_coming_back_the_same(autojump_clock: MockClock) -> None:
    async with open_party() as party:
        asking = await party.join()
        first = await asking.ask("persona.switch", persona_id="ARIA")
        assert (first["persona_id"], first["name"], first["status"]) == (ARIA_ID, "Aria", "active")
        assert (first["social_energy"], first["available_time"]) == (150.0, 600.0)
        other = await asking.ask("persona.switch", persona_id="kira")
        again = await asking.ask("persona.switch", persona_id=ARIA_ID)
        assert first["conversation_id"] == again["conversation_id"] != other["conversation_id"]
        assert (await asking.refused("persona.switch", persona_id="nobody")).reason == "persona_not_found"
        assert (await asking.ask("session.info"))["current_persona"] == "Aria"


async def test_status_shows_what_a_turn_took_and_what_is_stored(autojump_clock: MockClock) -> None:
    async with open_party() as party:
        asking = await party.join()
        assert (await asking.refused("persona.status")).reason == "no_active_persona"
        await asking.ask("persona.switch", persona_id="aria")
        rested = await asking.ask("persona.status")
        assert rested["memory_stats"] == {"total_turns": 0, "total_conversations": 1, "last_turn_at": None}
        assert rested["interaction_state"] == {
            "interest_level": 50.0,
            "interaction_fatigue": 0.0,
            "current_priority": "social",
            "available_time": 600.0,
            "social_energy": 150.0,
            "cooldown_until": None,
            "is_available": True,
        }
        answer = await asking.ask("persona.chat", message="Sing of music")
        tired = await asking.ask("persona.status", persona_id="Aria")
        state = tired["interaction_state"]
        assert (state["interaction_fatigue"], state["interest_level"]) == (1.0, 74.0)
        assert state["social_energy"] == answer["persona_state"]["social_energy"] < 150
        assert tired["memory_stats"]["total_turns"] == 2
        assert tired["memory_stats"]["last_turn_at"] == isoformat(EPOCH + trio.current_time())
        assert tired["persona"] == rested["persona"] == await asking.ask("persona.get", persona_id="aria")


async def test_who_rests_says_until_when(autojump_clock: MockClock) -> None:
    async with open_party() as party:
        asking = await party.join()
        await asking.ask("persona.update", persona_id="aria", max_available_time=0.5)
        await asking.ask("persona.chat", persona_id="aria", message="Hello")
        listed = await asking.ask("persona.list")
        assert [entry["name"] for entry in listed["personas"]] == ["Aria", "Kira"]
        assert [(entry["available"], entry["cooldown_remaining"]) for entry in listed["personas"]] == [
            (False, 60.0),
            (True, 0.0),
        ]
        assert (listed["total_count"], listed["available_count"]) == (2, 1)
        error = await asking.refused("persona.chat", persona_id="aria", message="Hello?")
        assert (error.reason, error.retry_after_s) == ("persona_unavailable", 60.0)
        state = (await asking.ask("persona.status", persona_id="aria"))["interaction_state"]
        assert not state["is_available"]
        assert state["cooldown_until"] == isoformat(EPOCH + trio.current_time() + 60)
        await trio.sleep(60)
        assert (await asking.ask("persona.list"))["available_count"] == 2
        await asking.ask("persona.chat", persona_id="aria", message="Hello!")
