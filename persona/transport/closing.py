"""Ends: a write that takes too long; a close frame written by hand, and a moment for the peer to read it.

Closing a socket with unread bytes in it resets the connection, which may take our last words with it.
"""

import trio
from websockets.frames import Close, Frame, Opcode

LINGER_S = 0.5
"""How long a peer may take to read our last words before the socket is closed on it. Its place is taken
meanwhile, and a place that frees is to be had within a second."""
LINGER_BYTES = 64 * 1024
"""How much it may still send meanwhile."""


def close_frame(code: int, reason: str) -> bytes:
    """A server's close frame. `reason` has at most 123 bytes."""
    return Frame(Opcode.CLOSE, Close(code, reason).serialize()).serialize(mask=False)


class TooSlow(trio.BrokenResourceError):
    """The peer took too long over what it was sent."""


async def send_within(stream: trio.abc.SendStream, data: bytes | memoryview, within_s: float) -> None:
    """Send all of `data`. Raises `TooSlow`, and what the stream raises; a part may be on the wire then, and
    nothing sensible can follow it."""
    with trio.move_on_after(within_s) as deadline:
        await stream.send_all(data)
    if deadline.cancelled_caught:
        raise TooSlow(f"a write took more than {within_s} s")


async def say_goodbye(stream: trio.abc.Stream, last_words: bytes) -> None:
    """Send `last_words` and `linger`. No error when the peer has gone; the stream is left open. The caller
    bounds the send."""
    try:
        await stream.send_all(last_words)
        await linger(stream)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


async def linger(stream: trio.abc.Stream) -> None:
    """Say that no more comes, and read on for a moment."""
    with trio.move_on_after(LINGER_S):
        if isinstance(stream, trio.abc.HalfCloseableStream):
            await stream.send_eof()
        left = LINGER_BYTES
        while left > 0:
            data = await stream.receive_some(left)
            if not data:
                return
            left -= len(data)
        # It pours on, and may not have read yet: to close now would reset the connection and take our last
        # words with it. What it sends stays with the kernel.
        await trio.sleep_forever()
