"""JSON-RPC over one WebSocket: many requests in flight, answers matched by id.

Rules:

* Ids are integers that rise from 1 and are never used twice.
* One task writes, one reads; neither waits for the user of an answer.
* When the connection ends, everybody who waits is told, once.
"""

import itertools
import math
from collections.abc import Callable
from typing import Any, ParamSpec, Protocol

import attrs
import orjson
import trio
from trio_websocket import ConnectionClosed, WebSocketConnection

from persona.client.errors import ConnectionLost, InvalidMessage, MessageTooLarge, RemoteError, one_line
from persona.rpc import jsonrpc

_P = ParamSpec("_P")

MAX_OUTGOING = 256
"""Messages that wait for the socket; further calls wait for a place.

A `stream.cancel` never waits: where there is no place it is dropped and counted. A server that
has left that many messages unread fails the keepalive soon, and with the connection goes the
generation that should have been cancelled."""
MAX_EVENTS = 1024
"""Notifications kept for a user who does not read them; then the oldest is dropped and counted."""
DEFAULT_MAX_MESSAGE_BYTES = 65536
"""What servers take unless `session.info` says otherwise."""
PING_INTERVAL_S = 20.0
"""As the server's; below the 30-60 s after which middleboxes forget an idle connection."""
PING_TIMEOUT_S = 20.0
"""How long a pong may take. It also bounds how long an unreachable server goes unnoticed, together
with `PING_INTERVAL_S`."""


@attrs.frozen
class ServerNotification:
    """A message nobody asked for: `event` or `stream.event`."""

    method: str
    params: Any


class Waiting(Protocol):
    """Someone who waits for answers. Called from the reader task: must neither wait nor raise."""

    def answered(self, message: dict[str, Any]) -> bool:
        """Take a response; true when it was the last one."""
        ...

    def lost(self, error: ConnectionLost) -> None:
        """There will be no response."""
        ...


class Answer:
    """Waits for a single response."""

    def __init__(self) -> None:
        self._arrived = trio.Event()
        self._result: Any = None
        self._error: RemoteError | ConnectionLost | None = None

    def answered(self, message: dict[str, Any]) -> bool:
        """Take the response."""
        if "error" in message:
            self._error = RemoteError.from_wire(message["error"])
        else:
            self._result = message.get("result")
        self._arrived.set()
        return True

    def lost(self, error: ConnectionLost) -> None:
        """There will be none."""
        self._error = error
        self._arrived.set()

    async def wait(self) -> Any:
        """The result. Raises `RemoteError` or `ConnectionLost`."""
        await self._arrived.wait()
        if self._error is not None:
            raise self._error
        return self._result


