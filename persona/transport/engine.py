"""What a WebSocket engine offers, whichever library does the framing.

An engine moves whole text messages. It owns no policy: limits, deadlines and who may connect are decided
around it, and it is told what it must know in `EngineOptions`.

Nothing an engine does on its own needs a task of its own on our side: what it has to say by itself (a
pong, a ping) it keeps until its owner lets it send, so that one party at a time writes to the socket.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

import attrs
import trio

from persona.transport.handshake import RequestHead


class PeerGone(Exception):
    """The peer closed, or the connection broke. `code` is the close code, 1006 if there was none; `cause`
    is a word for the metric."""

    def __init__(self, code: int, cause: str = "") -> None:
        super().__init__(f"close code {code}")
        self.code = code
        self.cause = cause or ("lost" if code == 1006 else "client")


class BadMessage(Exception):
    """Something this server does not take; the connection must be closed with `code`. `cause` is a word
    for the metric."""

    def __init__(self, code: int, cause: str, text: str) -> None:
        super().__init__(text)
        self.code = code
        self.cause = cause
        self.text = text


@attrs.frozen(kw_only=True)
class EngineOptions:
    """What an engine must know of the limits."""

    max_message_bytes: int
    """Of a whole message, however many fragments it comes in."""
    control_rate_per_minute: float
    """Frames that bring no message: control frames, and fragments that do not end one. 0 is no limit."""
    control_rate_burst: int
    write_deadline_s: float
    """How long one write may take; then the socket is closed."""


class Engine(Protocol):
    """One open WebSocket. One task receives; one party at a time sends; one ping is under way at a time."""

    on_unsent: Callable[[], None]
    """Called when the engine has something to say by itself; its owner then sends when it can."""
    sends_at_once: bool
    """Whether there is a `send_nowait`."""

    @property
    def has_unsent(self) -> bool:
        """Whether the engine holds bytes that the next `send` or `send_nowait`, of no message even, takes
        with it."""
        ...

    @property
    def unsent_bytes(self) -> int:
        """How many those are; and those of a `send` that is under way, all until the last is taken."""
        ...

    async def receive(self) -> Sequence[str]:
        """The next text messages, at least one: all that one read brought, as far as that is a fair share.

        Raises `PeerGone`, or `BadMessage` for what is binary (1003), too big (1009), no WebSocket framing
        (1002), no UTF-8 (1007), or too many frames that bring no message (1008). Messages that came before
        it are given first.
        """
        ...

    async def send(self, messages: Sequence[bytes]) -> None:
        """Send text messages. Raises `PeerGone`, with the cause `write_deadline` where it took too long.
        After that, or a send that was cancelled once it had begun, `aclose` will only `abort`: half a frame
        may be on the wire, and nothing sensible can follow it."""
        ...

    def send_nowait(self, messages: Sequence[bytes]) -> bool:
        """Send what the socket takes at once, and hold the rest: see `has_unsent`. Whether that was all.
        Raises `PeerGone`. Not to be called while a `send` is under way, nor without `sends_at_once`."""
        ...

    async def ping(self) -> None:
        """Send a ping and wait for its pong. Raises `PeerGone`. The caller bounds the wait."""
        ...

    async def aclose(self, code: int, reason: str) -> None:
        """Say goodbye, unless the peer did, and let it answer. The caller bounds the wait; cancelling
        closes the stream by force. Never raises but `Cancelled`."""
        ...

    async def abort(self) -> None:
        """Close the socket without a word."""
        ...


class AcceptEngine(Protocol):
    """How an engine comes to be: it answers the opening request."""

    async def __call__(
        self,
        nursery: trio.Nursery,
        stream: trio.abc.Stream,
        head: RequestHead,
        *,
        subprotocol: str | None,
        options: EngineOptions,
    ) -> Engine:
        """An engine over `stream`, whose opening request was `head`. Tasks of its own, if it has any, live
        in `nursery`. The caller bounds the wait. Raises what the stream raises."""
        ...


def too_big(max_bytes: int) -> BadMessage:
    """A message, or what is declared as one, is over the limit."""
    return BadMessage(1009, "too_big", f"a message may have {max_bytes} bytes")


def flooded() -> BadMessage:
    """Too many frames that bring no message."""
    return BadMessage(1008, "flood", "too many frames without a message")


def binary() -> BadMessage:
    """A binary message."""
    return BadMessage(1003, "binary", "only text frames are taken here")


def bad_framing() -> BadMessage:
    """What is no WebSocket frame."""
    return BadMessage(1002, "protocol", "this is no WebSocket framing")


def bad_text() -> BadMessage:
    """A text message, or the text of a close frame, that is not UTF-8."""
    return BadMessage(1007, "not_utf8", "text must be UTF-8")


def brings_no_message(*, opcode: int, is_final: bool) -> bool:
    """Whether a frame costs work and gives none to do: a control frame, or a fragment before the last."""
    return opcode >= 8 or not is_final


def nobody() -> None:
    """The `on_unsent` of an engine that has no owner yet."""
