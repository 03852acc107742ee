"""`system.*` and `rpc.discover`: the server itself."""

import math
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from persona.errors import LLMUnavailable
from persona.llm.watch import ANSWER_TIMEOUT_S, WATCH_INTERVAL_S
from persona.model import isoformat
from persona.testing import EPOCH, RESIDENT_BYTES
from tests.rpc.methods.asking import TOKENS, open_party
from tests.service.stage import PlayedModel


@pytest.mark.parametrize("payload", [None, 0, "ä\u2028", [1, {"a": None}], {"deep": {"er": [True]}}])
async def test_ping_gives_back_what_came_with_it(payload: Any, autojump_clock: MockClock) -> None:
    async with open_party() as party:
        asking = await party.join()
        await trio.sleep(2)
        pong = await asking.ask("system.ping", payload=payload)
        assert pong == {"pong": True, "payload": payload, "time": isoformat(EPOCH + 2)}


async def test_status_counts_what_there_is(autojump_clock: MockClock) -> None:
    async with open_party() as party:
        asking = await party.join()
        await party.join()
        await asking.ask("persona.update", persona_id="kira", max_available_time=0.5)
        await asking.ask("persona.chat", persona_id="kira", message="Hello")
        switched = await asking.ask("persona.switch", persona_id="aria")
        status = await asking.ask("system.status")
        average = status.pop("avg_response_time")
        assert average > 0
        assert status == {
            "system_status": "operational",
            "status": "ok",
            "llm_available": True,
            "llm_circuit": {"state": "closed", "since": isoformat(EPOCH)},
            "total_personas": 2,
            "available_personas": 1,
            "active_conversations": 2,
            "current_persona": "Aria",
            "current_conversation": switched["conversation_id"],
            "timestamp": isoformat(EPOCH + trio.current_time()),
            "uptime_seconds": trio.current_time(),
            "active_connections": 2,
            "total_requests": 3,
            "memory_usage_mb": RESIDENT_BYTES / 1e6,
        }
        # A conversation is active for an hour after its last turn.
        await trio.sleep(3601)
        later = await asking.ask("system.status")
        assert later["active_conversations"] == 0
        assert later["total_requests"] == 4


async def test_a_fresh_server_has_answered_nothing(autojump_clock: MockClock) -> None:
    async with open_party() as party:
        status = await (await party.join()).ask("system.status")
        assert (status["total_requests"], status["avg_response_time"]) == (0, 0.0)
        assert (status["current_persona"], status["current_conversation"]) == (None, None)


async def test_status_says_which_way_the_circuit_is_and_since_when(autojump_clock: MockClock) -> None:
    """While it is open the model is not available, whatever it says when it is asked for its models."""
    model = PlayedModel()
    async with open_party(backend=model, llm={"max_retries": 0, "breaker_failures": 2}) as party:
        asking = await party.join()
        model.script = (LLMUnavailable.transient("gone"),)

        async def circuit() -> tuple[bool, str, str]:
            status = await asking.ask("system.status")
            return status["llm_available"], status["llm_circuit"]["state"], status["llm_circuit"]["since"]

        started = trio.current_time()
        assert await circuit() == (True, "closed", isoformat(EPOCH))
        await trio.sleep(10)
        for _ in range(2):
            assert (
                await asking.refused("persona.chat", persona_id="kira", message="Hello")
            ).message == "gone"
        assert await circuit() == (False, "open", isoformat(EPOCH + 10))
        error = await asking.refused("persona.chat", persona_id="kira", message="Hello")
        assert (error.reason, error.retry_after_s) == ("llm_unavailable", 5)
        await trio.sleep(7)
        assert await circuit() == (True, "half_open", isoformat(EPOCH + 15))
        model.script = ("Here",)
        await asking.ask("persona.chat", persona_id="kira", message="Hello")
        assert await circuit() == (True, "closed", isoformat(EPOCH + 17))
        assert trio.current_time() == started + 17


async def test_a_chat_that_finds_the_model_hang_opens_the_circuit_again(autojump_clock: MockClock) -> None:
    model = PlayedModel()
    llm = {"max_retries": 0, "breaker_failures": 1, "breaker_open_s": 1.0, "first_token_timeout_s": 8.0}
    async with open_party(backend=model, llm=llm) as party:
        asking, other = await party.join(), await party.join()
        model.script = (LLMUnavailable.transient("gone"),)
        await asking.refused("persona.chat", persona_id="kira", message="Hello")
        await trio.sleep(1)
        model.script = (3600.0,)
        error = await asking.refused("persona.chat", persona_id="kira", message="Hello")
        assert error.message == "the model was silent for 8 s"
        assert (await other.ask("system.status"))["llm_circuit"]["state"] == "open"
        error = await other.refused("persona.chat", persona_id="kira", message="Hello")
        assert (error.reason, error.retry_after_s) == ("llm_unavailable", 2)


