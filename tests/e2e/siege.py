"""A server in this process, on a real socket, with its parts to be looked at; and what it holds, counted."""

import struct
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import orjson
import psutil
import trio
from prometheus_client import Counter
from trio.testing import wait_all_tasks_blocked

from persona.app import open_listeners, open_server
from persona.assembly import Server
from persona.llm.backend import Backend
from persona.storage.pool import open_database
from persona.testing import scripted_backend, settings_with
from tests.e2e.abusers import CLOSE, HEAD, PONG, TEXT, fate, frame
from tests.serving import FAST

ENGINES = ("trio-websocket", "sansio")


@attrs.frozen
class Held:
    """What this process holds, its server and everything else."""

    tasks: int
    descriptors: int

    def exceeds(self, other: "Held") -> bool:
        return self.tasks > other.tasks or self.descriptors > other.descriptors

    @classmethod
    async def settled(cls) -> "Held":
        """What it holds when nothing is going on."""
        await wait_all_tasks_blocked(0.02)
        return cls.now()

    @classmethod
    def now(cls) -> "Held":
        return cls(trio.lowlevel.current_statistics().tasks_living, psutil.Process().num_fds())


@attrs.frozen(kw_only=True)
class Besieged:
    """A running server."""

    server: Server
    port: int

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/mcp"

    @property
    def refused(self) -> dict[str, int]:
        """Handshakes refused, by reason."""
        return _counts(self.server.metrics.refused)

    @property
    def closed(self) -> dict[str, int]:
        """Connections ended, by cause."""
        return _counts(self.server.metrics.closed)

    @property
    def connections(self) -> int:
        return len(self.server.listener.connections)

    async def deserted(self, *, within_s: float = 10.0) -> None:
        """Nobody is connected any more."""
        await until(lambda: not self.connections, within_s=within_s)


def _counts(counter: Counter) -> dict[str, int]:
    return {
        next(iter(sample.labels.values())): int(sample.value)
        for family in counter.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    }


async def until(condition: Callable[[], object], *, within_s: float = 10.0) -> None:
    """Wait for what no event tells of; fails when it does not come."""
    with trio.fail_after(within_s):
        while not condition():
            await trio.sleep(0.005)


async def back_to(before: Held, *, within_s: float = 10.0) -> None:
    """Everything that came since `before` has gone again. What was there then may have gone, too: a writer
    that rested is sent away by the next keepalive ping."""
    held = Held.now()
    with trio.move_on_after(within_s):
        while held.exceeds(before):
            await trio.sleep(0.01)
            held = Held.now()
    assert not held.exceeds(before), f"{held} instead of {before}"


@attrs.define
class Bare:
    """A WebSocket on a bare socket: nothing is sent or read but what the test says."""

    stream: trio.SocketStream
    _unread: bytes = b""

    async def send(self, opcode: int, payload: bytes = b"", *, is_final: bool = True) -> None:
        await self.stream.send_all(frame(opcode, payload, is_final=is_final))

    async def ask(self, method: str, params: Any = None, *, id: Any = 1) -> None:
        request = {"jsonrpc": "2.0", "id": id, "method": method}
        await self.send(TEXT, orjson.dumps(request if params is None else {**request, "params": params}))

    async def receive(self) -> tuple[int, bytes]:
        """The next frame, opcode and payload."""
        with trio.fail_after(10):
            first, length = await self._take(2)
            if length >= 126:
                length = int.from_bytes(await self._take(2 if length == 126 else 8), "big")
            return first & 0x0F, await self._take(length)

    async def _take(self, size_bytes: int) -> bytes:
        while len(self._unread) < size_bytes:
            data = await self.stream.receive_some()
            assert data, "the server closed"
            self._unread += data
        taken, self._unread = self._unread[:size_bytes], self._unread[size_bytes:]
        return taken

    async def answer(self, *, id: Any = 1) -> Any:
        """The answer to the request of that id; other frames before it are passed over."""
        while True:
            opcode, payload = await self.receive()
            if opcode == TEXT and (message := orjson.loads(payload)).get("id") == id:
                return message

    async def alive(self) -> None:
        await self.ask("system.ping", id="alive")
        assert (await self.answer(id="alive"))["result"]["pong"] is True

    async def pong(self) -> bytes:
        """The payload of the next pong; other frames before it are passed over."""
        while True:
            opcode, payload = await self.receive()
            if opcode == PONG:
                return payload

    async def fate(self, *, within_s: float = 10.0) -> str:
        """How the server ends it: the words of `abusers.fate`."""
        received, has_ended = self._unread, False
        with trio.move_on_after(within_s):
            try:
                while data := await self.stream.receive_some():
                    received += data
            except trio.BrokenResourceError:
                pass
            has_ended = True
        return fate(received, has_ended=has_ended)

    async def leave(self, code: int = 1000) -> None:
        """As one should."""
        await self.send(CLOSE, code.to_bytes(2, "big"))
        assert await self.fate() == str(code)

    def vanish(self) -> None:
        """With a reset."""
        linger = struct.pack("ii", 1, 0)
        self.stream.socket.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_LINGER, linger)
        self.stream.socket.close()


@asynccontextmanager
async def knocking(port: int, *, receive_buffer_bytes: int = 0) -> AsyncIterator[Bare]:
    """A connected socket that has said nothing yet."""
    sock = trio.socket.socket()
    if receive_buffer_bytes:
        sock.setsockopt(trio.socket.SOL_SOCKET, trio.socket.SO_RCVBUF, receive_buffer_bytes)
    with trio.fail_after(10):
        await sock.connect(("127.0.0.1", port))
    stream = trio.SocketStream(sock)
    try:
        yield Bare(stream)
    finally:
        await trio.aclose_forcefully(stream)


async def status(bare: Bare, head: bytes = HEAD) -> bytes:
    """Send an opening request; the head of the answer."""
    await bare.stream.send_all(head)
    answer = b""
    with trio.fail_after(10):
        while b"\r\n\r\n" not in answer:
            data = await bare.stream.receive_some()
            if not data:
                break
            answer += data
    return answer


@asynccontextmanager
async def bare_client(port: int, *, receive_buffer_bytes: int = 0) -> AsyncIterator[Bare]:
    """An open WebSocket."""
    async with knocking(port, receive_buffer_bytes=receive_buffer_bytes) as bare:
        answer = await status(bare)
        assert answer.startswith(b"HTTP/1.1 101"), answer
        yield bare


@asynccontextmanager
async def besieged(
    folder: Path,
    engine: str,
    *,
    backend: Backend | None = None,
    resident_bytes: Callable[[], int] | None = None,
    **sections: dict[str, Any],
) -> AsyncIterator[Besieged]:
    """Serve on a free port for the body's length; `sections` over `FAST`."""
    sections["server"] = {"engine": engine, **sections.get("server", {})}
    merged = {name: {**FAST.get(name, {}), **sections.get(name, {})} for name in {*FAST, *sections}}
    settings = settings_with(**merged)
    (listener,) = await open_listeners("127.0.0.1", 0)
    stop, started = trio.Event(), trio.Event()
    async with (
        open_database(str(folder / "siege.db"), readers=1) as database,
        open_server(
            settings,
            database=database,
            backend=backend or scripted_backend(settings),
            resident_bytes=resident_bytes,
        ) as server,
        trio.open_nursery() as nursery,
    ):

        async def serve() -> None:
            await server.serve([listener], stop=stop.wait, on_listening=started.set)

        nursery.start_soon(serve)
        with trio.fail_after(20):
            await started.wait()
        yield Besieged(server=server, port=listener.socket.getsockname()[1])
        stop.set()
