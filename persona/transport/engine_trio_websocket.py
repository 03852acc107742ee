"""The trio-websocket engine. Only its public API is used.

trio-websocket owns a reader task, reads and answers frames out of sight, and drops the connection
without a word where it meets broken ones. So it is not given the stream itself but a `LentStream`: that
one looks at each frame's header first, hands what trio-websocket has to say to the engine, which sends it
among its messages, and when trio-websocket closes it, the socket stays open for the close frame that the
peer should have had.
"""

from collections.abc import Callable, Sequence

import trio
import trio_websocket
from wsproto.utilities import LocalProtocolError

from persona.transport.closing import LINGER_BYTES, close_frame, say_goodbye
from persona.transport.engine import (
    BadMessage,
    EngineOptions,
    PeerGone,
    bad_framing,
    bad_text,
    binary,
)
from persona.transport.framescan import FrameScanner
from persona.transport.handshake import RequestHead, plain_request
from persona.transport.sending import SendingHalf, TextFramer

RECEIVE_BUFFER_BYTES = 64 * 1024
"""trio-websocket reads 4 KiB at a time by default: many system calls for one large message."""
MESSAGE_QUEUE = 1
"""While a message waits here trio-websocket reads nothing, pongs neither; ours is emptied at once."""

_FIN_CLOSE = 0x88
_FIN_PONG = 0x8A
_OUR_MISTAKE = {1002: bad_framing, 1007: bad_text}
"""Codes that trio-websocket finds but does not tell the peer."""


class LentStream(trio.abc.HalfCloseableStream):
    """A stream as trio-websocket sees it: the opening `request`, then what was read beyond it, then what
    `stream` brings. Closing it leaves `stream` open."""

    def __init__(
        self,
        stream: trio.abc.Stream,
        request: bytes,
        surplus: bytes,
        scanner: FrameScanner,
    ) -> None:
        self._stream = stream
        self._replay = request
        self._surplus = surplus
        self._scanner = scanner
        # There until it happens: two events on each connection would be half a kilobyte.
        self._opened: trio.Event | None = trio.Event()
        self._left_bytes: int | None = None
        self._is_closed = False
        self._is_done = False
        # There while somebody waits for that.
        self._done: trio.Event | None = None
        self.on_frame: Callable[[bytes], None] | None = None
        """Takes what trio-websocket sends; without it that goes to `stream`."""
        self._unsent = b""
        self.has_ended = False
        """Whether the peer's end was seen, or the stream broke."""

    async def wait_done(self) -> None:
        """Wait until trio-websocket has closed this, or cannot use it any more."""
        if not self._is_done:
            self._done = trio.Event()
            await self._done.wait()

    def _finish(self) -> None:
        self._is_done = True
        if self._done is not None:
            self._done.set()

    def open(self) -> None:
        """Let frames in. One that comes before the opening request is answered would be taken, but not
        looked at before the next one comes."""
        # What came with the request is frames already.
        self._replay = self._surplus[: self._scanner.scan(self._surplus)]
        self._surplus = b""
        opened, self._opened = self._opened, None
        if opened is not None:
            opened.set()

    def take_leave(self, unsent: bytes) -> None:
        """From now on trio-websocket has the word, after what is `unsent`. Only so much more is let in as a
        closing handshake may take, which needs one small frame; then the end is feigned."""
        self._left_bytes = LINGER_BYTES
        self._unsent = unsent
        self.on_frame = None

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        # trio-websocket sends a frame at a time, and has come here through a checkpoint: its lock.
        if self.on_frame is not None:
            self.on_frame(bytes(data))
            return
        data, self._unsent = self._unsent + data, b""
        try:
            await self._stream.send_all(data)
        except BaseException:
            self._finish()
            raise

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        await trio.lowlevel.checkpoint()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._is_closed:
            await trio.lowlevel.checkpoint()
            raise trio.ClosedResourceError
        if not self._replay and self._opened is not None:
            await self._opened.wait()
        if self._replay:
            await trio.lowlevel.checkpoint()
            size = len(self._replay) if max_bytes is None else max_bytes
            replayed, self._replay = self._replay[:size], self._replay[size:]
            return replayed
        if self._scanner.verdict is not None or self._left_bytes == 0:
            await trio.lowlevel.checkpoint()
            return b""
        try:
            data = await self._stream.receive_some(max_bytes)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            self._end()
            raise
        if not data:
            self._end()
        if self._left_bytes is not None:
            data = data[: self._left_bytes]
            self._left_bytes -= len(data)
        allowed = self._scanner.scan(data)
        return data if allowed == len(data) else data[:allowed]

    def _end(self) -> None:
        self.has_ended = True
        self._finish()

    async def aclose(self) -> None:
        self._is_closed = True
        self._finish()
        await trio.lowlevel.checkpoint()


