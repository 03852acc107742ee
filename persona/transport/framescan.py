"""Reads the headers of WebSocket frames as they pass, before an engine does.

For an engine that hides its frames: trio-websocket counts a message's size in characters, never counts
an empty fragment, and answers pings by itself. No payload is touched, and what is no proper frame is
left to the engine to complain of.
"""

from collections.abc import Callable

from persona.transport.engine import BadMessage, EngineOptions, brings_no_message, flooded, too_big
from persona.transport.frames import payload_span
from persona.transport.ratelimit import TokenBucket

_CLOSE = 8


class FrameScanner:
    """One direction of one connection, from its first frame on."""

    __slots__ = (
        "_control",
        "_header",
        "_is_over",
        "_max_bytes",
        "_message_bytes",
        "_now",
        "_payload_left",
        "verdict",
    )

    def __init__(self, options: EngineOptions, now: Callable[[], float]) -> None:
        self._max_bytes = options.max_message_bytes
        self._control = TokenBucket(
            per_minute=options.control_rate_per_minute, burst=options.control_rate_burst, now=now()
        )
        self._now = now
        self._header = b""
        """The beginning of a header whose end has not arrived."""
        self._payload_left = 0
        self._message_bytes = 0
        # Whether the peer has closed: what it sends after that is nothing to anybody.
        self._is_over = False
        # Why nothing is let through any more.
        self.verdict: BadMessage | None = None

    def scan(self, data: bytes | bytearray) -> int:
        """How many bytes of `data` may pass; fewer than all once there is a `verdict`."""
        if self.verdict is not None:
            return 0
        if self._is_over:
            return len(data)
        held = len(self._header)
        if held:
            data = self._header + data
            self._header = b""
        position = 0
        while True:
            step = min(self._payload_left, len(data) - position)
            self._payload_left -= step
            position += step
            if position == len(data):
                break
            span = payload_span(data, position)
            if span is None:
                self._header = bytes(data[position:])
                position = len(data)
                break
            body, end = span
            self.verdict = self._judge(data[position], end - body)
            if self.verdict is not None:
                break
            if data[position] & 0x0F == _CLOSE:
                self._is_over = True
                position = len(data)
                break
            position = body
            self._payload_left = end - body
        return max(0, position - held)

    def _judge(self, first_byte: int, payload_bytes: int) -> BadMessage | None:
        opcode, is_final = first_byte & 0x0F, first_byte >= 0x80
        if brings_no_message(opcode=opcode, is_final=is_final) and self._control.take(self._now()):
            return flooded()
        if opcode < 8:
            self._message_bytes = payload_bytes + (self._message_bytes if opcode == 0 else 0)
            if self._message_bytes > self._max_bytes:
                return too_big(self._max_bytes)
        return None
