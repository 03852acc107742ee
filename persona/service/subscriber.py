"""What the server's parts know of a client they send to: something that takes frames and never waits."""

from typing import Protocol, Self


class Joinable(Protocol):
    """A frame that is encoded when its turn to be sent comes. Until then, the next one of the same
    series can be joined to it, so that a client that falls behind gets fewer and larger frames."""

    @property
    def series(self) -> object:
        """What tells the frames that may be joined from others; compared by identity."""
        ...

    @property
    def size_bytes(self) -> int:
        """About what it will be when encoded; not less than what it holds in memory."""
        ...

    def join(self, later: Self) -> None:
        """Take in the next frame of the series, which is then not sent."""
        ...

    def encode(self) -> bytes:
        """The frame, to be sent now."""
        ...


Frame = bytes | Joinable


class Subscriber(Protocol):
    """Something that can take a frame without waiting."""

    def offer(self, frame: Frame) -> bool:
        """Queue `frame`; `False` when it cannot take it."""
        ...
