"""Real HTTP servers on 127.0.0.1 that play Ollama and OpenAI-compatible model servers.

    async with open_standin("ollama", reply=lambda body: "Hello there") as server:
        ...  # point a backend at server.base_url
        assert server.requests[0].body["model"] == "stand-in"

What can be set, when opening or at any time on the server:

* `reply(body) -> str`: the answer to a chat request. By default `echo`: the last user message.
* `variant`: how the answer goes wrong, one of `Variant`, or `variant(body) -> Variant` to choose
  by request. `ok` unless set. A hanging or broken variant concerns chat requests; `models_variant`
  does the same for the list of models.
* `token_delay_s`: the pause before each token (`slow` has one of 0.05 s if this is 0).
* `models`: the names served.
* `pages`: what else can be had by GET, as JSON by path.
* `frames(body) -> Iterable[bytes]`: for the variant `raw`: the body of the answer, byte for byte, in
  HTTP chunks as given.

What can be watched:

* `requests`: each `Request(method, path, headers, body)`, as it came in; `await wait_requests(n)`.
* `await wait_tokens(n)`: until `n` tokens in all were sent.
* `open_connections`, `connections_made`; `await wait_connections(n)` until exactly so many are open.
* `await wait_client_closed(n)`: until `n` answers were cut short by the client; gives the
  `trio.current_time()` at which the n-th one was noticed. `client_closed_at` lists them.

Every wait is for ever: bound it with `trio.fail_after`.
"""

import itertools
import json
import re
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import asynccontextmanager
from types import MappingProxyType
from typing import Any, Literal, NamedTuple

import h11
import trio

from tests.llm.dialects import DIALECTS, Dialect, Kind, to_json

Variant = Literal[
    "ok",
    "slow",  # a pause before each token
    "split",  # HTTP chunks of a few bytes, cutting inside of UTF-8 characters
    "not_found",  # 404, as for an unknown model
    "failing",  # 500
    "busy",  # 503 with Retry-After: 7
    "busy_briefly",  # 503, and no word of when to come back
    "hang",  # never answers
    "hang_midway",  # half the tokens, then nothing
    "garbage",  # 200, but what comes is not the protocol
    "half_line",  # ends properly in the middle of a JSON value
    "closed_midway",  # the connection breaks in the middle of a token
    "bad_utf8",
    "endless",  # never stops, whatever the limit
    "tool_calls",  # an answer that is only calls of tools
    "error_in_band",  # an error after half the tokens
    "no_usage",  # no token counts
    "no_end",  # all tokens, then a proper end without any sign that the answer is whole
    "raw",  # what `frames` says
]


class Request(NamedTuple):
    method: str
    path: str
    headers: dict[str, str]
    """By lower-case name."""
    body: Any
    """The JSON, `None` if there was none."""


def echo(body: dict[str, Any]) -> str:
    """The default answer: what the user said last."""
    said = [message["content"] for message in body["messages"] if message["role"] == "user"]
    return f"You said: {said[-1]}"


class _GoneError(Exception):
    """This answer is to break off."""