async def test_status_tells_what_came_of_the_last_question(autojump_clock: MockClock) -> None:
    """Only the very first one waits: nothing is known before."""
    model = PlayedModel()
    model.answers_after_s = 1.0
    async with open_party(backend=model) as party:
        asking = await party.join()
        started = trio.current_time()
        assert (await asking.ask("system.status"))["llm_available"]
        assert trio.current_time() - started == 1.0
        model.answers_after_s = math.inf
        assert (await asking.ask("system.status"))["llm_available"]
        await trio.sleep(WATCH_INTERVAL_S + ANSWER_TIMEOUT_S)
        asked_at = trio.current_time()
        assert not (await asking.ask("system.status"))["llm_available"]
        model.answers_after_s = 0.0
        assert await asking.ask("system.models")
        assert (await asking.ask("system.status"))["llm_available"]
        assert trio.current_time() == asked_at


@pytest.mark.parametrize("way", ["refuses", "hangs"])
async def test_a_model_that_never_answered_is_not_available(way: str, autojump_clock: MockClock) -> None:
    model = PlayedModel()
    if way == "refuses":
        model.names = LLMUnavailable("gone")
    else:
        model.answers_after_s = math.inf
    async with open_party(backend=model) as party:
        asking = await party.join()
        assert not (await asking.ask("system.status"))["llm_available"]
        assert trio.current_time() == (0 if way == "refuses" else ANSWER_TIMEOUT_S)


async def test_models_are_the_backends(autojump_clock: MockClock) -> None:
    model = PlayedModel()
    async with open_party(backend=model) as party:
        asking = await party.join()
        assert await asking.ask("system.models") == {
            "available_models": ["played:1", "played:2"],
            "current_model": "played:1",
            "provider": "played",
        }
        model.names = LLMUnavailable("gone", retry_after_s=5.0)
        error = await asking.refused("system.models")
        assert (error.reason, error.retry_after_s) == ("llm_unavailable", 5.0)


async def test_a_model_server_that_hangs_locks_nobody_out(autojump_clock: MockClock) -> None:
    """However many ask for its models, they hold no place in the handler pool, and are soon told."""
    model, reasons = PlayedModel(), []
    async with open_party(backend=model, limits={"handler_pool_size": 4}) as party:
        curious, other = await party.join(), await party.join()
        assert (await other.ask("system.status"))["llm_available"]
        model.answers_after_s = math.inf

        async def ask_for_models() -> None:
            reasons.append((await curious.refused("system.models")).reason)

        async with trio.open_nursery() as nursery:
            for _ in range(8):
                nursery.start_soon(ask_for_models)
            await wait_all_tasks_blocked()
            started = trio.current_time()
            await other.ask("persona.switch", persona_id="aria")
            await other.ask("system.status")
            assert trio.current_time() == started
        assert reasons == ["llm_unavailable"] * 8
        assert trio.current_time() == started + ANSWER_TIMEOUT_S


async def test_who_asks_for_models_may_give_less_time(autojump_clock: MockClock) -> None:
    model = PlayedModel()
    model.answers_after_s = math.inf
    async with open_party(backend=model) as party:
        error = await (await party.join()).refused("system.models", timeout_s=0.5)
        assert (error.reason, trio.current_time()) == ("deadline_exceeded", 0.5)


async def test_a_broadcast_reaches_who_subscribed_to_its_topic(autojump_clock: MockClock) -> None:
    async with open_party() as party:
        root, news, system = [await party.join() for _ in range(3)]
        await news.ask("events.subscribe", topics=["news"])
        await system.ask("events.subscribe", topics=["system"])
        for topic in ({"topic": "news"}, {}):
            sent = await root.ask("system.broadcast", type="rain", data={"mm": 3}, **topic)
            assert sent == {"delivered": 1, "dropped": 0}
        assert (await root.ask("system.broadcast", type="x", data=None, topic="empty"))["delivered"] == 0
        for subscriber, topic in ((news, "news"), (system, "system")):
            (event,) = await subscriber.news()
            assert event == {
                "topic": topic,
                "type": "rain",
                "data": {"mm": 3},
                "seq": 1,
                "timestamp": isoformat(EPOCH + trio.current_time()),
            }


async def test_only_admins_broadcast(autojump_clock: MockClock) -> None:
    async with open_party(auth={"tokens": TOKENS}) as party:
        ann, root = await party.join("ann"), await party.join("root")
        error = await ann.refused("system.broadcast", type="x", data=1)
        assert error.reason == "unauthorized"
        assert (await root.ask("system.broadcast", type="x", data=1))["delivered"] == 0


async def test_discovery_describes_exactly_what_can_be_called(autojump_clock: MockClock) -> None:
    async with open_party() as party:
        asking = await party.join()
        document = await asking.ask("rpc.discover")
        names = [method["name"] for method in document["methods"]]
        assert names == [spec.name for spec in party.server.server.registry.specs()]
        for name in names:
            error = await asking.refused(name, no_such_parameter=1)
            assert (error.reason, error.field) == ("invalid_params", "no_such_parameter")
        assert (await asking.refused("no.such.method")).reason == "method_not_found"
