"""A server that does what a test tells it to, over real WebSockets on any stream.

It follows the published protocol where the test says nothing. `on(method, handler)` replaces what
it does for a method; every request runs in a task of its own, so answers can come in any order.
"""

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import orjson
import trio
from trio.testing import memory_stream_pair
from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, wrap_server_stream

from persona.client import Client, wrap_client

TIME = "2026-01-31T12:00:00.000Z"
LIMITS = {"max_message_bytes": 65536}
PEOPLE = {
    "aria": {"id": "p-aria", "name": "Aria", "description": "elven bard"},
    "kira": {"id": "p-kira", "name": "Kira", "description": "human scholar"},
}

Handler = Callable[["FakeConnection", dict[str, Any]], Awaitable[None]]


class FakeConnection:
    """One client, as the server sees it."""

    def __init__(
        self, websocket: WebSocketConnection, stream: trio.abc.Stream, request: WebSocketRequest
    ) -> None:
        self.websocket = websocket
        self.stream = stream
        self.headers = {name.lower(): value for name, value in request.headers}
        self.path = request.path
        self.proposed_subprotocols = request.proposed_subprotocols

    async def send(self, message: Any) -> None:
        text = message if isinstance(message, str) else orjson.dumps(message).decode()
        await self.websocket.send_message(text)

    async def result(self, request: dict[str, Any], result: Any) -> None:
        await self.send({"jsonrpc": "2.0", "id": request["id"], "result": result})

    async def error(self, request: dict[str, Any], code: int, reason: str, message: str, **data: Any) -> None:
        error = {"code": code, "message": message, "data": {"reason": reason, "retryable": False, **data}}
        await self.send({"jsonrpc": "2.0", "id": request["id"], "error": error})

    async def event(self, request: dict[str, Any], event_type: str, **data: Any) -> None:
        """One stream event, with what the protocol repeats beside `data`."""
        beside = {
            k: v for k, v in data.items() if k in ("persona_id", "chunk", "full_response", "tokens_used")
        }
        event = {"event_type": event_type, "stream_id": f"s-{request['id']}", "timestamp": TIME, "data": data}
        await self.result(request, {**event, **beside})

    async def answer(self, request: dict[str, Any], *chunks: str) -> None:
        """A whole stream."""
        await self.event(request, "stream_start", persona_id="p-aria", persona_name="Aria")
        for number, chunk in enumerate(chunks, 1):
            await self.event(request, "stream_chunk", chunk=chunk, chunk_number=number)
        await self.complete(request, "".join(chunks))

    async def complete(self, request: dict[str, Any], text: str) -> None:
        await self.event(
            request,
            "stream_complete",
            full_response=text,
            tokens_used=7,
            turn_id=42,
            finish_reason="stop",
            persona_name="Aria",
            conversation_id="c-1",
            model="fake",
            invented_later=True,
        )


class FakeServer:
    """Serves any number of streams; remembers every message in `received`."""

    def __init__(self, *, accepts: bool = True) -> None:
        self.received: list[dict[str, Any]] = []
        self.connections: list[FakeConnection] = []
        self.closed: list[tuple[int, str | None]] = []
        """Close code and reason of each connection that has ended."""
        self._accepts = accepts
        self._news = trio.Event()
        self._handlers: dict[str, Handler] = {
            "persona.list": _list,
            "persona.switch": _switch,
            "persona.chat_stream": _chat_stream,
            "conversation.history": _history,
            "session.info": _session_info,
            "session.clear": _session_clear,
            "system.ping": _ping,
        }

    def on(self, method: str, handler: Handler) -> None:
        """From now on `handler` does this method. A notification comes without `id`."""
        self._handlers[method] = handler

    def of(self, method: str) -> list[dict[str, Any]]:
        """What came for this method."""
        return [message for message in self.received if message.get("method") == method]

    async def wait_for(self, method: str, count: int = 1) -> list[dict[str, Any]]:
        """Wait until that many messages of this method have come."""
        while len(self.of(method)) < count:
            await self._wait_for_news()
        return self.of(method)

    async def wait_closed(self, count: int = 1) -> list[tuple[int, str | None]]:
        """Wait until that many connections have ended."""
        while len(self.closed) < count:
            await self._wait_for_news()
        return self.closed

    async def serve_stream(self, stream: trio.abc.Stream) -> None:
        """Serve one client until it goes."""
        try:
            async with trio.open_nursery() as nursery:
                request = await wrap_server_stream(nursery, stream)
                if not self._accepts:
                    await trio.sleep_forever()
                offered = "mcp" in request.proposed_subprotocols
                websocket = await request.accept(subprotocol="mcp" if offered else None)
                connection = FakeConnection(websocket, stream, request)
                self.connections.append(connection)
                # Not cancelled at the end: trio-websocket's reader still has to finish the closing
                # handshake, and closes the stream when it has.
                await self._converse(connection, nursery)
        except* (ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            with trio.move_on_after(1, shield=True):
                await trio.aclose_forcefully(stream)

    async def _converse(self, connection: FakeConnection, nursery: trio.Nursery) -> None:
        try:
            while True:
                message = orjson.loads(await connection.websocket.get_message())
                self.received.append(message)
                self._tell()
                handler = self._handlers.get(message["method"])
                if handler is not None:
                    nursery.start_soon(self._handle, handler, connection, message)
                elif "id" in message:
                    await connection.error(message, -32601, "method_not_found", "no such method")
        except ConnectionClosed as exc:
            self.closed.append((int(exc.reason.code), exc.reason.reason) if exc.reason else (0, None))
            self._tell()

    async def _handle(self, handler: Handler, connection: FakeConnection, message: dict[str, Any]) -> None:
        # A client that has gone is no failure of the test.
        with contextlib.suppress(ConnectionClosed, trio.BrokenResourceError, trio.ClosedResourceError):
            await handler(connection, message)

    def _tell(self) -> None:
        news, self._news = self._news, trio.Event()
        news.set()

    async def _wait_for_news(self) -> None:
        await self._news.wait()


@asynccontextmanager
async def connected(server: FakeServer, **options: Any) -> AsyncIterator[Client]:
    """A client of `server` over memory streams."""
    client_stream, server_stream = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, server_stream)
        async with wrap_client(client_stream, **options) as client:
            yield client
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def listening(serve: Callable[[trio.SocketStream], Awaitable[None]]) -> AsyncIterator[str]:
    """`serve` on a free port of the loopback; gives the URL."""
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    async with trio.open_nursery() as nursery:
        await nursery.start(trio.serve_listeners, serve, listeners)
        yield f"ws://127.0.0.1:{port}/mcp"
        nursery.cancel_scope.cancel()


