"""A model server that is busy, down, and back again: real HTTP, real sockets, and no restart."""

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.e2e.exchanges import STYLES, Style, ask, llm_settings, turns_of
from tests.llm.dialects import Kind
from tests.llm.standin import StandIn, Variant, open_standin
from tests.serving import Wire, dial, serving

pytestmark = pytest.mark.usefixtures("nothing_crashed")

by_kind = pytest.mark.parametrize("kind", ["ollama", "openai"])


@asynccontextmanager
async def up(standin: StandIn) -> AsyncIterator[None]:
    """Somebody listens at the stand-in's port within the block."""
    async with trio.open_nursery() as nursery:
        await nursery.start(standin.serve)
        yield
        nursery.cancel_scope.cancel()


async def down(kind: Kind) -> StandIn:
    """A stand-in with a port at which nobody listens yet."""
    standin = StandIn(kind)
    async with up(standin):
        pass
    return standin


def at_first(count: int, variant: Variant) -> Callable[[Any], Variant]:
    """That for so many chats, and then all is well."""
    variants = itertools.chain(itertools.repeat(variant, count), itertools.repeat("ok"))
    return lambda _body: next(variants)  # type: ignore[return-value]


def chats_asked(standin: StandIn) -> int:
    return [request.method for request in standin.requests].count("POST")


async def circuit(wire: Wire) -> dict[str, Any]:
    status = await wire.call("system.status")
    return {"available": status["llm_available"], **status["llm_circuit"]}


@pytest.mark.parametrize("style", STYLES)
@by_kind
async def test_busy_twice_then_well(kind: Kind, style: Style, tmp_path: Path) -> None:
    """The client sees an answer and nothing of the two refusals."""
    async with (
        open_standin(kind, variant=at_first(2, "busy_briefly")) as standin,
        serving(tmp_path / "p.db", llm=llm_settings(standin, max_concurrency=1)) as server,
        dial(server.url) as wire,
    ):
        started = trio.current_time()
        exchange = await ask(wire, style, message="Hello?", persona_id="aria")
        assert exchange.text == "You said: Hello?"
        assert chats_asked(standin) == 3
        # Half of a quarter and of half a second, at least.
        assert trio.current_time() - started >= 0.375
        assert (await circuit(wire))["state"] == "closed"


async def test_nobody_listens_and_then_somebody_does(tmp_path: Path) -> None:
    standin = await down("ollama")
    llm = llm_settings(standin, max_retries=20, breaker_failures=1000)
    async with serving(tmp_path / "p.db", llm=llm) as server, dial(server.url) as wire:
        await wire.start("persona.chat", {"message": "Hello?", "persona_id": "aria"}, id="mine")
        await trio.sleep(0.3)
        async with up(standin):
            reply = await wire.receive(within_s=20)
            assert reply["id"] == "mine"
            assert reply["result"]["response"] == "You said: Hello?"
            assert chats_asked(standin) == 1


async def test_a_server_that_stays_down_opens_the_circuit_and_its_return_closes_it(tmp_path: Path) -> None:
    standin = await down("openai")
    llm = llm_settings(standin, max_retries=1, breaker_failures=4, breaker_open_s=2.0)
    async with serving(tmp_path / "p.db", llm=llm) as server, dial(server.url) as wire:
        conversation = (await wire.call("persona.switch", {"persona_id": "aria"}))["conversation_id"]
        started = await circuit(wire)
        assert started["state"] == "closed"
        for _ in range(2):
            error = (await ask(wire, "chat_stream", message="Hello?")).error
            assert "is it running" in error["message"]
        opened = await circuit(wire)
        assert (opened["available"], opened["state"]) == (False, "open")
        assert opened["since"] > started["since"]
        async with up(standin):
            # It is back already, and nobody asks before the time is up.
            error = (await ask(wire, "chat", message="Hello?")).error
            assert (error["data"]["reason"], error["data"]["retryable"]) == ("llm_unavailable", True)
            assert 0 < error["data"]["retry_after_s"] <= 2.0
            assert standin.requests == []
            await trio.sleep(error["data"]["retry_after_s"] + 0.05)
            exchange = await ask(wire, "chat_stream", message="Hello?")
            assert exchange.text == "You said: Hello?"
            # The next time that somebody asks for its models, the watch or a client, it is seen to be there.
            await wire.call("system.models")
            closed = await circuit(wire)
            assert (closed["available"], closed["state"]) == (True, "closed")
            assert closed["since"] > opened["since"]
        # What was refused left nothing behind.
        turns = await turns_of(wire, conversation)
        assert [turn["content"] for turn in turns] == ["Hello?", "You said: Hello?"]


