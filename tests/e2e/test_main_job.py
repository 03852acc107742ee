"""The main job on real sockets: clients and personas chat through a real HTTP model server."""

import json
import re
import struct
import uuid
from collections.abc import Iterator
from pathlib import Path
from socket import SO_LINGER, SOL_SOCKET
from typing import Any

import pytest
import trio
from trio_websocket import wrap_client_stream

from tests.e2e.exchanges import (
    STYLES,
    Exchange,
    Style,
    ask,
    begin,
    history_ends_with,
    llm_settings,
    the_slot_is_free,
    turns_of,
)
from tests.llm.dialects import DIALECTS, Kind
from tests.llm.standin import StandIn, open_standin
from tests.serving import Wire, dial, serving

pytestmark = pytest.mark.usefixtures("nothing_crashed")

KINDS: tuple[Kind, ...] = ("ollama", "openai")
CLOSE_UPSTREAM_WITHIN_S = 0.25
LONG = " ".join(f"word{number}" for number in range(400))
"""At 10 ms a token this takes four seconds: no test sees its end."""

by_kind = pytest.mark.parametrize("kind", KINDS)
by_style = pytest.mark.parametrize("style", STYLES)
# Styles and dialects meet nowhere in the server, so not every pair of them is worth its time.
by_kind_and_style = pytest.mark.parametrize(
    ("kind", "style"), [*(("ollama", style) for style in STYLES), ("openai", "chat_stream")]
)


def speaker_and_line(body: dict[str, Any]) -> str:
    """A reply that shows of the prompt who was asked, what, and after how many turns."""
    system, *earlier, last = body["messages"]
    name = re.match(r"You are (\w+)", system["content"])
    assert name is not None
    return f"{name[1]} heard {last['content']!r} after {len(earlier)} turns."


def long_story(_body: dict[str, Any]) -> str:
    return LONG


def chats(standin: StandIn) -> list[dict[str, Any]]:
    """The bodies of the chat requests, in the order they came."""
    return [request.body for request in standin.requests if request.method == "POST"]


def asked_for(kind: Kind, body: dict[str, Any]) -> dict[str, Any]:
    """What a chat request asks for, under this server's names."""
    where = body["options"] if kind == "ollama" else body
    wanted = {name: where[name] for name in ("temperature", "top_p", "stop", "seed") if name in where}
    return {"token_budget": DIALECTS[kind].max_tokens(body), "model": body["model"], **wanted}


OPTIONS: tuple[dict[str, Any], ...] = (
    {},
    {"temperature": 0, "seed": 0},
    {"temperature": 1.25, "top_p": 0.5, "stop": ["\nUser:", "STOP"], "seed": 2**40},
    {"model": "stand-in-2"},
    {"top_p": 1},
)


class Talker:
    """A client that keeps a record of its own."""

    def __init__(self, wire: Wire, name: str) -> None:
        self.wire = wire
        self.name = name
        self.nonce = uuid.uuid4().hex
        self.said: list[dict[str, str]] = []
        """The conversation so far, as prompts show it."""
        self.asked: list[dict[str, Any]] = []
        self.spans: list[tuple[float, float]] = []

    async def turn(self, style: Style, number: int) -> None:
        line = f"{self.nonce} line {number} by {style} ünï 海"
        options = OPTIONS[number % len(OPTIONS)]
        began_at = trio.current_time()
        exchange = await ask(self.wire, style, message=line, token_budget=100 + number, options=options)
        self.spans.append((began_at, trio.current_time()))
        assert exchange.text == f"{self.name} heard {line!r} after {len(self.said)} turns."
        assert exchange.result["finish_reason"] == "stop"
        assert exchange.result["response_type"] == "llm"
        assert exchange.result["model"] == options.get("model", "stand-in")
        assert exchange.result["tokens_used"] == len(exchange.text.split())
        self.said += [{"role": "user", "content": line}, {"role": "assistant", "content": exchange.text}]
        self.asked.append({"token_budget": 100 + number, "model": "stand-in", **options})


