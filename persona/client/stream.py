"""An answer as it is made: an async iterator over its deltas."""

from collections import deque
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Self

import attrs
import msgspec
import trio

from persona.client.errors import ConnectionLost, RemoteError, UnexpectedAnswer
from persona.client.link import Link

MAX_BUFFERED_DELTAS = 64
"""Deltas kept for a consumer that is slower than the model. When they are that many they are
joined into one: nothing is lost, and what is kept is never more than the answer itself."""


@attrs.frozen(kw_only=True)
class StreamResult:
    """How a stream ended. After a cancellation `text` is the part there was.

    What the server did not say is `None`.
    """

    text: str
    finish_reason: str
    conversation_id: str | None = None
    turn_id: int | None = None
    parent_id: int | None = None
    """The line that was answered."""
    tokens_used: int | None = None
    processing_time: float | None = None
    time_to_first_token: float | None = None
    model: str | None = None
    response_type: str | None = None
    persona_id: str | None = None
    persona_name: str | None = None


class ChatStream:
    """One answer as it is made. Get it from `Client.chat_stream`, `regenerate_stream` or `edit_stream`.

    Iterating gives the answer's deltas and ends with the answer; then `result` is set. The request
    is sent when the iteration, or the `async with` block, begins.

    `async with` is what guarantees that leaving early (break, an error, cancellation) stops the
    generation on the server. Without it only a cancellation that arrives while the next delta is
    waited for does: Python does not tell an iterator that a loop was left.

    One consumer at a time. Raises `RemoteError` for the server's error, also in mid-answer, and
    `ConnectionLost`.
    """

    # A class and not an async generator: a generator's clean-up would run when the collector
    # finds it, in whatever context that is (PEP 789).

    def __init__(
        self,
        link: Link,
        method: str,
        params: dict[str, Any],
        on_queued: Callable[[int], Awaitable[None]] | None = None,
    ) -> None:
        self._link = link
        self._method = method
        self._params = params
        self._on_queued = on_queued
        self._request_id: int | None = None
        self._deltas: deque[str] = deque()
        self._given: list[str] = []
        self._news = trio.Event()
        self._position_is_news = False
        self._error: Exception | None = None
        self._ended = False
        self.stream_id: str | None = None
        """The server's name for the stream, once it has started."""
        self.position: int | None = None
        """The place in the model's queue, while there is one; 1 is next."""
        self.result: StreamResult | None = None
        """How it ended; `None` until then, and after an error."""

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> str:
        try:
            return await self._next()
        except trio.Cancelled:
            self._leave()
            raise

    async def __aenter__(self) -> Self:
        await self._start()
        return self

    async def __aexit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave()

    def cancel(self) -> None:
        """Ask the server to stop; the iteration then ends when the server has.

        What was said until then still comes. Never waits; does nothing once the stream has ended.
        """
        if self._request_id is not None and not self._ended:
            self._link.ask_to_cancel(self._request_id)

    async def _start(self) -> None:
        if self._request_id is None and not self._ended:
            self._request_id = await self._link.request(self, self._method, self._params)

    async def _next(self) -> str:
        await self._start()
        while True:
            if self._position_is_news:
                self._position_is_news = False
                if self._on_queued is not None and self.position is not None:
                    await self._on_queued(self.position)
            if self._deltas:
                await trio.lowlevel.checkpoint()
                delta = self._deltas.popleft()
                self._given.append(delta)
                return delta
            if self._error is not None:
                error, self._error = self._error, None
                raise error
            if self._ended:
                await trio.lowlevel.checkpoint()
                raise StopAsyncIteration
            self._news = trio.Event()
            await self._news.wait()

    def _leave(self) -> None:
        """Stop the generation, if it still goes on. Neither waits nor raises."""
        if self._ended:
            return
        self._ended = True
        text = "".join((*self._given, *self._deltas))
        self.result = StreamResult(text=text, finish_reason="cancelled")
        self._deltas.clear()
        if self._request_id is not None and self._link.forget(self._request_id):
            self._link.ask_to_cancel(self._request_id)

    # Called from the link's reader: neither waits nor raises.

    def answered(self, message: dict[str, Any]) -> bool:
        """Take one event; true when it was the last."""
        if "error" in message:
            self._end(RemoteError.from_wire(message["error"]))
            return True
        event = message.get("result")
        data = event.get("data") if isinstance(event, dict) else None
        if not isinstance(event, dict) or not isinstance(data, dict):
            self._end(UnexpectedAnswer(f"{self._method} was answered with something else than events"))
            return True
        try:
            self._take(event, data)
        except msgspec.ValidationError as exc:
            self._end(UnexpectedAnswer(f"{self._method} ended with an unexpected event: {exc}"))
        self._news.set()
        return self._ended

    def lost(self, error: ConnectionLost) -> None:
        """There will be no more events."""
        self._end(error)

    def _take(self, event: dict[str, Any], data: dict[str, Any]) -> None:
        match event.get("event_type"):
            case "stream_start":
                self.stream_id = str(event.get("stream_id"))
            case "stream_queued":
                position = data.get("position")
                self.position = position if isinstance(position, int) else None
                self._position_is_news = True
            case "stream_chunk":
                self.position = None
                self._buffer(str(data.get("chunk") or event.get("chunk") or ""))
            case "stream_complete":
                text = event.get("full_response", data.get("full_response"))
                self._complete({**data, "text": text})
            case "stream_cancelled":
                text = data.get("partial_response")
                self._complete({**data, "text": text, "finish_reason": "cancelled"})
            case _:
                pass  # An event newer than this client.

    def _buffer(self, delta: str) -> None:
        if not delta:
            return
        if len(self._deltas) >= MAX_BUFFERED_DELTAS:
            joined = "".join(self._deltas)
            self._deltas.clear()
            self._deltas.append(joined)
        self._deltas.append(delta)

    def _complete(self, fields: dict[str, Any]) -> None:
        self.result = msgspec.convert({"finish_reason": "stop", **fields}, StreamResult)
        self._end(None)

    def _end(self, error: Exception | None) -> None:
        self._ended = True
        self.position = None
        self._error = error
        self._news.set()
