"""A real server on a real socket with a real file, and the bare wire to talk to it."""

import itertools
import json
import socket
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection, wrap_client_stream

from persona.app import run_server
from persona.testing import settings_with

FAST: dict[str, dict[str, Any]] = {
    "server": {"port": 0, "graceful_timeout_s": 2.0},
    "limits": {"rate_limit_per_minute": 0},
    "llm": {"backend": "scripted", "scripted_first_token_s": 0.0, "scripted_tokens_per_s": 0.0},
}
"""A server for tests on the real clock: no pauses, and no limit that a fast test would meet."""


def free_ports(count: int) -> list[int]:
    """Ports that nobody has at the moment: for what cannot pick one itself."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


@attrs.define
class RunningServer:
    """`stop` ends the server as SIGTERM does; the context waits for it."""

    url: str
    pages: str = ""
    """Where HTTP is, if it is anywhere: `http_port` is 0 unless the test says otherwise."""
    stop: trio.Event = attrs.field(factory=trio.Event)

    @property
    def port(self) -> int:
        return int(self.url.rsplit(":", 1)[1].split("/")[0])


@asynccontextmanager
async def serving(file: Path, **sections: dict[str, Any]) -> AsyncIterator[RunningServer]:
    """Run a server on a free port; `sections` over `FAST`, as in `persona.testing.open_server`."""
    merged = {
        name: {**FAST.get(name, {}), **sections.get(name, {})} for name in {*FAST, *sections, "database"}
    }
    merged["database"]["path"] = str(file)
    urls_send, urls = trio.open_memory_channel[str](2)
    async with trio.open_nursery() as nursery:
        server = RunningServer("")

        async def run() -> None:
            await run_server(
                settings_with(**merged), on_listening=urls_send.send_nowait, stop=server.stop.wait
            )

        nursery.start_soon(run)
        with trio.fail_after(20):
            server.url = await urls.receive()
            if merged["server"].get("http_port"):
                server.pages = (await urls.receive()).rstrip("/")
        yield server
        server.stop.set()


class Wire:
    """One WebSocket, spoken frame by frame."""

    def __init__(self, socket: WebSocketConnection) -> None:
        self.socket = socket
        self._ids = itertools.count(1)

    async def send(self, frame: Any) -> None:
        """Send a value as JSON, or text as it is."""
        await self.socket.send_message(frame if isinstance(frame, str | bytes) else json.dumps(frame))

    async def receive(self, *, within_s: float = 10.0) -> Any:
        with trio.fail_after(within_s):
            return json.loads(await self.socket.get_message())

    async def start(self, method: str, params: Any = None, *, id: Any = None) -> Any:
        """Send a request; its id."""
        id = next(self._ids) if id is None else id
        request = {"jsonrpc": "2.0", "id": id, "method": method}
        await self.send(request if params is None else {**request, "params": params})
        return id

    async def call(self, method: str, params: Any = None) -> Any:
        """The result of a request; no other frame may come before it."""
        id = await self.start(method, params)
        reply = await self.receive()
        assert reply["id"] == id
        assert "error" not in reply, reply
        return reply["result"]

    async def error(self, method: str, params: Any = None) -> Any:
        """The error of a request."""
        id = await self.start(method, params)
        reply = await self.receive()
        assert reply["id"] == id
        assert "result" not in reply, reply
        return reply["error"]

    async def close_code(self, *, within_s: float = 10.0) -> int:
        """The code the server closes with; what comes before it is read away."""
        with trio.fail_after(within_s):
            while True:
                try:
                    await self.socket.get_message()
                except ConnectionClosed as exc:
                    assert exc.reason is not None
                    return exc.reason.code

    async def alive(self) -> None:
        """The socket still answers."""
        assert (await self.call("system.ping", {"payload": "still there"}))["payload"] == "still there"


@asynccontextmanager
async def dial(url: str, **headers: str) -> AsyncIterator[Wire]:
    """A wire to `url`."""
    extra = [(name.replace("_", "-").encode(), value.encode()) for name, value in headers.items()]
    port = int(url.rsplit(":", 1)[1].split("/")[0])
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream, trio.open_nursery() as nursery:
        with trio.fail_after(10):
            socket = await wrap_client_stream(
                nursery, stream, f"127.0.0.1:{port}", "/mcp", extra_headers=extra
            )
        yield Wire(socket)
        with trio.move_on_after(5):
            await socket.aclose()
        nursery.cancel_scope.cancel()
