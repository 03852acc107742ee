"""`session.*` and `events.*`: the client's own state and subscriptions."""

import attrs
import pytest
from trio.testing import MockClock

from persona import __version__
from persona.config import LimitSettings
from persona.rpc.jsonrpc import MAX_BATCH
from tests.rpc.methods.asking import TOKENS, open_party


async def test_info_says_who_the_client_is_and_the_limits_it_must_stay_under(
    autojump_clock: MockClock,
) -> None:
    async with open_party(limits={"max_in_flight": 3}) as party:
        asking = await party.join()
        info = await asking.ask("session.info")
        assert (info["user"], info["role"], info["current_persona"]) == ("anonymous", "admin", None)
        assert info["conversation_id"] is None
        assert info["server"] == {
            "name": "persona",
            "version": __version__,
            "engine": "trio-websocket",
            "llm": "scripted",
        }
        limits = info["limits"]
        assert (limits["max_in_flight"], limits["max_batch"]) == (3, MAX_BATCH)
        known = {field.name for field in attrs.fields(LimitSettings)}
        assert set(limits) - {"max_batch"} < known
        assert info["session_id"] != (await (await party.join()).ask("session.info"))["session_id"]


@pytest.mark.parametrize(("user", "role"), [("ann", "user"), ("root", "admin")])
async def test_info_names_the_tokens_owner(user: str, role: str, autojump_clock: MockClock) -> None:
    async with open_party(auth={"tokens": TOKENS}) as party:
        info = await (await party.join(user)).ask("session.info")
        assert (info["user"], info["role"]) == (user, role)


async def test_info_follows_switch_clear_and_delete(autojump_clock: MockClock) -> None:
    async with open_party() as party:
        asking = await party.join()

        async def current() -> tuple[str | None, str | None]:
            info = await asking.ask("session.info")
            return info["current_persona"], info["conversation_id"]

        for name in ("Aria", "Kira"):
            switched = await asking.ask("persona.switch", persona_id=name)
            assert await current() == (name, switched["conversation_id"])
        assert await asking.ask("session.clear") == {"cleared": True}
        assert await current() == (None, None)
        await asking.ask("persona.switch", persona_id="Aria")
        await asking.ask("persona.delete", persona_id="Aria")
        assert await current() == (None, None)


@pytest.mark.parametrize("token", [None, "ann"])
async def test_clearing_begins_anew_and_keeps_what_was_said(
    token: str | None, autojump_clock: MockClock
) -> None:
    async with open_party(**({"auth": {"tokens": TOKENS}} if token else {})) as party:
        asking = await party.join(token)
        before = await asking.ask("persona.chat", persona_id="aria", message="Hello")
        await asking.ask("session.clear")
        assert (await asking.refused("persona.chat", message="Hello")).reason == "no_active_persona"
        after = await asking.ask("persona.switch", persona_id="aria")
        assert after["conversation_id"] != before["conversation_id"]
        kept = await asking.ask("conversation.history", conversation_id=before["conversation_id"])
        assert len(kept["turns"]) == 2


async def test_topics_are_added_and_taken_away(autojump_clock: MockClock) -> None:
    async with open_party() as party:
        asking, other = await party.join(), await party.join()
        assert await asking.ask("events.subscribe", topics=["system", "news"]) == {
            "topics": ["news", "system"]
        }
        assert (await asking.ask("events.subscribe", topics=["news", "personas"]))["topics"] == [
            "news",
            "personas",
            "system",
        ]
        assert await other.ask("events.unsubscribe", topics=["news"]) == {"topics": []}
        left = await asking.ask("events.unsubscribe", topics=["news", "never.heard.of"])
        assert left == {"topics": ["personas", "system"]}


@pytest.mark.parametrize("topics", [[], ["Upper"], ["two words"], ["a" * 65], "system", ["x"] * 51])
async def test_what_is_no_topic_is_refused_as_a_whole(topics: object, autojump_clock: MockClock) -> None:
    async with open_party() as party:
        asking = await party.join()
        error = await asking.refused("events.subscribe", topics=topics)
        assert error.reason == "invalid_params"
        assert error.field is not None
        assert error.field.startswith("topics")
        assert (await asking.ask("events.unsubscribe", topics=["a"]))["topics"] == []