class Link:
    """The multiplexer. Its tasks are run by `persona.client.connect`."""

    def __init__(self, socket: WebSocketConnection) -> None:
        self._socket = socket
        self._ids = itertools.count(1)
        self._waiting: dict[int, Waiting] = {}
        self._outgoing, self._queued = trio.open_memory_channel[str](MAX_OUTGOING)
        self._notify, self.notifications = trio.open_memory_channel[ServerNotification](MAX_EVENTS)
        self._failure: tuple[str, int] | None = None
        self.closing = False
        self.ended = trio.Event()
        self.max_message_bytes: float = DEFAULT_MAX_MESSAGE_BYTES
        self.notifications_dropped = 0
        self.cancels_dropped = 0
        self.unmatched = 0
        """Responses that nobody waited for: late ones, mostly."""

    # What callers do

    async def request(self, waiting: Waiting, method: str, params: dict[str, Any] | None) -> int:
        """Send a request and return its id; its responses go to `waiting`.

        Raises `ConnectionLost`, `InvalidMessage` and `MessageTooLarge`. When cancelled, nothing was sent.
        """
        request_id = next(self._ids)
        frame = self._checked(jsonrpc.encode_request, request_id, method, params or {})
        self._waiting[request_id] = waiting
        try:
            await self._queue(frame)
        except BaseException:
            self.forget(request_id)
            raise
        return request_id

    async def notify(self, method: str, params: dict[str, Any] | None) -> None:
        """Send a notification. Raises as `request` does."""
        await self._queue(self._checked(jsonrpc.encode_notification, method, params or {}))

    def forget(self, request_id: int) -> bool:
        """Drop what still comes for this request; false when it was answered already."""
        return self._waiting.pop(request_id, None) is not None

    def ask_to_cancel(self, request_id: int) -> None:
        """Ask the server to stop a request. Neither waits nor raises, so it is safe in clean-up."""
        # A notification: whoever cancels has no use for the answer.
        frame = self._checked(jsonrpc.encode_notification, "stream.cancel", {"request_id": request_id})
        try:
            self._outgoing.send_nowait(frame)
        except trio.WouldBlock:
            self.cancels_dropped += 1
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # The server cancels whatever belonged to a connection that has ended.

    def _checked(self, encode: Callable[_P, bytes], *args: _P.args, **kwargs: _P.kwargs) -> str:
        try:
            frame = encode(*args, **kwargs)
        except TypeError as exc:
            raise InvalidMessage(f"the message cannot be sent: {one_line(str(exc))}") from None
        if len(frame) > self.max_message_bytes:
            raise MessageTooLarge(len(frame), int(self.max_message_bytes))
        return frame.decode()

    async def _queue(self, frame: str) -> None:
        try:
            await self._outgoing.send(frame)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise self.connection_lost() from None

    # Its tasks

    async def write(self) -> None:
        """Send what is queued; after `finish`, close the WebSocket."""
        try:
            async for frame in self._queued:
                await self._socket.send_message(frame)
            await self._socket.aclose()
        except ConnectionClosed:
            pass  # The reader meets the same end and tells everybody.

    async def read(self) -> None:
        """Hand out what arrives until the connection ends."""
        while True:
            try:
                frame = await self._socket.get_message()
            except ConnectionClosed:
                return
            try:
                message = orjson.loads(frame)
            except orjson.JSONDecodeError:
                # Which of the waiting it was meant for cannot be known, so nobody can go on.
                self.end("the server sent something that is not JSON", code=1002)
                return
            for entry in message if isinstance(message, list) else (message,):
                self._take(entry)

    async def keep_alive(self) -> None:
        """Ping; returns when a pong does not come in time."""
        # One ping at a time, always bounded: a ping in flight does not wake when the peer goes.
        while True:
            await trio.sleep(PING_INTERVAL_S)
            answered = False
            with trio.move_on_after(PING_TIMEOUT_S):
                try:
                    await self._socket.ping()
                except ConnectionClosed:
                    await trio.sleep_forever()  # The reader reports it, with the reason.
                answered = True
            if not answered:
                self.end(f"the server has not answered a ping for {PING_TIMEOUT_S:g} s")
                return

    async def finish(self) -> None:
        """Send what is queued, say goodbye, and wait for the end. The caller bounds it."""
        self.closing = True
        if self._failure is None:
            self._failure = ("the client was closed", 1000)
        self._outgoing.close()
        await self.ended.wait()

    def end(self, reason: str, *, code: int = 1006) -> None:
        """The connection is over: tell everybody. Only the first call counts."""
        if self.ended.is_set():
            return
        if self._failure is None:
            self._failure = (reason, code)
        self._outgoing.close()
        self._notify.close()
        self.ended.set()
        waiting, self._waiting = self._waiting, {}
        for one in waiting.values():
            # An exception each: one that is raised in several tasks would mix up their tracebacks.
            one.lost(self.connection_lost())

    def end_as_closed(self) -> None:
        """The WebSocket is closed: tell everybody why."""
        closed = self._socket.closed
        if closed is None or closed.code == 1006:
            self.end("the connection to the server broke off")
        else:
            said = f": {one_line(closed.reason)}" if closed.reason else ""
            self.end(f"the server closed the connection ({closed.code}{said})", code=closed.code)

    def connection_lost(self) -> ConnectionLost:
        """A new exception that says why the connection has ended."""
        reason, code = self._failure or ("the connection has ended", 1006)
        return ConnectionLost(reason, code=code)

    def _take(self, message: Any) -> None:
        if self.ended.is_set():
            return  # The keepalive gave up a moment ago; everybody was told.
        if not isinstance(message, dict):
            self.unmatched += 1
            return
        if "method" in message:
            if "id" not in message:
                self._take_notification(ServerNotification(str(message["method"]), message.get("params")))
            return
        request_id = message.get("id")
        if type(request_id) is not int:
            self.unmatched += 1  # `null`, for a message of ours that the server could not read.
            return
        waiting = self._waiting.get(request_id)
        if waiting is None:
            self.unmatched += 1
        elif waiting.answered(message):
            self.forget(request_id)

    def _take_notification(self, notification: ServerNotification) -> None:
        try:
            self._notify.send_nowait(notification)
        except trio.WouldBlock:
            self.notifications.receive_nowait()
            self.notifications_dropped += 1
            self._notify.send_nowait(notification)
        except trio.BrokenResourceError:
            self.notifications_dropped += 1  # The user has closed the channel.


def limit_bytes(limits: dict[str, float]) -> float:
    """The message limit `session.info` announces; 0 there means none."""
    return limits.get("max_message_bytes", DEFAULT_MAX_MESSAGE_BYTES) or math.inf
