"""From bytes to lines, and from lines to server-sent events. No I/O.

Rules:

* A line ends at LF, CR LF or CR, and is at most `MAX_LINE_BYTES` long; what is not yet a whole
  line is the only thing kept, so memory is bounded however the sender cuts its bytes.
* Lines are cut as bytes and decoded whole, strictly: in UTF-8 no byte of a longer character
  looks like a line end, so a character split over reads needs no decoder that keeps state.
* An event is at most `MAX_LINE_BYTES` long, all its `data` lines together.

httpx2's own `aiter_lines` keeps a line of any length, and its `EventSource` replaces invalid
bytes silently; a model server that breaks these rules has to fail loudly instead.
"""

from persona.errors import LLMUnavailable

MAX_LINE_BYTES = 1024 * 1024


class LineSplitter:
    """Cuts a stream of bytes into lines.

    `feed` and `finish` raise `LLMUnavailable` for a line that is too long or not UTF-8.
    """

    def __init__(self, max_line_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_line_bytes = max_line_bytes
        self._pending = bytearray()
        self._after_cr = False

    def feed(self, data: bytes) -> list[str]:
        """The lines that `data` completes, without their ends."""
        if self._after_cr and data.startswith(b"\n"):
            data = data[1:]
            self._after_cr = False
        if not data:
            return []
        self._after_cr = data.endswith(b"\r")
        # For bytes, unlike str, splitlines knows exactly the three ends wanted here.
        pieces = data.splitlines()
        tail = b"" if data.endswith((b"\n", b"\r")) else pieces.pop()
        lines = [self._line(piece) for piece in pieces]
        self._pending += tail
        self._check(len(self._pending))
        return lines

    def finish(self) -> str | None:
        """The last line, if the stream ended in the middle of one."""
        return self._line(b"") if self._pending else None

    def _line(self, piece: bytes) -> str:
        raw = bytes(self._pending) + piece if self._pending else piece
        self._pending.clear()
        self._check(len(raw))
        try:
            return raw.decode()
        except UnicodeDecodeError as exc:
            raise LLMUnavailable("The model server sent bytes that are no UTF-8 text.") from exc

    def _check(self, length: int) -> None:
        if length > self._max_line_bytes:
            raise LLMUnavailable(f"The model server sent a line longer than {self._max_line_bytes} bytes.")


class EventDecoder:
    """Gathers the `data` of server-sent events; comments and other fields are skipped."""

    def __init__(self, max_event_bytes: int = MAX_LINE_BYTES) -> None:
        self._max_event_bytes = max_event_bytes
        self._data: list[str] = []
        self._size = 0
        self._first = True

    def feed(self, line: str) -> str | None:
        """The event's data, if `line` (the empty one) ends an event that has any.

        Raises `LLMUnavailable` for an event that is too long.
        """
        if self._first:
            self._first = False
            line = line.removeprefix("\ufeff")
        if not line:
            return self.finish()
        name, _, value = line.partition(":")
        if name == "data":
            value = value.removeprefix(" ")
            self._data.append(value)
            self._size += len(value.encode()) + 1
            if self._size > self._max_event_bytes:
                raise LLMUnavailable(
                    f"The model server sent an event longer than {self._max_event_bytes} bytes."
                )
        return None

    def finish(self) -> str | None:
        """The data gathered so far. The standard drops an event that the stream's end cuts
        short; servers exist that end with `data: [DONE]` and no empty line, so it counts."""
        if not self._data:
            return None
        data = "\n".join(self._data)
        self._data.clear()
        self._size = 0
        return data
