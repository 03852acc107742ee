"""An engine, and at the other end of its stream a client that speaks in bytes."""

import socket
import struct
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress

import attrs
import trio
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from persona.transport.engine import AcceptEngine, BadMessage, Engine, EngineOptions, PeerGone
from persona.transport.engine_sansio import AcceptSansio
from persona.transport.engine_trio_websocket import AcceptTrioWebsocket
from persona.transport.handshake import RequestHead, read_head
from persona.transport.sockets import SocketStream, open_readiness

Pair = tuple[trio.abc.HalfCloseableStream, trio.abc.HalfCloseableStream]
Connect = Callable[[], AbstractAsyncContextManager[Pair]]

CONT, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
RESET = struct.pack("ii", 1, 0)
"""SO_LINGER for a close that resets the connection."""
OPENING = (
    "GET /mcp HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
)
"""The opening request of RFC 6455, section 1.3, without its last line; with its answer below."""
ACCEPTED = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
OPENING_HEAD = RequestHead(
    "GET",
    "/mcp",
    tuple((name.lower(), value) for name, value in (line.split(": ") for line in OPENING.splitlines()[1:])),
)
"""The same, read."""
OPTIONS = EngineOptions(
    max_message_bytes=1000, control_rate_per_minute=0, control_rate_burst=100, write_deadline_s=10.0
)


def frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    mask: bytes | None = b"\x11\x22\x33\x44",
    reserved: int = 0,
) -> bytes:
    """A client's frame, as the RFC's picture has it."""
    size, is_masked = len(payload), 0x80 if mask is not None else 0
    head = bytes([fin << 7 | reserved << 4 | opcode])
    if size < 126:
        head += bytes([is_masked | size])
    elif size < 1 << 16:
        head += bytes([is_masked | 126]) + size.to_bytes(2, "big")
    else:
        head += bytes([is_masked | 127]) + size.to_bytes(8, "big")
    if mask is None:
        return head + payload
    key = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
    return head + mask + (int.from_bytes(payload, "big") ^ key).to_bytes(size, "big")


def text(message: str) -> bytes:
    return frame(TEXT, message.encode())


def fragments(*parts: bytes, opcode: int = TEXT) -> list[bytes]:
    """One message, a frame for each part."""
    last = len(parts) - 1
    return [frame(CONT if n else opcode, part, fin=n == last) for n, part in enumerate(parts)]


def close(code: int, reason: str = "") -> bytes:
    return frame(CLOSE, code.to_bytes(2, "big") + reason.encode())


class RawClient:
    """Sends what it is told, and reads a server's frames strictly."""

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self.stream = stream
        self._unread = bytearray()

    async def send(self, *data: bytes) -> None:
        await self.stream.send_all(b"".join(data))

    async def opening(self) -> bytes:
        """The answer to the opening request, down to its empty line."""
        while b"\r\n\r\n" not in self._unread:
            assert await self.more()
        end = self._unread.index(b"\r\n\r\n") + 4
        return self._taken(end)

    async def frame(self) -> tuple[int, bytes]:
        """Opcode and payload of the next frame."""
        first, second = await self._exactly(2)
        assert first & 0xF0 == 0x80, "a fragment, or a reserved bit"
        assert second < 126 or second in (126, 127), "a server's frame is not masked"
        size = second
        if second == 126:
            size = int.from_bytes(await self._exactly(2), "big")
            assert size >= 126
        elif second == 127:
            size = int.from_bytes(await self._exactly(8), "big")
            assert size >= 1 << 16
        return first & 0x0F, bytes(await self._exactly(size))

    async def has_frame(self) -> bool:
        """Whether anything comes before the end."""
        return bool(self._unread) or await self.more()

    async def goodbye(self) -> bytes:
        """What the close frame says that comes next, and after which nothing may come but the end. The
        client then hangs up."""
        opcode, payload = await self.frame()
        assert opcode == CLOSE
        assert await self.rest() == b""
        await self.stream.aclose()
        return payload

    async def rest(self) -> bytes:
        """Everything up to the end."""
        while await self.more():
            pass
        return self._taken(len(self._unread))

    async def _exactly(self, size: int) -> bytes:
        while len(self._unread) < size:
            assert await self.more(), "the stream ended inside a frame"
        return self._taken(size)

    async def more(self) -> bool:
        """Read something, for one of the others to give; `False` at the end."""
        data = await self.stream.receive_some(65536)
        self._unread += data
        return bool(data)

    def _taken(self, size: int) -> bytes:
        taken = bytes(self._unread[:size])
        del self._unread[:size]
        return taken