async def test_a_chat_is_the_probe_and_others_are_refused_until_its_first_token(tmp_path: Path) -> None:
    standin = await down("ollama")
    # With the only slot: they are not left to wait for it either.
    llm = llm_settings(standin, max_concurrency=1, max_retries=0, breaker_failures=1, breaker_open_s=0.2)
    async with (
        serving(tmp_path / "p.db", llm=llm) as server,
        dial(server.url) as wire,
        dial(server.url) as other,
    ):
        assert (await ask(wire, "chat", message="Hello?", persona_id="aria")).reply
        async with up(standin):
            await trio.sleep(0.25)
            assert (await circuit(wire))["state"] == "half_open"
            standin.variant = "hang"
            await wire.start("persona.chat", {"message": "Hello?", "persona_id": "aria"}, id="probe")
            with trio.fail_after(5):
                await standin.wait_requests(2)  # the list of models, and the chat
            assert (await circuit(other))["available"] is False
            error = (await ask(other, "chat", message="Hello?", persona_id="aria")).error
            assert error["data"]["retry_after_s"] >= 1
            assert chats_asked(standin) == 1
            # A probe that is cancelled decides nothing.
            await wire.start("stream.cancel", {"request_id": "probe"}, id="cancel")
            replies = {reply["id"]: reply for reply in (await wire.receive(), await wire.receive())}
            assert replies["cancel"]["result"]["cancelled"]
            assert replies["probe"]["error"]["data"]["reason"] == "cancelled"
            standin.variant = "ok"
            assert (await ask(other, "chat", message="Hello?", persona_id="aria")).text == "You said: Hello?"
            assert (await circuit(other))["state"] == "closed"


@by_kind
async def test_no_second_request_after_the_first_token(kind: Kind, tmp_path: Path) -> None:
    async with (
        open_standin(kind, variant="closed_midway") as standin,
        serving(tmp_path / "p.db", llm=llm_settings(standin, max_retries=5)) as server,
        dial(server.url) as wire,
    ):
        exchange = await ask(wire, "chat_stream", message="one two", persona_id="aria")
        assert exchange.error["data"]["partial_response"] == "You said:"
        assert chats_asked(standin) == 1


async def test_a_chat_cancelled_between_two_attempts_is_not_made_again(tmp_path: Path) -> None:
    def variant(body: Any) -> Variant:
        return "busy_briefly" if body["messages"][-1]["content"] == "Mine" else "ok"

    llm = {"max_concurrency": 1, "max_retries": 20, "breaker_failures": 1000}
    async with (
        open_standin("ollama", variant=variant) as standin,
        serving(tmp_path / "p.db", llm=llm_settings(standin, **llm)) as server,
        dial(server.url) as wire,
        dial(server.url) as other,
    ):
        await wire.start("persona.chat", {"message": "Mine", "persona_id": "aria"}, id="mine")
        with trio.fail_after(5):
            await standin.wait_requests(1)
        await wire.start("stream.cancel", {"request_id": "mine"}, id="cancel")
        replies = {reply["id"]: reply for reply in (await wire.receive(), await wire.receive())}
        assert replies["mine"]["error"]["data"]["reason"] == "cancelled"
        asked = chats_asked(standin)
        # Its slot is free, and the only request from now on is the next chat's.
        assert (await ask(other, "chat", message="Next", persona_id="aria")).text == "You said: Next"
        await trio.sleep(0.6)
        assert chats_asked(standin) == asked + 1


async def test_a_chat_that_finds_no_slot_in_time_is_told_when_to_come_back(tmp_path: Path) -> None:
    """Meanwhile it knows where it stands, and it leaves the queue to others."""
    async with (
        open_standin("ollama", variant="hang") as standin,
        serving(
            tmp_path / "p.db", llm=llm_settings(standin, max_concurrency=1, max_queue_wait_s=0.4)
        ) as server,
        dial(server.url) as wire,
        dial(server.url) as other,
    ):
        await wire.start("persona.chat", {"message": "Hello?", "persona_id": "aria"}, id="mine")
        with trio.fail_after(5):
            await standin.wait_requests(1)
        exchange = await ask(other, "chat_stream", message="Me, too", persona_id="aria")
        assert exchange.error["data"]["reason"] == "overloaded"
        assert exchange.error["data"]["retry_after_s"] >= 1
        assert "0.4 s" in exchange.error["message"]
        kinds = [event["event_type"] for event in exchange.events]
        assert kinds == ["stream_start", "stream_queued"]
        assert exchange.events[1]["data"] == {"position": 1}
