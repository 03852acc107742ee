"""The fast engine: `websockets`' sans-I/O protocol, straight on the stream.

What it does not do is what makes it fast: there is no second task, no channel and no lock between the
socket and the reader. A whole text message in one frame, which is what clients send, is read on the spot;
every other frame goes, whole, to `ServerProtocol`, which keeps the rules and the state.
"""

from collections.abc import Sequence
from contextlib import suppress
from http import HTTPStatus

import trio
from websockets.datastructures import Headers
from websockets.frames import Close, CloseCode, Frame, Opcode
from websockets.http11 import Request
from websockets.protocol import State
from websockets.server import ServerProtocol

from persona.transport.closing import LINGER_BYTES, close_frame, linger
from persona.transport.engine import (
    BadMessage,
    EngineOptions,
    PeerGone,
    bad_framing,
    bad_text,
    binary,
    brings_no_message,
    flooded,
    too_big,
)
from persona.transport.frames import is_whole_text, payload_span, unmasked
from persona.transport.handshake import RequestHead, plain_request
from persona.transport.ratelimit import TokenBucket
from persona.transport.sending import SendingHalf, TextFramer
from persona.transport.sockets import READ_BYTES

PARSE_BYTES = 4096
"""Parsed at a time. A read may bring ten thousand of the smallest frames, and everybody else would wait
for all of them; 4 KiB hold at most 700."""
MAX_CONTROL_BYTES = 125
"""The RFC's bound for the payload of a control frame."""


