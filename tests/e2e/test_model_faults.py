"""A model server that fails in every way there is: each chat ends once, and service returns by itself."""

import functools
import json
from pathlib import Path

import pytest
import trio

from tests.e2e.exchanges import (
    STYLES,
    Style,
    ask,
    history_ends_with,
    llm_settings,
    the_slot_is_free,
    turns_of,
)
from tests.llm.dialects import Kind
from tests.llm.standin import StandIn, Variant, open_standin
from tests.serving import dial, serving

pytestmark = pytest.mark.usefixtures("nothing_crashed")

by_kind = pytest.mark.parametrize("kind", ["ollama", "openai"])

FAULTS: dict[Variant, str] = {
    "not_found": "",
    "failing": "",
    "busy": "",
    "hang": "",
    "hang_midway": "You said:",
    "garbage": "",
    "half_line": "You said:",
    "closed_midway": "You said:",
    "error_in_band": "You said:",
}
"""Each with what is said before it shows. The line asked is "You said: one two", half of it comes."""


@pytest.mark.parametrize("variant", FAULTS)
@by_kind
async def test_a_broken_model_ends_a_chat_once_and_service_returns(
    kind: Kind, variant: Variant, tmp_path: Path
) -> None:
    async with (
        open_standin(kind) as standin,
        serving(
            tmp_path / "p.db", llm=llm_settings(standin, max_concurrency=1, first_token_timeout_s=0.25)
        ) as server,
        dial(server.url) as wire,
    ):
        # One that is silent takes its time.
        for style in STYLES[1:2] if kind == "openai" or "hang" in variant else STYLES:
            conversation = (await wire.call("persona.switch", {"persona_id": "aria"}))["conversation_id"]
            standin.variant = variant
            exchange = await ask(wire, style, message="one two")
            error = exchange.error
            assert (error["code"], error["data"]["reason"]) == (-32003, "llm_unavailable")
            assert error["data"]["retryable"] is True
            if variant == "busy":
                assert error["data"]["retry_after_s"] == 7
            assert "Traceback" not in json.dumps(error)
            await wire.alive()  # and nothing came after it
            turns = await turns_of(wire, conversation)
            if partial := FAULTS[variant]:
                assert error["data"]["partial_response"] == turns[-1]["content"] == partial
                assert turns[-1]["finish_reason"] == "error"
            else:
                assert turns == []
            await the_slot_is_free(standin, wire, style)
            assert len(await turns_of(wire, conversation)) == len(turns) + 2
            await wire.call("session.clear")


@pytest.mark.parametrize(
    ("kind", "style", "token_budget"),
    [
        ("ollama", "chat", 7),
        ("ollama", "chat_stream", 500),
        ("openai", "chat_stream", 7),
        ("openai", "stream_true", 500),
    ],
)
async def test_a_model_that_never_stops_is_cut(
    kind: Kind, style: Style, token_budget: int, tmp_path: Path
) -> None:
    async with (
        open_standin(kind, variant="endless") as standin,
        serving(tmp_path / "p.db", llm=llm_settings(standin, max_concurrency=1)) as server,
        dial(server.url) as wire,
    ):
        exchange = await ask(wire, style, message="Never stop", persona_id="aria", token_budget=token_budget)
        with trio.fail_after(5):
            await standin.wait_client_closed()
        assert exchange.result["finish_reason"] == "length"
        assert exchange.text.startswith("You said: Never stop")
        assert len(exchange.text) < token_budget * 64 + 2048
        await history_ends_with(wire, exchange.text, "length")
        await the_slot_is_free(standin, wire, style)


async def test_a_model_that_is_down_comes_back(tmp_path: Path) -> None:
    """Down means that nobody listens; the server is neither restarted nor told."""
    standin = StandIn("ollama")
    async with trio.open_nursery() as nursery:
        await nursery.start(standin.serve)
        nursery.cancel_scope.cancel()
    llm = llm_settings(standin)
    async with serving(tmp_path / "p.db", llm=llm) as server, dial(server.url) as wire:
        exchange = await ask(wire, "chat_stream", message="Hello?", persona_id="aria")
        assert exchange.error["data"]["reason"] == "llm_unavailable"
        assert (await wire.call("system.status"))["llm_available"] is False
        async with trio.open_nursery() as nursery:
            listeners = await trio.open_tcp_listeners(standin.port, host="127.0.0.1")
            handler = functools.partial(_serve_one, standin)
            nursery.start_soon(functools.partial(trio.serve_listeners, handler, listeners))
            exchange = await ask(wire, "chat_stream", message="Hello?", persona_id="aria")
            assert exchange.text == "You said: Hello?"
            assert (await wire.call("system.models"))["current_model"]
            assert (await wire.call("system.status"))["llm_available"] is True
            nursery.cancel_scope.cancel()


async def _serve_one(standin: StandIn, stream: trio.SocketStream) -> None:
    await standin._connection(stream)
