"""Reads the headers of WebSocket frames as they pass, before an engine does.

For an engine that hides its frames: trio-websocket counts a message's size in characters, never counts
an empty fragment, and answers pings by itself. No payload is touched, and what is no proper frame is
left to the engine to complain of.
"""

import struct
from collections.abc import Callable

from persona.transport.engine import BadMessage, EngineOptions, brings_no_message, flooded, too_big
from persona.transport.ratelimit import TokenBucket


class FrameScanner:
    """One direction of one connection, from its first frame on."""

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
        self.verdict: BadMessage | None = None
        """Why nothing is let through any more."""

    def scan(self, data: bytes | bytearray) -> int:
        """How many bytes of `data` may pass; fewer than all once there is a `verdict`."""
        if self.verdict is not None:
            return 0
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
            header = _header(data, position)
            if header is None:
                self._header = bytes(data[position:])
                position = len(data)
                break
            size, payload_bytes = header
            self.verdict = self._judge(data[position], payload_bytes)
            if self.verdict is not None:
                break
            position += size
            self._payload_left = payload_bytes
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


def _header(data: bytes | bytearray, start: int) -> tuple[int, int] | None:
    """Its size and that of its payload; `None` when it is not all there."""
    there = len(data) - start
    if there < 2:
        return None
    second_byte = data[start + 1]
    length = second_byte & 0x7F
    size = 2 if length < 126 else 4 if length == 126 else 10
    if second_byte & 0x80:
        size += 4
    if there < size:
        return None
    if length == 126:
        (length,) = struct.unpack_from("!H", data, start + 2)
    elif length == 127:
        (length,) = struct.unpack_from("!Q", data, start + 2)
    return size, length
