"""Reading the HTTP request that opens a connection, before any WebSocket engine sees it.

The engines hide what admission must know (trio-websocket gives no Host and answers a plain GET
with a bare 400), so the head is read and judged here, and its bytes are then replayed to the
engine. A refused client gets a proper HTTP answer.
"""

from http import HTTPStatus

import attrs
import h11
import trio

MAX_HEAD_BYTES = 16 * 1024
"""A browser's head is 1-2 KiB; cookies of other services on the same host may double that."""
LINGER_S = 1.0
"""How long a refused client may take to read its answer before the socket is closed on it."""
LINGER_BYTES = 64 * 1024


@attrs.frozen
class RequestHead:
    """The opening request. Header names are lower case; `raw` is every byte read so far."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    raw: bytes = attrs.field(repr=False)

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    def header(self, name: str) -> str | None:
        """The first header of that name."""
        return next((value for key, value in self.headers if key == name), None)

    def listed(self, name: str) -> list[str]:
        """The comma-separated values of every header of that name."""
        values = ",".join(value for key, value in self.headers if key == name)
        return [item for part in values.split(",") if (item := part.strip())]

    @property
    def is_websocket(self) -> bool:
        """Whether it asks for a WebSocket."""
        return (
            self.method == "GET"
            and "websocket" in (item.casefold() for item in self.listed("upgrade"))
            and "upgrade" in (item.casefold() for item in self.listed("connection"))
        )


class Refused(Exception):
    """The connection is refused with an HTTP answer. `reason` is a word for the metric."""

    def __init__(
        self, status: HTTPStatus, reason: str, text: str, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason
        self.text = text
        self.headers = headers

    def response(self) -> bytes:
        """The HTTP answer, ready to send."""
        body = self.text.encode() + b"\n"
        connection = h11.Connection(h11.SERVER)
        headers = [
            ("Content-Type", "text/plain; charset=utf-8"),
            ("Content-Length", str(len(body))),
            ("Connection", "close"),
            *self.headers,
        ]
        response = h11.Response(status_code=self.status, headers=headers, reason=self.status.phrase)
        events = (response, h11.Data(body), h11.EndOfMessage())
        return b"".join(connection.send(event) or b"" for event in events)


async def read_head(stream: trio.abc.ReceiveStream) -> RequestHead | None:
    """Read the opening request; `None` when the peer closed without a word.

    Raises `Refused` when it is no HTTP request or longer than `MAX_HEAD_BYTES`. The caller owns
    the time.
    """
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
    raw = bytearray()
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as exc:
            status = HTTPStatus(exc.error_status_hint)
            raise Refused(status, "bad_request", "This is no HTTP request this server understands.") from None
        if isinstance(event, h11.Request):
            return RequestHead(
                event.method.decode("ascii"),
                event.target.decode("ascii", "replace"),
                tuple((name.decode("ascii"), value.decode("latin-1")) for name, value in event.headers),
                bytes(raw),
            )
        data = await stream.receive_some(MAX_HEAD_BYTES)
        if not data and not raw:
            return None
        raw += data
        connection.receive_data(bytes(data))


async def refuse(stream: trio.abc.Stream, refused: Refused) -> None:
    """Answer and close. Closing with unread bytes would reset the connection and may take the
    answer with it, so what the client still sends is read for a moment. Never raises but
    `Cancelled`; the stream is closed in any case."""
    try:
        await stream.send_all(refused.response())
        await linger(stream)
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass
    finally:
        await trio.aclose_forcefully(stream)


async def linger(stream: trio.abc.Stream) -> None:
    """Say that no more comes, and read on for a moment so that the peer can read our last words."""
    with trio.move_on_after(LINGER_S):
        if isinstance(stream, trio.abc.HalfCloseableStream):
            await stream.send_eof()
        left = LINGER_BYTES
        while left > 0 and (data := await stream.receive_some(left)):
            left -= len(data)


class ReplayStream(trio.abc.HalfCloseableStream):
    """A stream whose first bytes were already read: they come again, then those of `stream`.

    Whoever lent it out can take over the reading of `stream` itself again.
    """

    def __init__(self, stream: trio.abc.Stream, replay: bytes) -> None:
        self._stream = stream
        self._replay = replay
        self._is_taken_over = False
        self._read: trio.CancelScope | None = None
        self._idle = trio.Event()
        self.is_cut_off = False
        """Whether a send was cut, so that half a frame may be on the wire."""

    async def take_over(self) -> None:
        """End the read that waits, if one does, and any later one: it sees the end of the stream.
        After this `stream` has no reader."""
        self._is_taken_over = True
        if self._read is not None:
            self._read.cancel()
            await self._idle.wait()

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            await self._stream.send_all(data)
        except BaseException:
            self.is_cut_off = True
            raise

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def send_eof(self) -> None:
        if isinstance(self._stream, trio.abc.HalfCloseableStream):
            await self._stream.send_eof()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        if self._replay:
            await trio.lowlevel.checkpoint()
            size = len(self._replay) if max_bytes is None else max_bytes
            data, self._replay = self._replay[:size], self._replay[size:]
            return data
        if self._is_taken_over:
            await trio.lowlevel.checkpoint()
            return b""
        self._read = trio.CancelScope()
        try:
            with self._read:
                return await self._stream.receive_some(max_bytes)
            return b""
        finally:
            if self._read.cancel_called:
                self._idle.set()
            self._read = None

    async def aclose(self) -> None:
        await self._stream.aclose()