@by_kind
async def test_two_clients_chat_at_once_and_each_gets_only_its_own(kind: Kind, tmp_path: Path) -> None:
    async with (
        open_standin(kind, reply=speaker_and_line, token_delay_s=0.002) as standin,
        serving(tmp_path / "p.db", llm=llm_settings(standin)) as server,
        dial(server.url) as one,
        dial(server.url) as other,
    ):
        talkers = (Talker(one, "Aria"), Talker(other, "Kira"))
        for talker in talkers:
            await talker.wire.call("persona.switch", {"persona_id": talker.name.lower()})
        for number, style in enumerate((*STYLES, *STYLES)):
            async with trio.open_nursery() as nursery:
                for talker in talkers:
                    nursery.start_soon(talker.turn, style, number)
        for talker in talkers:
            history = (await talker.wire.call("conversation.history"))["turns"]
            assert [{"role": turn["role"], "content": turn["content"]} for turn in history] == talker.said
            await talker.wire.alive()

    # They did talk at the same time.
    for (began, ended), (began_too, ended_too) in zip(talkers[0].spans, talkers[1].spans, strict=True):
        assert max(began, began_too) < min(ended, ended_too)

    for talker, stranger in (talkers, talkers[::-1]):
        bodies = [body for body in chats(standin) if talker.nonce in json.dumps(body)]
        assert len(bodies) == len(talker.asked)
        for number, body in enumerate(bodies):
            system, *rest = body["messages"]
            assert system["role"] == "system"
            assert system["content"].startswith(f"You are {talker.name}.")
            assert talker.nonce not in system["content"]
            # Earlier turns in order with their roles, then the new line.
            assert rest == talker.said[: 2 * number + 1]
            assert stranger.nonce not in json.dumps(body)
            assert asked_for(kind, body) == talker.asked[number]


async def test_what_a_client_sends_without_waiting_is_said_in_that_order(tmp_path: Path) -> None:
    async with open_standin("ollama") as standin:
        lines = [f"line {number}" for number in range(6)]
        async with serving(tmp_path / "p.db", llm=llm_settings(standin)) as server, dial(server.url) as wire:
            for line in lines:
                await wire.start("persona.chat", {"message": line, "persona_id": "aria"})
            replies = [await wire.receive() for _ in lines]
            history = (await wire.call("conversation.history", {"persona_id": "aria"}))["turns"]
            listed = (await wire.call("persona.status", {"persona_id": "aria"}))["memory_stats"]
    assert {reply["result"]["response"] for reply in replies} == {f"You said: {line}" for line in lines}
    assert [turn["content"] for turn in history if turn["role"] == "user"] == lines
    # One session talks with one persona in one conversation: none is begun and left empty.
    assert listed["total_conversations"] == 1


@by_kind
async def test_an_answer_in_one_burst_reaches_a_client_that_reads(kind: Kind, tmp_path: Path) -> None:
    """A model server behind a buffering proxy sends all at once; so does a fast model after a pause."""
    dialect, tokens = DIALECTS[kind], 3000

    def burst(body: dict[str, Any]) -> Iterator[bytes]:
        frames = [dialect.frame(dialect.token(body["model"], f"w{n} ")) for n in range(tokens)]
        yield b"".join([*frames, *dialect.end(body["model"], "stop", tokens)])

    async with (
        open_standin(kind, variant="raw", frames=burst) as standin,
        serving(tmp_path / "p.db", llm=llm_settings(standin)) as server,
        dial(server.url) as wire,
    ):
        exchange = await ask(
            wire, "chat_stream", message="All at once", persona_id="aria", token_budget=tokens
        )
    assert exchange.text == "".join(f"w{n} " for n in range(tokens))