@attrs.define
class Link:
    """What the engine's owner does, and the client."""

    engine: Engine
    client: RawClient
    opening: bytes
    """The answer to the client's opening request."""
    nursery: trio.Nursery
    """Where the engine's own tasks live."""
    is_sending: bool = False
    is_leaving: bool = False

    def flush(self) -> None:
        """Let the engine say what it has to say by itself."""
        if self.is_sending or self.is_leaving:
            return
        if self.engine.sends_at_once:
            self.engine.send_nowait(())
        if self.engine.has_unsent:
            self.is_sending = True
            self.nursery.start_soon(self._send_unsent)

    async def _send_unsent(self) -> None:
        # Its reader will hear of a peer that is gone.
        with suppress(PeerGone):
            while self.engine.has_unsent:
                await self.engine.send(())
        self.is_sending = False

    async def send(self, *messages: bytes) -> None:
        """Send, as the owner does: one party at a time."""
        while self.is_sending:
            await trio.lowlevel.checkpoint()
        await self.engine.send(messages)

    async def messages(self, count: int) -> list[str]:
        """The next `count` messages, however many a read brings."""
        got: list[str] = []
        while len(got) < count:
            more = await self.engine.receive()
            assert len(more) > 0
            got += more
        assert len(got) == count
        return got

    async def ending(self) -> tuple[list[str], PeerGone | BadMessage]:
        """The messages up to the end, and how that came."""
        got: list[str] = []
        while True:
            try:
                got += await self.engine.receive()
            except (PeerGone, BadMessage) as exc:
                return got, exc

    async def aclose(self, code: int = 1001, reason: str = "bye") -> None:
        """Close, as the owner does: one party at a time sends."""
        self.is_leaving = True
        while self.is_sending:
            await trio.lowlevel.checkpoint()
        await self.engine.aclose(code, reason)

    async def farewell(self, ending: PeerGone | BadMessage) -> int | None:
        """Do what the owner does at such an end; the code that the client is then told."""
        code, reason = (ending.code, ending.text) if isinstance(ending, BadMessage) else (1000, "")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.aclose, code, reason)
            payload = await self.client.goodbye()
        return int.from_bytes(payload[:2], "big") if payload else None


def code_of(ending: PeerGone | BadMessage) -> tuple[type[Exception], int]:
    return type(ending), ending.code


def accept_with(name: str) -> AcceptEngine:
    return AcceptSansio() if name == "sansio" else AcceptTrioWebsocket()


@asynccontextmanager
async def over_memory() -> AsyncIterator[Pair]:
    """The server's end, and the client's."""
    ours, theirs = memory_stream_pair()
    yield ours, theirs


@asynccontextmanager
async def over_sockets() -> AsyncIterator[Pair]:
    """The same over TCP, as the listener has it: the server's end is on the shared epoll set."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    theirs.setblocking(False)
    theirs.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    async with open_readiness() as readiness:
        stream = SocketStream(ours, readiness)
        client = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
        try:
            yield stream, client
        finally:
            await trio.aclose_forcefully(stream)
            await trio.aclose_forcefully(client)


@asynccontextmanager
async def open_link(
    name: str,
    connect: Connect = over_memory,
    *,
    sent: Sequence[bytes] = (),
    subprotocol: str | None = None,
    offered: str | None = None,
    headers: str = "",
    **options: float,
) -> AsyncIterator[Link]:
    """An engine whose client has asked for a WebSocket, and `sent` these bytes in the same packet.

    `options` are fields of the engine's, over `OPTIONS`.
    """
    async with connect() as (stream, clients), trio.open_nursery() as nursery:
        client = RawClient(clients)
        # The checkpoints are the caller's.
        with trio.fail_after(30):  # noqa: ASYNC100
            protocols = f"Sec-WebSocket-Protocol: {offered}\r\n" if offered else ""
            await client.send(f"{OPENING}{protocols}{headers}\r\n".encode(), *sent)
            if sent:
                await wait_all_tasks_blocked()
            head = await read_head(stream)
            assert head is not None
            assert bool(head.surplus) == bool(sent)
            engine = await accept_with(name)(
                nursery, stream, head, subprotocol=subprotocol, options=attrs.evolve(OPTIONS, **options)
            )
            link = Link(engine, client, await client.opening(), nursery)
            engine.on_unsent = link.flush
            # It may have answered what came with the request.
            link.flush()
            yield link
        await engine.abort()
        await trio.aclose_forcefully(clients)
        nursery.cancel_scope.cancel()


def reset(client: RawClient) -> None:
    """Let the client's end be closed with a reset, which only a socket can."""
    assert isinstance(client.stream, trio.SocketStream)
    client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
