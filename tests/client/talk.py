"""What a fake server does, and what a test hears of it."""

import base64
import hashlib
from typing import Any

import trio

from persona.client import ChatStream
from tests.client.fake_server import FakeConnection, Handler

Request = dict[str, Any]
HOUR_S = 3600


async def never(connection: FakeConnection, request: Request) -> None:
    """Takes the request and says nothing."""


def talks_until_cancelled(*chunks: str) -> Handler:
    async def handler(connection: FakeConnection, request: Request) -> None:
        await connection.event(request, "stream_start", persona_id="p-aria")
        for chunk in chunks:
            await connection.event(request, "stream_chunk", chunk=chunk)

    return handler


async def hear(stream: ChatStream, into: list[str]) -> None:
    """Iterate to the end, or to the error; what came until then is kept."""
    async for delta in stream:
        into.append(delta)  # noqa: PERF401 - an exception must not take the beginning along


async def shake_hands(stream: trio.abc.Stream) -> None:
    """The server's half of the handshake, by hand."""
    request = await stream.receive_some()
    (key,) = [line[19:] for line in request.split(b"\r\n") if line.startswith(b"Sec-WebSocket-Key: ")]
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    await stream.send_all(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n"
    )