class TrioWebsocketEngine(SendingHalf):
    """trio-websocket behind the `Engine` interface."""

    def __init__(
        self,
        connection: trio_websocket.WebSocketConnection,
        stream: trio.abc.Stream,
        lent: LentStream,
        scanner: FrameScanner,
        framer: TextFramer,
        options: EngineOptions,
    ) -> None:
        super().__init__(stream, framer, options.write_deadline_s)
        self._connection = connection
        self._lent = lent
        self._scanner = scanner
        lent.on_frame = self._take_frame

    def _take_frame(self, frame: bytes) -> None:
        """Say what trio-websocket says by itself."""
        if frame[0] == _FIN_CLOSE:
            self._farewell = frame
        elif frame[0] == _FIN_PONG:
            self._keep_pong(frame)
        else:
            self._keep(frame)

    async def receive(self) -> Sequence[str]:
        try:
            message = await self._connection.get_message()
        except trio_websocket.ConnectionClosed as exc:
            code = _code(exc)
        else:
            if isinstance(message, bytes):
                raise binary()
            return (message,)
        await self._let_send_end()
        raise self._ending(code)

    def _ending(self, code: int) -> PeerGone | BadMessage:
        if self._scanner.verdict is not None:
            return self._scanner.verdict
        if self._lost:
            return PeerGone(1006, self._lost)
        if code in _OUR_MISTAKE and self._farewell is None:
            return _OUR_MISTAKE[code]()
        return PeerGone(code)

    async def ping(self) -> None:
        try:
            await self._connection.ping()
        except trio_websocket.ConnectionClosed as exc:
            raise PeerGone(_code(exc)) from None

    async def aclose(self, code: int, reason: str) -> None:
        lent = self._lent
        try:
            if self._is_cut_off or lent.has_ended:
                return
            if self._connection.closed is None:
                lent.take_leave(self._unsent)
                await self._connection.aclose(code, reason)
                return
            if self._scanner.verdict is None:
                # Its own task may be answering the peer's close just now.
                await lent.wait_done()
            if self._farewell is None:
                # trio-websocket has closed without a word.
                await say_goodbye(self._stream, self._unsent + close_frame(code, reason))
            else:
                await self._stream.send_all(self._unsent + self._farewell)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        except LocalProtocolError:
            # The peer's close arrived while ours was being made; wsproto calls that our mistake.
            pass
        finally:
            # They know each other, and what is unsent should not wait for the garbage collector.
            lent.on_frame = None
            if self._scanner.verdict is not None:
                # It was raised, and knows the frames it came through.
                self._scanner.verdict.__traceback__ = None
            await trio.aclose_forcefully(self._stream)

    async def abort(self) -> None:
        await trio.aclose_forcefully(self._stream)


class AcceptTrioWebsocket:
    """`AcceptEngine` for one server."""

    def __init__(self) -> None:
        self._framer = TextFramer()

    async def __call__(
        self,
        nursery: trio.Nursery,
        stream: trio.abc.Stream,
        head: RequestHead,
        *,
        subprotocol: str | None,
        options: EngineOptions,
    ) -> TrioWebsocketEngine:
        """Answer the opening request, which admission has checked. The reader task lives in `nursery`."""
        scanner = FrameScanner(options, trio.current_time)
        lent = LentStream(stream, _request(head, subprotocol), head.surplus, scanner)
        request = await trio_websocket.wrap_server_stream(
            nursery,
            lent,
            # Counted in characters for text, and there are no more of these than bytes: the scanner
            # has refused before this bound is met.
            max_message_size=options.max_message_bytes,
            message_queue_size=MESSAGE_QUEUE,
            receive_buffer_size=RECEIVE_BUFFER_BYTES,
        )
        try:
            connection = await request.accept(subprotocol=subprotocol)
        except trio_websocket.ConnectionClosed:
            raise trio.BrokenResourceError("the peer went before it was answered") from None
        engine = TrioWebsocketEngine(connection, stream, lent, scanner, self._framer, options)
        lent.open()
        return engine


def _request(head: RequestHead, subprotocol: str | None) -> bytes:
    headers = plain_request(head, subprotocol).items()
    lines = ["GET / HTTP/1.1", *(f"{name}: {value}" for name, value in headers), "", ""]
    return "\r\n".join(lines).encode("ascii")


def _code(closed: trio_websocket.ConnectionClosed) -> int:
    return 1006 if closed.reason is None else closed.reason.code