def persona_summary(name: str) -> dict[str, Any]:
    return {
        **PEOPLE[name],
        "available": name == "aria",
        "social_energy": 150,
        "current_priority": "social",
        "cooldown_remaining": 0 if name == "aria" else 12.5,
        "invented_later": [1],
    }


def history_of(*turns: dict[str, Any]) -> dict[str, Any]:
    """A `conversation.history` with these turns; what they leave out is filled in."""
    rest = {
        "created_at": TIME,
        "tokens_used": 3,
        "finish_reason": None,
        "sibling_index": 1,
        "sibling_count": 1,
        "previous_sibling_id": None,
        "next_sibling_id": None,
    }
    return {
        "conversation_id": "c-1",
        "turns": [{**rest, **turn} for turn in turns],
        "has_more": False,
        "next_before": None,
        "current_turn_id": turns[-1]["id"] if turns else None,
    }


async def _list(connection: FakeConnection, request: dict[str, Any]) -> None:
    people = [persona_summary(name) for name in PEOPLE]
    await connection.result(request, {"personas": people, "total_count": 2, "available_count": 1})


async def _switch(connection: FakeConnection, request: dict[str, Any]) -> None:
    wanted = request["params"]["persona_id"].lower()
    if wanted not in PEOPLE:
        await connection.error(request, -32000, "persona_not_found", "there is no such persona")
        return
    person = PEOPLE[wanted]
    await connection.result(
        request,
        {
            "persona_id": person["id"],
            "name": person["name"],
            "description": person["description"],
            "status": "active",
            "social_energy": 150.0,
            "available_time": 600.0,
            "current_priority": "social",
            "conversation_id": "c-1",
        },
    )


async def _chat_stream(connection: FakeConnection, request: dict[str, Any]) -> None:
    await connection.answer(request, "You said ", request["params"]["message"], ".")


async def _history(connection: FakeConnection, request: dict[str, Any]) -> None:
    turns = [
        {"id": 1, "role": "user", "speaker_id": "anonymous", "content": "Hello", "parent_id": None},
        {"id": 2, "role": "assistant", "speaker_id": "p-aria", "content": "Well met!", "parent_id": 1},
    ]
    await connection.result(request, history_of(*turns))


async def _session_info(connection: FakeConnection, request: dict[str, Any]) -> None:
    await connection.result(
        request,
        {
            "session_id": "x-1",
            "user": "anonymous",
            "role": "user",
            "current_persona": None,
            "conversation_id": None,
            "limits": LIMITS,
            "server": {"name": "persona", "version": "0.1.0", "engine": "fake", "llm": "ollama"},
        },
    )


async def _session_clear(connection: FakeConnection, request: dict[str, Any]) -> None:
    await connection.result(request, {"cleared": True})


async def _ping(connection: FakeConnection, request: dict[str, Any]) -> None:
    payload = request["params"].get("payload")
    await connection.result(request, {"pong": True, "payload": payload, "time": TIME})
