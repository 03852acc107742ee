"""The sending half of an engine: text messages and what the engine says by itself, in one order.

Both engines send here. trio-websocket has a `send_message` of its own, but that takes a lock, stops at a
checkpoint, and makes each frame anew for each client: nothing can be sent at once, a broadcast is framed
for everybody, and each piece of a stream wakes a writer.
"""

from collections.abc import Sequence

import trio

from persona.transport.closing import TooSlow, send_within
from persona.transport.engine import PeerGone, nobody
from persona.transport.frames import text_header
from persona.transport.sockets import SocketStream

MAX_PONG_BYTES = 64 * 1024
"""Pongs that wait to be sent. Whoever pings faster than it reads goes without the latest ones."""


class TextFramer:
    """Makes frames of text messages. A message that is sent to many, one after the other, is framed once."""

    def __init__(self) -> None:
        self._message: bytes | None = None
        self._frame = b""

    def frame(self, message: bytes) -> bytes:
        """The whole frame around `message`."""
        if message is not self._message:
            self._message, self._frame = message, text_header(len(message)) + message
        return self._frame


class SendingHalf:
    """`send`, `send_nowait`, `has_unsent` and `unsent_bytes` of an `Engine`.

    What an engine has to say besides goes through `_keep`, `_keep_pong` and `_farewell`. It never writes of
    its own accord: its owner does, when told by `on_unsent`.
    """

    def __init__(self, stream: trio.abc.Stream, framer: TextFramer, write_deadline_s: float) -> None:
        self.on_unsent = nobody
        self._stream = stream
        self._socket = stream if isinstance(stream, SocketStream) else None
        self.sends_at_once = self._socket is not None
        self._framer = framer
        self._write_deadline_s = write_deadline_s
        self._unsent = b""
        self._pong_bytes = 0
        """Of that, about."""
        self._in_hand_bytes = 0
        """Of the `send` that is under way."""
        self._send_ended: trio.Event | None = None
        """There while a `send` is under way."""
        self._farewell: bytes | None = None
        """The answer to the peer's close frame."""
        self._is_cut_off = False
        """Whether nothing can be sent any more: half a frame may be on the wire, or nobody is there."""
        self._lost = ""
        """Why the connection was given up, if it was."""

    @property
    def has_unsent(self) -> bool:
        return bool(self._unsent)

    @property
    def unsent_bytes(self) -> int:
        return len(self._unsent) + self._in_hand_bytes

    def _keep(self, frames: bytes) -> None:
        self._unsent += frames
        self.on_unsent()

    def _keep_pong(self, frames: bytes) -> None:
        if self._pong_bytes < MAX_PONG_BYTES:
            self._pong_bytes += len(frames)
            self._keep(frames)

    async def _let_send_end(self) -> None:
        """Who has said goodbye gets the frame that is under way to its end, and an answer after it."""
        if self._farewell is not None and self._send_ended is not None:
            await self._send_ended.wait()

    async def send(self, messages: Sequence[bytes]) -> None:
        if self._farewell is not None:
            # Nothing new is begun; what is left of a frame goes with the answer.
            raise PeerGone(1000)
        # Not to take what is unsent only to lose it: the writer may be cut before it begins.
        await trio.lowlevel.checkpoint_if_cancelled()
        data, self._unsent = self._unsent + self._framed(messages), b""
        self._pong_bytes = 0
        self._in_hand_bytes = len(data)
        self._send_ended = trio.Event()
        try:
            await send_within(self._stream, data, self._write_deadline_s)
        except TooSlow:
            # The reason first: the reader wakes on a closed stream.
            self._lost = "write_deadline"
            self._is_cut_off = True
            await trio.aclose_forcefully(self._stream)
            raise PeerGone(1006, self._lost) from None
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._is_cut_off = True
            raise PeerGone(1006) from None
        except BaseException:
            self._is_cut_off = True
            raise
        finally:
            self._in_hand_bytes = 0
            self._send_ended.set()
            self._send_ended = None

    def send_nowait(self, messages: Sequence[bytes]) -> bool:
        assert self._socket is not None
        data = self._framed(messages)
        if self._unsent:
            data = self._unsent + data
        try:
            sent = self._socket.send_nowait(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._is_cut_off = True
            raise PeerGone(1006) from None
        if sent == len(data):
            self._unsent, self._pong_bytes = b"", 0
            return True
        self._unsent = data[sent:]
        return False

    def _framed(self, messages: Sequence[bytes]) -> bytes:
        if len(messages) == 1:
            return self._framer.frame(messages[0])
        parts = []
        for message in messages:
            parts.append(text_header(len(message)))
            parts.append(message)
        return b"".join(parts)