class SansioEngine(SendingHalf):
    """`websockets`' protocol behind the `Engine` interface."""

    def __init__(
        self, stream: trio.abc.Stream, surplus: bytes, framer: TextFramer, options: EngineOptions
    ) -> None:
        super().__init__(stream, framer, options.write_deadline_s)
        self._max_bytes = options.max_message_bytes
        # It would count a control frame between fragments as a part of their message.
        self._protocol = ServerProtocol(state=State.OPEN, max_size=None)
        self._control = TokenBucket(
            per_minute=options.control_rate_per_minute,
            burst=options.control_rate_burst,
            now=trio.current_time(),
        )
        self._unparsed: bytes | bytearray = surplus
        # Whether what is unparsed is no whole frame.
        self._is_starved = not surplus
        self._owed_bytes = 0
        """Of the frame that the protocol has begun to read."""
        self._fragments: list[bytes] = []
        self._declared_bytes = 0
        """Of the message that the protocol reads, by the headers of its frames."""
        self._ending: PeerGone | BadMessage | None = None
        """What `receive` raises once it has given the messages before it."""
        self._ping: trio.Event | None = None

    async def receive(self) -> Sequence[str]:
        while self._ending is None:
            if self._is_starved:
                await self._read(READ_BYTES)
            else:
                await trio.lowlevel.checkpoint()
            messages = self._parse_some()
            if messages:
                return messages
        await self._let_send_end()
        raise self._ending

    async def _read(self, max_bytes: int) -> int:
        """Take in more; how much that was."""
        try:
            data = await self._stream.receive_some(max_bytes)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        if not data:
            self._is_cut_off = True
            raise PeerGone(1006, self._lost)
        if self._unparsed:
            # A message that comes in very small pieces must not be copied for each.
            held = self._unparsed if isinstance(self._unparsed, bytearray) else bytearray(self._unparsed)
            held += data
            self._unparsed = held
        else:
            self._unparsed = data
        return len(data)

    def _parse_some(self) -> list[str]:
        data, position = self._unparsed, 0
        messages: list[str] = []
        self._is_starved = True
        try:
            while position < len(data):
                if position >= PARSE_BYTES:
                    self._is_starved = False
                    break
                end = self._parse_one(data, position, messages)
                if end == position:
                    break
                position = end
        except (PeerGone, BadMessage) as exc:
            self._ending = exc
        if position:
            self._unparsed = data[position:]
        return messages

    def _parse_one(self, data: bytes | bytearray, start: int, messages: list[str]) -> int:
        """Take one frame, or what there is of it, and say where that ended. A text message in one piece
        is left where it is until it is all there."""
        if self._owed_bytes:
            return self._give(data, start, start + self._owed_bytes, messages)
        span = payload_span(data, start)
        if span is None:
            return start
        body, end = span
        if not self._fragments and is_whole_text(data, start) and end - body <= self._max_bytes:
            if end > len(data):
                return start
            messages.append(_decoded(unmasked(data, body, end)))
            return end
        self._check_size(data[start] & 0x0F, end - body)
        return self._give(data, start, end, messages)

    def _check_size(self, opcode: int, payload_bytes: int) -> None:
        if opcode >= 8:
            if payload_bytes > MAX_CONTROL_BYTES:
                raise bad_framing()
            return
        self._declared_bytes = payload_bytes + (self._declared_bytes if opcode == 0 else 0)
        if self._declared_bytes > self._max_bytes:
            raise too_big(self._max_bytes)

    def _give(self, data: bytes | bytearray, start: int, end: int, messages: list[str]) -> int:
        """Give the protocol what is there of the frame that ends at `end`."""
        piece = data[start:end]
        self._owed_bytes = end - start - len(piece)
        protocol = self._protocol
        protocol.receive_data(piece)
        for frame in protocol.events_received():
            assert isinstance(frame, Frame)
            self._take(frame, messages)
        if protocol.parser_exc is not None:
            if protocol.close_rcvd is not None:
                # A close between fragments. The RFC allows any control frame there (5.4); the protocol
                # would fail the connection with 1002.
                self._farewell = _close_answer(protocol.close_rcvd)
                raise PeerGone(protocol.close_rcvd.code)
            raise bad_text() if isinstance(protocol.parser_exc, UnicodeDecodeError) else bad_framing()
        if answers := protocol.data_to_send():
            self._keep_pong(b"".join(answers))
        return start + len(piece)

    def _take(self, frame: Frame, messages: list[str]) -> None:
        opcode = frame.opcode
        if brings_no_message(opcode=opcode, is_final=frame.fin) and self._control.take(trio.current_time()):
            raise flooded()
        if opcode is Opcode.TEXT or opcode is Opcode.CONT:
            self._fragments.append(bytes(frame.data))
            if frame.fin:
                whole = b"".join(self._fragments)
                self._fragments.clear()
                messages.append(_decoded(whole))
        elif opcode is Opcode.BINARY:
            raise binary()
        elif opcode is Opcode.PONG:
            # A late answer to an earlier ping shows that the peer lives just as well.
            if self._ping is not None:
                self._ping.set()
        elif opcode is Opcode.CLOSE:
            self._farewell = b"".join(self._protocol.data_to_send())
            received = self._protocol.close_rcvd
            raise PeerGone(1005 if received is None else received.code)

    async def ping(self) -> None:
        self._ping = trio.Event()
        self._keep(Frame(Opcode.PING, b"").serialize(mask=False))
        await self._ping.wait()

    async def aclose(self, code: int, reason: str) -> None:
        try:
            if self._is_cut_off:
                return
            farewell = close_frame(code, reason) if self._farewell is None else self._farewell
            await self._stream.send_all(self._unsent + farewell)
            if self._ending is None:
                await self._wait_for_close()
            elif isinstance(self._ending, BadMessage):
                await linger(self._stream)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        finally:
            self._let_go()
            await trio.aclose_forcefully(self._stream)

    def _let_go(self) -> None:
        """Leave nothing to the garbage collector, which comes seldom: an exception that was raised knows the
        frames it came through, and they know us."""
        self._ending = PeerGone(1006)
        self._unparsed = b""
        self._fragments.clear()
        # The protocol and its parser know each other, and may hold the greater part of a message.
        self._protocol.parser.close()

    async def _wait_for_close(self) -> None:
        """Read to the peer's goodbye, which cannot be far."""
        left = LINGER_BYTES
        with suppress(PeerGone):
            while self._ending is None and left > 0:
                if self._is_starved:
                    left -= await self._read(left)
                self._parse_some()

    async def abort(self) -> None:
        await trio.aclose_forcefully(self._stream)


class AcceptSansio:
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
    ) -> SansioEngine:
        """Answer the opening request, which admission has checked."""
        await stream.send_all(_accepted(head, subprotocol))
        return SansioEngine(stream, head.surplus, self._framer, options)


def _accepted(head: RequestHead, subprotocol: str | None) -> bytes:
    """The 101. The protocol that makes it would then wait for frames after a request of its own reading,
    so the connection gets another one."""
    handshake = ServerProtocol()
    response = handshake.accept(Request("/", Headers(plain_request(head, subprotocol))))
    assert response.status_code == HTTPStatus.SWITCHING_PROTOCOLS
    if subprotocol is not None:
        response.headers["Sec-WebSocket-Protocol"] = subprotocol
    return response.serialize()


def _close_answer(received: Close) -> bytes:
    """The close frame that says the same. 1005 stands for no code."""
    payload = b"" if received.code == CloseCode.NO_STATUS_RCVD else received.serialize()
    return Frame(Opcode.CLOSE, payload).serialize(mask=False)


def _decoded(text: bytes) -> str:
    try:
        return text.decode()
    except UnicodeDecodeError:
        raise bad_text() from None
