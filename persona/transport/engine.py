"""What a WebSocket engine offers, and the trio-websocket engine.

An engine moves whole text messages. It owns no policy: limits, deadlines and who may connect are
decided around it.
"""

from contextlib import suppress
from typing import Protocol

import trio
import trio_websocket
from wsproto.utilities import LocalProtocolError

from persona.transport.handshake import ReplayStream, RequestHead, linger

RECEIVE_BUFFER_BYTES = 64 * 1024
"""trio-websocket reads 4 KiB at a time by default: many system calls for one large message."""


class PeerGone(Exception):
    """The peer closed, or the connection broke. `code` is the close code, 1006 if there was none."""

    def __init__(self, code: int) -> None:
        super().__init__(f"close code {code}")
        self.code = code


class BadMessage(Exception):
    """A message this server does not take; the connection must be closed with `code`."""

    def __init__(self, code: int, cause: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.cause = cause
        self.text = text


class Engine(Protocol):
    """One open WebSocket. One task receives, one task sends, one task pings."""

    async def receive(self) -> str | bytes:
        """The next text message.

        Raises `PeerGone`, or `BadMessage` for a binary (1003) or an oversize (1009) one.
        """
        ...

    async def send(self, message: bytes) -> None:
        """Send one text message. Raises `PeerGone`. After a send that was cancelled `aclose` will
        only `abort`: half a frame may be on the wire, and nothing sensible can follow it."""
        ...

    async def ping(self) -> None:
        """Send a ping and wait for its pong. Raises `PeerGone`. The caller bounds the wait."""
        ...

    async def aclose(self, code: int, reason: str) -> None:
        """Say goodbye and wait for the peer's. The caller bounds the wait; cancelling closes
        the stream by force. Never raises but `Cancelled`."""
        ...

    async def abort(self) -> None:
        """Close the socket without a word."""
        ...


class TrioWebsocketEngine:
    """trio-websocket behind the `Engine` interface. Only its public API is used."""

    def __init__(
        self,
        connection: trio_websocket.WebSocketConnection,
        stream: trio.abc.Stream,
        lent: ReplayStream,
        max_message_bytes: int,
    ) -> None:
        self._connection = connection
        self._stream = stream
        self._lent = lent
        self._max_message_bytes = max_message_bytes
        self._oversize = False

    @classmethod
    async def accept(
        cls,
        nursery: trio.Nursery,
        stream: trio.abc.Stream,
        head: RequestHead,
        *,
        subprotocol: str | None,
        max_message_bytes: int,
    ) -> "TrioWebsocketEngine":
        """Answer the opening request. The engine's reader task lives in `nursery`.

        A request that is no valid WebSocket handshake is answered by trio-websocket with a 400
        and leaves this waiting: the caller owns the time.
        """
        lent = ReplayStream(stream, head.raw)
        request = await trio_websocket.wrap_server_stream(
            nursery,
            lent,
            # Counted in characters for text; a character is at most four bytes, so the real
            # bound, in bytes, is checked in `receive`.
            max_message_size=max_message_bytes,
            receive_buffer_size=RECEIVE_BUFFER_BYTES,
        )
        connection = await request.accept(subprotocol=subprotocol)
        return cls(connection, stream, lent, max_message_bytes)

    async def receive(self) -> str:
        try:
            message = await self._connection.get_message()
        except trio_websocket.ConnectionClosed as exc:
            code = exc.reason.code if exc.reason is not None else 1006
            if code == 1009:
                self._oversize = True
                raise self._too_big() from None
            raise PeerGone(code) from None
        if isinstance(message, bytes):
            raise BadMessage(1003, "binary", "only text frames are taken here")
        if len(message) * 4 > self._max_message_bytes and not self._fits(message):
            raise self._too_big()
        return message

    async def send(self, message: bytes) -> None:
        try:
            await self._connection.send_message(message.decode())
        except trio_websocket.ConnectionClosed as exc:
            raise PeerGone(exc.reason.code if exc.reason is not None else 1006) from None

    async def ping(self) -> None:
        try:
            await self._connection.ping()
        except trio_websocket.ConnectionClosed as exc:
            raise PeerGone(exc.reason.code if exc.reason is not None else 1006) from None

    async def aclose(self, code: int, reason: str) -> None:
        if self._lent.is_cut_off:
            await self.abort()
            return
        if self._oversize:
            # trio-websocket has sent its 1009 already and reads at most once more. Closing now,
            # with the rest of the message unread, would reset the connection and lose that frame.
            await self._lent.take_over()
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await linger(self._stream)
        try:
            await self._connection.aclose(code, reason)
        except LocalProtocolError:
            # The peer's close arrived while ours was being made; wsproto calls that our mistake.
            await self.abort()

    async def abort(self) -> None:
        await trio.aclose_forcefully(self._stream)

    def _fits(self, message: str) -> bool:
        size_bytes = len(message) if message.isascii() else len(message.encode())
        return size_bytes <= self._max_message_bytes

    def _too_big(self) -> BadMessage:
        return BadMessage(1009, "too_big", f"a message may have {self._max_message_bytes} bytes")