@by_kind_and_style
async def test_cancelled_in_the_middle(kind: Kind, style: Style, tmp_path: Path) -> None:
    async with (
        open_standin(kind, reply=long_story, token_delay_s=0.01) as standin,
        serving(tmp_path / "p.db", llm=llm_settings(standin, max_concurrency=1)) as server,
        dial(server.url) as wire,
    ):
        exchange = await begin(wire, style, message="Tell me a story", persona_id="aria")
        with trio.fail_after(5):
            await standin.wait_tokens(3)
        if style != "chat":
            await exchange.receive_from(wire, until_chunks=3)
        await ping_is_answered_at_once(wire, exchange)

        by = {"request_id": exchange.id} if style == "chat" else {"stream_id": exchange.stream_id}
        asked_at = trio.current_time()
        await wire.start("stream.cancel", by, id="cancel")
        with trio.fail_after(5):
            closed_at = await standin.wait_client_closed()
        assert closed_at - asked_at < CLOSE_UPSTREAM_WITHIN_S

        cancelled: list[bool] = []
        while exchange.reply is None or not cancelled:
            frame = await wire.receive()
            if frame.get("id") == "cancel":
                # Answered while the stream runs, so before the stream's end.
                assert exchange.reply is None
                cancelled.append(frame["result"]["cancelled"])
            else:
                assert exchange.feed(frame)
        assert cancelled == [True]
        await wire.alive()  # and nothing came after the terminal event
        exchange.check()
        if style == "chat_stream":
            assert exchange.result["reason"] == "client"
            partial = exchange.result["partial_response"]
        else:
            assert (exchange.error["code"], exchange.error["data"]["reason"]) == (-32013, "cancelled")
            partial = exchange.error["data"]["partial_response"]
        assert exchange.terminal_events == ([] if style == "chat" else ["stream_cancelled"])

        await history_ends_with(wire, partial, "cancelled")
        assert LONG.startswith(partial)
        assert partial
        await the_slot_is_free(standin, wire, style)


async def ping_is_answered_at_once(wire: Wire, exchange: Exchange) -> None:
    with trio.fail_after(1):
        await wire.start("system.ping", id="ping")
        while (frame := await wire.receive()).get("id") != "ping":
            assert exchange.feed(frame)
    assert exchange.reply is None


@by_kind
async def test_cancelled_before_the_first_token(kind: Kind, tmp_path: Path) -> None:
    async with (
        open_standin(kind, variant="hang") as standin,
        serving(tmp_path / "p.db", llm=llm_settings(standin, max_concurrency=1)) as server,
        dial(server.url) as wire,
    ):
        exchange = await begin(wire, "chat_stream", message="Anybody?", persona_id="aria")
        with trio.fail_after(5):
            await standin.wait_requests(1)
        asked_at = trio.current_time()
        await wire.start("stream.cancel", {"request_id": exchange.id}, id="cancel")
        with trio.fail_after(5):
            assert await standin.wait_client_closed() - asked_at < CLOSE_UPSTREAM_WITHIN_S
        while exchange.reply is None:
            frame = await wire.receive()
            assert exchange.feed(frame) or frame["id"] == "cancel"
        assert exchange.check().terminal_events == ["stream_cancelled"]
        assert exchange.result["partial_response"] == ""
        # Nothing was said, so the turn can be tried again as if it had not been.
        assert (await wire.call("conversation.history", {"persona_id": "aria"}))["turns"] == []
        await the_slot_is_free(standin, wire, "chat_stream")


