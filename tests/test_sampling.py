"""What the monitor looks at is what there is."""

import math

import trio
from trio.testing import MockClock

from persona.errors import LLMUnavailable
from persona.llm.watch import FIRST_AFTER_S
from persona.monitor.memory import MEGABYTE
from persona.sampling import capacities
from persona.testing import open_server, settings_with
from tests.rpc.methods.asking import open_party
from tests.service.stage import PlayedModel


async def test_what_runs_and_what_waits_is_seen(autojump_clock: MockClock) -> None:
    model = PlayedModel()
    model.script = (math.inf, "never")
    async with open_party(backend=model, llm={"max_concurrency": 1}) as party, trio.open_nursery() as nursery:
        talkers = [await party.join() for _ in range(3)]
        for talker in talkers:
            nursery.start_soon(
                lambda talker=talker: talker.ask("persona.chat", persona_id="aria", message="Hello")
            )
        await trio.sleep(1)
        figures = await (await party.join()).ask("system.metrics")
        assert (figures["model"]["running"], figures["model"]["queued"]) == (1, 2)
        assert figures["connections"]["open"] == 4
        assert figures["memory"]["held_bytes"] > 0
        # Chats hold no place in the handler pool.
        assert figures["handlers"] == {"running": 0, "limit": 100}
        nursery.cancel_scope.cancel()


async def test_a_model_that_lists_its_models_and_fails_at_every_chat_is_down_until_it_answers_one(
    autojump_clock: MockClock,
) -> None:
    model = PlayedModel()
    script = model.script
    async with open_party(backend=model, llm={"max_retries": 0, "breaker_failures": 2}) as party:
        asking = await party.join()
        await trio.sleep(FIRST_AFTER_S + 1)
        await asking.ask("events.subscribe", topics=["system"])
        assert (await asking.ask("system.metrics"))["model"]["available"] is True
        model.script = (LLMUnavailable.transient("out of memory"),)
        for _ in range(2):
            await asking.refused("persona.chat", persona_id="aria", message="Hello")
        await trio.sleep(2)
        assert [(each["data"]["name"], each["data"]["state"]) for each in await asking.news()] == [
            ("llm_down", "raised")
        ]
        # Half open by now; nobody has been answered, and the alert neither goes nor comes again.
        await trio.sleep(600)
        assert (await asking.ask("system.metrics"))["model"]["available"] is False
        assert await asking.news() == []
        model.script = script
        await asking.ask("persona.chat", persona_id="aria", message="Hello")
        await trio.sleep(2)
        assert [(each["data"]["name"], each["data"]["state"]) for each in await asking.news()] == [
            ("llm_down", "cleared")
        ]


async def test_a_server_that_drains_says_so(autojump_clock: MockClock) -> None:
    async with open_server() as server, server.connect() as client:
        await client.switch("aria")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.call, "persona.chat", {"message": "Tell me a long story"})
            await trio.sleep(0.5)
            nursery.start_soon(server.drain)
            await trio.sleep(0.1)
            assert (await client.metrics()).status == "draining"


async def test_requests_are_named_by_what_there_is(autojump_clock: MockClock) -> None:
    async with open_server() as server, server.connect() as client:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.call, "persona.chat", {"persona_id": "aria", "message": "Hello"})
            await trio.sleep(0.75)
            text = (await client.tasks()).text
        assert "request persona.chat 0.8 s, due in 299.2 s" in text or "request persona.chat 0.7 s" in text


def test_capacities_are_the_settings() -> None:
    settings = settings_with(
        limits={
            "max_connections": 7,
            "memory_soft_limit_mb": 64,
            "memory_limit_mb": 0,
            "handler_pool_size": 9,
            "max_personas": 12,
        },
        llm={"max_concurrency": 2, "max_queue": 3},
        database={"readers": 1},
        background={"queue_size": 11},
    )
    found = capacities(settings)
    assert found.by_name() == {
        "max_connections": 7,
        "handler_pool_size": 9,
        "max_personas": 12,
        "memory_soft_limit_bytes": 64 * MEGABYTE,
        "memory_limit_bytes": 0,
        "database_readers": 1,
        "background_queue_size": 11,
        "llm_max_concurrency": 2,
        "llm_max_queue": 3,
    }
