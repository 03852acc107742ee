"""A client that shares no code with the server: `websockets` on asyncio, in a thread of its own."""

import asyncio
import contextlib
import itertools
import json
import socket
from collections.abc import Awaitable, Callable
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path
from typing import Any

import pytest
import trio
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from tests.e2e.conftest import Serving
from tests.serving import RunningServer

pytestmark = pytest.mark.usefixtures("nothing_crashed")

LIMIT_BYTES = 65_536
SLOW_MODEL = {"backend": "scripted", "scripted_first_token_s": 0.02, "scripted_tokens_per_s": 100.0}
MCP: dict[str, Any] = {"subprotocols": ["mcp"]}


async def in_asyncio(client: Callable[[str], Awaitable[None]], url: str, *, within_s: float = 20.0) -> None:
    """Run an asyncio client beside the server. It bounds itself: its thread cannot be cancelled."""

    async def bounded() -> None:
        async with asyncio.timeout(within_s):
            await client(url)

    await trio.to_thread.run_sync(asyncio.run, bounded())


class Peer:
    """JSON-RPC, as another implementer would write it: answers matched by id."""

    def __init__(self, ws: ClientConnection) -> None:
        self.ws = ws
        self.ids = itertools.count(1)

    async def send(self, method: str, params: Any = None) -> int:
        id = next(self.ids)
        await self.ws.send(json.dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": params or {}}))
        return id

    async def receive(self) -> Any:
        frame = await self.ws.recv()
        assert isinstance(frame, str)
        return json.loads(frame)

    async def call(self, method: str, params: Any = None) -> Any:
        id = await self.send(method, params)
        reply = await self.receive()
        assert reply["id"] == id
        return reply["result"]


async def test_the_whole_flow(tmp_path: Path, serving: Serving, engine: str) -> None:
    async def client(url: str) -> None:
        async with connect(url, **MCP) as ws:
            assert ws.subprotocol == "mcp"
            peer = Peer(ws)
            assert (await peer.call("session.info"))["server"]["engine"] == engine
            assert {p["name"] for p in (await peer.call("persona.list"))["personas"]} == {"Aria", "Kira"}
            assert (await peer.call("persona.switch", {"persona_id": "aria"}))["name"] == "Aria"
            answer = await peer.call("persona.chat", {"message": "Hello"})
            assert answer["response"]

            id = await peer.send("persona.chat_stream", {"message": "Sing me something"})
            events: list[dict[str, Any]] = []
            while not events or events[-1]["event_type"] != "stream_complete":
                reply = await peer.receive()
                assert reply["id"] == id
                events.append(reply["result"])
            chunks = [event["chunk"] for event in events if event["event_type"] == "stream_chunk"]
            assert events[0]["event_type"] == "stream_start"
            assert "".join(chunks) == events[-1]["full_response"]

            id = await peer.send("persona.chat_stream", {"message": "And now a long story, please"})
            said = ""
            while len(said) < 5:
                event = (await peer.receive())["result"]
                said += event.get("chunk") or ""
            cancel = await peer.send("stream.cancel", {"stream_id": event["stream_id"]})
            answers: dict[int, Any] = {}
            while cancel not in answers or answers.get(id, {}).get("event_type") != "stream_cancelled":
                reply = await peer.receive()
                answers[reply["id"]] = reply["result"]
                said += reply["result"].get("chunk") or ""
            assert answers[cancel]["cancelled"] is True
            assert answers[id]["data"]["partial_response"] == said

            history = await peer.call("conversation.history")
            assert [(turn["role"], turn["content"]) for turn in history["turns"]] == [
                ("user", "Hello"),
                ("assistant", answer["response"]),
                ("user", "Sing me something"),
                ("assistant", "".join(chunks)),
                ("user", "And now a long story, please"),
                ("assistant", said),
            ]
            assert history["turns"][-1]["finish_reason"] == "cancelled"

            batch = [
                {"jsonrpc": "2.0", "id": "b1", "method": "system.ping", "params": {"payload": 1}},
                {"jsonrpc": "2.0", "method": "system.ping"},
                {"jsonrpc": "2.0", "id": "b2", "method": "persona.nope"},
                7,
            ]
            await ws.send(json.dumps(batch))
            by_id = {reply["id"]: reply for reply in await peer.receive()}
            assert by_id.keys() == {"b1", "b2", None}
            assert by_id["b1"]["result"]["payload"] == 1
            assert by_id["b2"]["error"]["code"] == -32601
            assert by_id[None]["error"]["code"] == -32600

            assert (await peer.call("system.ping", {"payload": "ü 海"}))["payload"] == "ü 海"
            await (await ws.ping())  # the WebSocket's own

    async with serving(tmp_path / "p.db", llm=SLOW_MODEL) as server:
        await in_asyncio(client, server.url)


@pytest.mark.parametrize(
    ("offered", "selected"),
    [(None, None), (["mcp"], "mcp"), (["other", "mcp"], "mcp"), (["other"], None)],
)
async def test_the_sub_protocol(offered: Any, selected: str | None, tmp_path: Path, serving: Serving) -> None:
    async def client(url: str) -> None:
        async with connect(url, subprotocols=offered) as ws:
            assert ws.subprotocol == selected
            assert (await Peer(ws).call("system.ping"))["pong"] is True

    async with serving(tmp_path / "p.db") as server:
        await in_asyncio(client, server.url)


def ping_of(size_bytes: int, character: str = "x") -> str:
    """A ping whose frame has exactly so many bytes."""
    frame = json.dumps({"jsonrpc": "2.0", "id": "big", "method": "system.ping", "params": {"payload": ""}})
    payload = character * ((size_bytes - len(frame)) // len(character.encode()))
    payload += "x" * (size_bytes - len(frame) - len(payload.encode()))
    text = frame.replace('""', json.dumps(payload, ensure_ascii=False))
    assert len(text.encode()) == size_bytes
    return text


@pytest.mark.parametrize("character", ["x", "ü", "海", "🎉"])
async def test_a_message_has_64_kib_and_not_a_byte_more(
    character: str, tmp_path: Path, serving: Serving
) -> None:
    async def client(url: str) -> None:
        async with connect(url, **MCP) as witness, connect(url, **MCP) as ws:
            await ws.send(ping_of(LIMIT_BYTES, character))
            assert json.loads(await ws.recv())["result"]["payload"].strip("x").strip(character) == ""
            # As several frames of one message it is no different.
            text = ping_of(LIMIT_BYTES, character)
            await ws.send(text[start : start + 5000] for start in range(0, len(text), 5000))
            assert json.loads(await ws.recv())["id"] == "big"

            await ws.send(ping_of(LIMIT_BYTES + 1, character))
            assert await close_code(ws) == 1009
            async with connect(url, **MCP) as other:
                text = ping_of(LIMIT_BYTES + 1, character)
                await other.send(text[start : start + 5000] for start in range(0, len(text), 5000))
                assert await close_code(other) == 1009
            assert (await Peer(witness).call("system.ping"))["pong"] is True

    async with serving(tmp_path / "p.db") as server:
        await in_asyncio(client, server.url)


async def close_code(ws: ClientConnection) -> int | None:
    with pytest.raises(ConnectionClosed):
        while True:
            await ws.recv()
    return ws.close_code


async def test_a_message_far_too_large_is_refused_while_it_comes(tmp_path: Path, serving: Serving) -> None:
    async def client(url: str) -> None:
        async with connect(url, **MCP) as witness, connect(url, **MCP) as ws:
            with contextlib.suppress(ConnectionClosed):
                await ws.send("x" * 5_000_000)
            # Its bytes may cross the server's close; then the socket breaks before the code is read.
            assert await close_code(ws) in (1009, 1006)
            assert (await Peer(witness).call("system.ping"))["pong"] is True

    async with serving(tmp_path / "p.db") as server:
        await in_asyncio(client, server.url)


async def test_a_binary_message_is_refused(tmp_path: Path, serving: Serving) -> None:
    async def client(url: str) -> None:
        async with connect(url, **MCP) as witness, connect(url, **MCP) as ws:
            await ws.send(json.dumps({"jsonrpc": "2.0", "id": 1, "method": "system.ping"}).encode())
            assert await close_code(ws) == 1003
            assert (await Peer(witness).call("system.ping"))["pong"] is True

    async with serving(tmp_path / "p.db") as server:
        await in_asyncio(client, server.url)


BROKEN_FRAMING = {
    "reserved opcode": b"\x83\x80\x00\x00\x00\x00",
    "reserved bit": b"\xc1\x80\x00\x00\x00\x00",
    "not masked": b"\x81\x02{}",
    "a continuation of nothing": b"\x80\x80\x00\x00\x00\x00",
    "an overlong ping": b"\x89\xfe\x00\x7e\x00\x00\x00\x00" + b"x" * 126,
    "no UTF-8": b"\x81\x82\x00\x00\x00\x00\xc3\x28",
    "plain text": b"GET / HTTP/1.1\r\n\r\n",
    "noise": bytes(range(255, 0, -1)) * 10,
    "half a frame": b"\x81\xfe\x04",
}


@pytest.mark.parametrize("data", BROKEN_FRAMING.values(), ids=BROKEN_FRAMING)
async def test_broken_framing_drops_one_connection_only(
    data: bytes, tmp_path: Path, serving: Serving
) -> None:
    async def client(url: str) -> None:
        async with connect(url, **MCP) as witness, connect(url, **MCP, ping_interval=None) as ws:
            peer = Peer(witness)
            await peer.call("persona.switch", {"persona_id": "kira"})
            assert ws.transport is not None
            ws.transport.write(data)
            if data == BROKEN_FRAMING["half a frame"]:
                ws.transport.close()  # type: ignore[attr-defined]
            assert await close_code(ws) in (1002, 1003, 1006, 1007)
            assert (await peer.call("session.info"))["current_persona"] == "Kira"
            while (await peer.call("system.status"))["active_connections"] > 1:
                await asyncio.sleep(0.01)

    async with serving(tmp_path / "p.db") as server:
        await in_asyncio(client, server.url)


# Before the WebSocket: plain HTTP.


async def http_get(server: RunningServer, path: str, headers: dict[str, str]) -> tuple[HTTPResponse, str]:
    def get() -> tuple[HTTPResponse, str]:
        connection = HTTPConnection("127.0.0.1", server.port, timeout=5)
        try:
            connection.request("GET", path, headers=headers)
            response = connection.getresponse()
            return response, response.read().decode()
        finally:
            connection.close()

    return await trio.to_thread.run_sync(get)


UPGRADE = {
    "Connection": "Upgrade",
    "Upgrade": "websocket",
    "Sec-WebSocket-Version": "13",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
}


@pytest.mark.parametrize(
    ("path", "headers", "status"),
    [
        ("/mcp", {}, 426),
        ("/mcp", {**UPGRADE, "Sec-WebSocket-Version": "8"}, 426),
        ("/mcp?x=1", {}, 426),
        ("/", {}, 404),
        ("/mcp/", UPGRADE, 404),
        ("/other", UPGRADE, 404),
        ("/mcp", {**UPGRADE, "Host": "evil.example"}, 403),
        ("/mcp", {**UPGRADE, "Origin": "http://evil.example"}, 403),
        ("/mcp", {**UPGRADE, "Origin": "null"}, 403),
        ("/mcp", {**UPGRADE, "Host": "evil.example:8000"}, 403),
        ("/mcp", {**UPGRADE, "Sec-WebSocket-Key": "short"}, 400),
    ],
)
async def test_refusals_before_the_websocket(
    path: str, headers: dict[str, str], status: int, tmp_path: Path, serving: Serving
) -> None:
    async with serving(tmp_path / "p.db") as server:
        response, body = await http_get(server, path, headers)
        assert response.status == status
        # A line for the person who tries it with curl.
        assert body.endswith("\n")
        assert body.count("\n") == 1
        if status in (404, 426):
            assert "WebSocket" in body
            assert "/mcp" in body
        if status == 426:
            assert response.getheader("Upgrade") == "websocket"

        async def well_meant(url: str) -> None:
            async with connect(url, origin=f"http://localhost:{server.port}") as ws:
                assert (await Peer(ws).call("system.ping"))["pong"] is True

        await in_asyncio(well_meant, server.url)


async def test_one_connection_too_many(tmp_path: Path, serving: Serving) -> None:
    async def client(url: str) -> None:
        async with connect(url) as one:
            async with connect(url) as two:
                for _ in range(3):
                    with pytest.raises(InvalidStatus) as refused:
                        await connect(url)
                    assert refused.value.response.status_code == 503
                    assert int(refused.value.response.headers["Retry-After"]) > 0
                assert (await Peer(two).call("system.ping"))["pong"] is True
            async with asyncio.timeout(1):
                ws = await connect_when_there_is_room(url)
            assert (await Peer(ws).call("system.ping"))["pong"] is True
            # The same when a client vanishes without a close.
            assert ws.transport is not None
            ws.transport.abort()
            async with asyncio.timeout(1):
                ws = await connect_when_there_is_room(url)
            assert (await Peer(ws).call("system.ping"))["pong"] is True
            await ws.close()
            assert (await Peer(one).call("system.ping"))["pong"] is True

    async with serving(tmp_path / "p.db", limits={"max_connections": 2}) as server:
        await in_asyncio(client, server.url)


async def connect_when_there_is_room(url: str) -> ClientConnection:
    while True:
        try:
            return await connect(url)
        except InvalidStatus:
            await asyncio.sleep(0.01)


async def test_a_refused_message_gives_its_place_back_within_a_second(
    tmp_path: Path, serving: Serving
) -> None:
    """A client that sent too much, or broke the framing, and then does not even close."""

    async def client(url: str) -> None:
        port = int(url.rsplit(":", 1)[1].split("/")[0])
        for data in (b"\x82\x82\x00\x00\x00\x00{}", BROKEN_FRAMING["reserved opcode"]):
            with socket.create_connection(("127.0.0.1", port), timeout=5) as stubborn:
                lines = [f"Host: 127.0.0.1:{port}", *(f"{name}: {value}" for name, value in UPGRADE.items())]
                stubborn.sendall("\r\n".join(["GET /mcp HTTP/1.1", *lines, "", ""]).encode())
                assert stubborn.recv(1000).startswith(b"HTTP/1.1 101")
                stubborn.sendall(data)
                async with asyncio.timeout(1):
                    ws = await connect_when_there_is_room(url)
                await ws.close()

    async with serving(tmp_path / "p.db", limits={"max_connections": 1, "close_timeout_s": 0.5}) as server:
        await in_asyncio(client, server.url)
