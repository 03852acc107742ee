"""WebSocket frames as bytes: reading and making headers (RFC 6455, section 5.2). No I/O, no state.

Only what a server does all day stands here; what a frame means is left to the engines' protocols.
"""

import struct

try:
    from websockets.speedups import apply_mask
except ImportError:  # built without its C extension
    from websockets.utils import apply_mask

_FINAL_TEXT = 0x81
_IS_MASKED = 0x80


def payload_span(data: bytes | bytearray, start: int) -> tuple[int, int] | None:
    """Where the payload of the frame at `start` begins and where it will end, which may lie beyond what is
    there; `None` when the header is not all there."""
    there = len(data)
    if there < start + 2:
        return None
    length = data[start + 1]
    body = start + 2
    if length >= _IS_MASKED:
        length -= _IS_MASKED
        body += 4
    if length < 126:
        return (body, body + length) if body <= there else None
    body += 2 if length == 126 else 8
    if body > there:
        return None
    (length,) = struct.unpack_from("!H" if length == 126 else "!Q", data, start + 2)
    return body, body + length


def is_whole_text(data: bytes | bytearray, start: int) -> bool:
    """Whether the frame at `start`, whose header is all there, is a client's text message in one piece."""
    return data[start] == _FINAL_TEXT and data[start + 1] >= _IS_MASKED


def unmasked(data: bytes | bytearray, body: int, end: int) -> bytes:
    """The payload that a client sent between `body` and `end`; its mask stands before it."""
    return apply_mask(data[body:end], data[body - 4 : body])


def text_header(size_bytes: int) -> bytes:
    """What stands before the `size_bytes` of a whole text message; a server's frames are not masked."""
    if size_bytes < 126:
        return struct.pack("!BB", _FINAL_TEXT, size_bytes)
    if size_bytes < 65536:
        return struct.pack("!BBH", _FINAL_TEXT, 126, size_bytes)
    return struct.pack("!BBQ", _FINAL_TEXT, 127, size_bytes)
