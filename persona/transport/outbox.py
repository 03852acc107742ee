"""What a connection still has to send: bounded by messages and by bytes.

Overflow policy: from half of either bound on, a chunk of a stream is joined to the one of that
stream that still waits. A frame that does not fit even so is refused, and the outbox takes no
more; its connection is then closed, for a stream with a hole in it is worth less than none. One frame
alone always fits: whoever reads at once may be given an answer larger than the bound. Producers never
wait.
"""

from persona.service.subscriber import Frame, Joinable

MAX_JOINED_BYTES = 64 * 1024
"""A frame that has grown to this takes in no more: clients bound what they read as we do."""


class Outbox:
    """Many producers and one consumer, in the event loop."""

    def __init__(self, *, max_messages: int, max_bytes: int) -> None:
        self._max_messages = max_messages
        self._max_bytes = max_bytes
        self._half_messages = max_messages / 2
        self._half_bytes = max_bytes / 2
        # Not a deque: an empty one takes 0.7 kB, and the front is taken many at a time.
        self._frames: list[Frame] = []
        # The last frame of each series that waits, by the series' identity.
        self._growing: dict[int, Joinable] = {}
        self.is_closed = False
        self.pending_bytes = 0
        self.overflowed = False
        """Whether a frame did not fit, as opposed to one that came after `close`."""

    def __len__(self) -> int:
        return len(self._frames)

    def offer(self, frame: Frame) -> bool:
        """Queue `frame`; `False` when it does not fit or the outbox is closed."""
        if self.is_closed:
            return False
        if isinstance(frame, bytes):
            size_bytes = len(frame)
        elif self._join(frame):
            return True
        else:
            size_bytes = frame.size_bytes
        pending_bytes = self.pending_bytes + size_bytes
        if self._frames and (pending_bytes > self._max_bytes or len(self._frames) >= self._max_messages):
            self.is_closed = self.overflowed = True
            return False
        self._frames.append(frame)
        if not isinstance(frame, bytes):
            self._growing[id(frame.series)] = frame
        self.pending_bytes = pending_bytes
        return True

    def _join(self, frame: Joinable) -> bool:
        earlier = self._growing.get(id(frame.series))
        if earlier is None or not self.is_half_full:
            return False
        before_bytes = earlier.size_bytes
        if before_bytes >= MAX_JOINED_BYTES or self.pending_bytes + frame.size_bytes > self._max_bytes:
            return False
        earlier.join(frame)
        self.pending_bytes += earlier.size_bytes - before_bytes
        return True

    @property
    def is_half_full(self) -> bool:
        """By messages or by bytes."""
        return len(self._frames) >= self._half_messages or self.pending_bytes >= self._half_bytes

    def close(self) -> None:
        """Take no more; what is queued can still be taken."""
        self.is_closed = True

    def clear(self) -> None:
        """Forget what is queued, and take no more."""
        self.is_closed = True
        self._frames.clear()
        self._growing.clear()
        self.pending_bytes = 0

    def take(self, max_bytes: int) -> list[bytes]:
        """The oldest frames, encoded: at least one if there is one, and more up to `max_bytes`."""
        taken: list[bytes] = []
        taken_bytes = 0
        for frame in self._frames:
            size_bytes = _size(frame)
            if taken and taken_bytes + size_bytes > max_bytes:
                break
            taken_bytes += size_bytes
            taken.append(frame if isinstance(frame, bytes) else self._encode(frame))
        del self._frames[: len(taken)]
        self.pending_bytes -= taken_bytes
        return taken

    def _encode(self, frame: Joinable) -> bytes:
        if self._growing.get(id(frame.series)) is frame:
            del self._growing[id(frame.series)]
        return frame.encode()


def _size(frame: Frame) -> int:
    return len(frame) if isinstance(frame, bytes) else frame.size_bytes