class StandIn:
    """One server. Open it with `open_standin`, or `await nursery.start(StandIn(kind).serve)`."""

    def __init__(
        self,
        kind: Kind,
        *,
        reply: Callable[[dict[str, Any]], str] = echo,
        variant: Variant | Callable[[dict[str, Any]], Variant] = "ok",
        models_variant: Variant = "ok",
        token_delay_s: float = 0.0,
        models: tuple[str, ...] = ("stand-in", "stand-in-2"),
        frames: Callable[[dict[str, Any]], Iterable[bytes]] = lambda body: (),
        pages: Mapping[str, object] = MappingProxyType({}),
    ) -> None:
        self.kind = kind
        self.reply = reply
        self.variant = variant
        self.models_variant = models_variant
        self.token_delay_s = token_delay_s
        self.models = models
        self.frames = frames
        self.pages = pages
        self.requests: list[Request] = []
        self.tokens_sent = 0
        self.open_connections = 0
        self.connections_made = 0
        self.client_closed_at: list[float] = []
        self.port = 0
        self._changed = trio.Event()

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def serve(self, *, task_status: trio.TaskStatus["StandIn"] = trio.TASK_STATUS_IGNORED) -> None:
        """Serve until cancelled: at any free port, and when served again at the same one."""
        (listener,) = await trio.open_tcp_listeners(self.port, host="127.0.0.1")
        async with listener, trio.open_nursery() as nursery:
            self.port = listener.socket.getsockname()[1]
            task_status.started(self)
            while True:
                nursery.start_soon(self._connection, await listener.accept())

    async def wait_requests(self, n: int) -> None:
        await self._wait(lambda: len(self.requests) >= n)

    async def wait_tokens(self, n: int) -> None:
        await self._wait(lambda: self.tokens_sent >= n)

    async def wait_connections(self, n: int) -> None:
        await self._wait(lambda: self.open_connections == n)

    async def wait_client_closed(self, n: int = 1) -> float:
        await self._wait(lambda: len(self.client_closed_at) >= n)
        return self.client_closed_at[n - 1]

    async def _wait(self, condition: Callable[[], bool]) -> None:
        while not condition():
            await self._changed.wait()

    def _note(self) -> None:
        self._changed.set()
        self._changed = trio.Event()

    async def _connection(self, stream: trio.SocketStream) -> None:
        self.open_connections += 1
        self.connections_made += 1
        self._note()
        try:
            async with stream:
                wire = _Wire(stream)
                while (request := await wire.next_request()) is not None:
                    self.requests.append(request)
                    self._note()
                    if not await self._watched_answer(wire, request):
                        break
        except (trio.BrokenResourceError, h11.RemoteProtocolError):
            pass
        finally:
            self.open_connections -= 1
            self._note()

    async def _watched_answer(self, wire: "_Wire", request: Request) -> bool:
        """Answer, and notice at once if the client hangs up meanwhile. False if the connection is done."""
        finished = False

        async def watch() -> None:
            await wire.wait_hang_up()
            self.client_closed_at.append(trio.current_time())
            self._note()
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            try:
                await self._answer(wire, request)
                finished = True
            except _GoneError:
                pass
            except trio.BrokenResourceError:
                await trio.sleep_forever()  # the watcher sees it too, and says when
            nursery.cancel_scope.cancel()
        return finished

    async def _answer(self, wire: "_Wire", request: Request) -> None:
        dialect = DIALECTS[self.kind]
        if request.method == "GET" and request.path in self.pages:
            variant: Variant = "ok"
            content: Iterator[bytes] = iter([to_json(self.pages[request.path])])
        elif (request.method, request.path) == ("GET", dialect.models_path):
            variant = self.models_variant
            content = iter([to_json(dialect.models(self.models))])
        elif (request.method, request.path) == ("POST", dialect.chat_path):
            variant = self.variant if isinstance(self.variant, str) else self.variant(request.body)
            content = self._frames(dialect, variant, request.body)
        else:
            variant, content = "not_found", iter(())
        if await self._status_variant(wire, variant, request):
            return
        media_type = dialect.media_type if request.method == "POST" else "application/json"
        await wire.begin(200, [("Content-Type", media_type)])
        if variant == "split":
            await wire.send_split(b"".join(content))
        else:
            for frame in content:
                await self._send_frame(wire, variant, frame)
        if variant in ("closed_midway", "hang_midway"):
            if variant == "hang_midway":
                await trio.sleep_forever()
            raise _GoneError
        await wire.end()

    async def _send_frame(self, wire: "_Wire", variant: Variant, frame: bytes) -> None:
        delay_s = self.token_delay_s or (0.05 if variant == "slow" else 0.0)
        if delay_s:
            await trio.sleep(delay_s)
        await wire.send(frame)
        self.tokens_sent += 1
        self._note()

    async def _status_variant(self, wire: "_Wire", variant: Variant, request: Request) -> bool:
        """Handle the variants that are no 200 at all."""
        model = request.body.get("model") if isinstance(request.body, dict) else None
        error = {
            "not_found": f"model '{model}' not found",
            "failing": "out of\x07 memory",
            "busy": "try later",
            "busy_briefly": "try later",
        }
        status = {"not_found": 404, "failing": 500, "busy": 503, "busy_briefly": 503}
        if variant == "hang":
            await trio.sleep_forever()
        if variant not in status:
            return False
        headers = [("Content-Type", "application/json")]
        if variant == "busy":
            headers.append(("Retry-After", "7"))
        await wire.begin(status[variant], headers)
        await wire.send(to_json(DIALECTS[self.kind].error(error[variant])))
        await wire.end()
        return True

    def _frames(self, dialect: Dialect, variant: Variant, body: dict[str, Any]) -> Iterator[bytes]:
        tokens = re.findall(r"\s*\S+|\s+$", self.reply(body))
        limit = dialect.max_tokens(body)
        reason = "stop" if len(tokens) <= limit else "length"
        tokens = tokens[:limit]
        half = tokens[: max(1, len(tokens) // 2)]

        def token(text: str) -> bytes:
            return dialect.frame(dialect.token(body["model"], text))

        end = dialect.end(body["model"], reason, None if variant == "no_usage" else len(tokens))
        match variant:
            case "raw":
                yield from self.frames(body)
            case "garbage":
                yield dialect.frame("{{{ no JSON")
            case "half_line":
                yield from map(token, half)
                yield token("never seen")[:-14]
            case "closed_midway":
                yield from map(token, half)
                yield token("never seen")[:-14]
            case "hang_midway":
                yield from map(token, half)
            case "bad_utf8":
                yield token("caf\xe9").replace("\xe9".encode(), b"\xe9")
            case "endless":
                yield from map(token, itertools.cycle(tokens))
            case "tool_calls":
                yield dialect.frame(dialect.tool_call(body["model"]))
                yield from end
            case "error_in_band":
                yield from map(token, half)
                yield dialect.frame(dialect.error("the runner\nhas terminated"))
            case "no_end":
                yield from map(token, tokens)
            case _:
                yield from map(token, tokens)
                yield from end


@asynccontextmanager
async def open_standin(kind: Kind, **options: Any) -> AsyncIterator[StandIn]:
    """A `StandIn` that serves within the block."""
    async with trio.open_nursery() as nursery:
        yield await nursery.start(StandIn(kind, **options).serve)
        nursery.cancel_scope.cancel()


class _Wire:
    """HTTP/1.1, the server's side, on one stream."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._h11 = h11.Connection(h11.SERVER)

    async def next_request(self) -> Request | None:
        """The next request with its body, or `None` when the client is done."""
        if self._h11.our_state is h11.DONE:
            self._h11.start_next_cycle()
        head: h11.Request | None = None
        content = b""
        while True:
            event = self._h11.next_event()
            if event is h11.NEED_DATA:
                self._h11.receive_data(await self.stream.receive_some(65536))
            elif isinstance(event, h11.Request):
                head = event
            elif isinstance(event, h11.Data):
                content += bytes(event.data)
            elif isinstance(event, h11.EndOfMessage) and head is not None:
                headers = {name.decode(): value.decode() for name, value in head.headers}
                body = json.loads(content) if content else None
                return Request(head.method.decode(), head.target.decode(), headers, body)
            else:
                return None

    async def wait_hang_up(self) -> None:
        """Until the client closes; what it sends before is kept for `next_request`."""
        try:
            while data := await self.stream.receive_some(65536):
                self._h11.receive_data(data)
        except trio.BrokenResourceError:
            pass

    async def begin(self, status: int, headers: list[tuple[str, str]]) -> None:
        await self._put(
            h11.Response(status_code=status, headers=[*headers, ("Transfer-Encoding", "chunked")])
        )

    async def send(self, data: bytes) -> None:
        await self._put(h11.Data(data=data))

    async def send_split(self, data: bytes) -> None:
        sizes = itertools.cycle((1, 2, 1, 3, 5))
        start = 0
        while start < len(data):
            size = next(sizes)
            await self.send(data[start : start + size])
            start += size

    async def end(self) -> None:
        await self._put(h11.EndOfMessage())

    async def _put(self, event: h11.Event) -> None:
        await self.stream.send_all(self._h11.send(event) or b"")