@pytest.mark.parametrize(("style", "ending"), [*((style, "fin") for style in STYLES), ("chat", "reset")])
async def test_the_clients_socket_vanishes_in_the_middle(style: Style, ending: str, tmp_path: Path) -> None:
    async with (
        open_standin("ollama", reply=long_story, token_delay_s=0.01) as standin,
        serving(tmp_path / "p.db", llm=llm_settings(standin, max_concurrency=1)) as server,
    ):
        async with trio.open_nursery() as nursery:
            stream = await trio.open_tcp_stream("127.0.0.1", server.port)
            socket = await wrap_client_stream(nursery, stream, f"127.0.0.1:{server.port}", "/mcp")
            wire = Wire(socket)
            conversation = (await wire.call("persona.switch", {"persona_id": "aria"}))["conversation_id"]
            exchange = await begin(wire, style, message="Tell me a story")
            with trio.fail_after(5):
                await standin.wait_tokens(5)
            if style != "chat":
                await exchange.receive_from(wire, until_chunks=3)
            if ending == "reset":
                stream.socket.setsockopt(SOL_SOCKET, SO_LINGER, struct.pack("ii", 1, 0))
            vanished_at = trio.current_time()
            await trio.aclose_forcefully(stream)
            with trio.fail_after(5):
                closed_at = await standin.wait_client_closed()
            assert closed_at - vanished_at < CLOSE_UPSTREAM_WITHIN_S
            nursery.cancel_scope.cancel()

        async with dial(server.url) as witness:
            with trio.fail_after(5):
                while not (turns := await turns_of(witness, conversation)):  # noqa: ASYNC110
                    await trio.sleep(0.01)
            assert [turn["role"] for turn in turns] == ["user", "assistant"]
            assert turns[1]["finish_reason"] == "disconnected"
            assert turns[1]["content"]
            assert LONG.startswith(turns[1]["content"])
            assert turns[1]["content"].startswith("".join(exchange.chunks))
            await the_slot_is_free(standin, witness, style)
            assert (await witness.call("system.status"))["active_connections"] == 1


@by_style
async def test_the_time_of_a_chat_is_up_in_the_middle(style: Style, tmp_path: Path) -> None:
    async with (
        open_standin("ollama", reply=long_story, token_delay_s=0.01) as standin,
        serving(
            tmp_path / "p.db",
            llm=llm_settings(standin, max_concurrency=1),
            limits={"chat_timeout_s": 0.15},
        ) as server,
        dial(server.url) as wire,
    ):
        asked_at = trio.current_time()
        exchange = await ask(wire, style, message="Tell me a story", persona_id="aria")
        assert 0.15 <= trio.current_time() - asked_at < 1.0
        with trio.fail_after(5):
            closed_at = await standin.wait_client_closed()
        assert closed_at - asked_at < 0.15 + CLOSE_UPSTREAM_WITHIN_S
        assert exchange.error["code"] == -32012
        assert exchange.terminal_events == ([] if style == "chat" else ["stream_error"])
        partial = exchange.error["data"]["partial_response"]
        assert partial
        assert LONG.startswith(partial)
        await history_ends_with(wire, partial, "timeout")
        await the_slot_is_free(standin, wire, style)


async def test_a_stream_that_waits_for_the_model_says_where_it_stands(tmp_path: Path) -> None:
    async with (
        open_standin("ollama", reply=long_story, token_delay_s=0.01) as standin,
        serving(tmp_path / "p.db", llm=llm_settings(standin, max_concurrency=1)) as server,
        dial(server.url) as first,
        dial(server.url) as second,
        dial(server.url) as third,
    ):
        running = await begin(first, "chat_stream", message="Long", persona_id="aria")
        await running.receive_from(first, until_chunks=1)
        next_one = await begin(second, "chat_stream", message="Short", persona_id="kira")
        assert (await second.receive())["result"]["event_type"] == "stream_start"
        assert (await second.receive())["result"]["data"] == {"position": 1}
        await begin(third, "chat_stream", message="Short", persona_id="kira")
        assert (await third.receive())["result"]["event_type"] == "stream_start"
        assert (await third.receive())["result"]["data"] == {"position": 2}
        # One that gives up makes the other move up, and never reaches the model.
        await second.start("stream.cancel", {"request_id": next_one.id}, id="cancel")
        replies = [await second.receive(), await second.receive()]
        assert {str(reply["id"]) for reply in replies} == {"cancel", str(next_one.id)}
        while (event := (await third.receive())["result"])["data"] != {"position": 1}:
            assert event["event_type"] == "stream_queued"
        assert len(chats(standin)) == 1
