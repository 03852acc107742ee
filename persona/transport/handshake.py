"""Reading the HTTP request that opens a connection, before any WebSocket engine sees it.

The engines hide what admission must know (trio-websocket gives no Host and answers a plain GET
with a bare 400), so the head is read and judged here, and then given to the engine. A refused client
gets a proper HTTP answer.
"""

from contextlib import suppress
from http import HTTPStatus

import attrs
import h11
import trio

from persona.transport.closing import say_goodbye

MAX_HEAD_BYTES = 16 * 1024
"""A browser's head is 1-2 KiB; cookies of other services on the same host may double that."""


@attrs.frozen
class RequestHead:
    """The opening request. Header names are lower case; `surplus` is what was read beyond it."""

    method: str
    target: str
    headers: tuple[tuple[str, str], ...]
    surplus: bytes = attrs.field(repr=False, default=b"")
    http_version: str = "1.1"

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
        """Whether it asks for a WebSocket; HTTP/1.0 knows no upgrades."""
        return (
            self.method == "GET"
            and self.http_version != "1.0"
            and "websocket" in (item.casefold() for item in self.listed("upgrade"))
            and "upgrade" in (item.casefold() for item in self.listed("connection"))
        )


def plain_request(head: RequestHead, subprotocol: str | None) -> dict[str, str]:
    """What is left for an engine to answer of a request that was admitted, as headers. Engines are of
    different minds about headers that come twice, or hold more than they must; who is let in is not theirs
    to say."""
    headers = {
        "Host": "localhost",
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": head.header("sec-websocket-key") or "",
    }
    if subprotocol is not None:
        headers["Sec-WebSocket-Protocol"] = subprotocol
    return headers


class Refused(Exception):
    """The connection is refused with an HTTP answer. `reason` is a word for the metric; the answer to a HEAD
    request is the same without its body."""

    def __init__(
        self, status: HTTPStatus, reason: str, text: str, headers: tuple[tuple[str, str], ...] = ()
    ) -> None:
        super().__init__(text)
        self.status = status
        self.reason = reason
        self.text = text
        self.headers = headers
        self.has_body = True

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
        events = (response, h11.Data(body), h11.EndOfMessage()) if self.has_body else (response,)
        return b"".join(connection.send(event) or b"" for event in events)


async def read_head(stream: trio.abc.ReceiveStream) -> RequestHead | None:
    """Read the opening request; `None` when the peer closed without a word.

    Raises `Refused` when it is no HTTP request or longer than `MAX_HEAD_BYTES`. The caller owns
    the time.
    """
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)
    read_bytes = 0
    while True:
        try:
            event = connection.next_event()
        except h11.RemoteProtocolError as exc:
            status = HTTPStatus(exc.error_status_hint)
            raise Refused(status, "bad_request", "This is no HTTP request this server understands.") from None
        if isinstance(event, h11.Request):
            surplus, _ = connection.trailing_data
            if read_bytes - len(surplus) > MAX_HEAD_BYTES:
                # h11 bounds what is incomplete, and the end of this one came with the last read.
                status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
                raise Refused(status, "bad_request", "The request's headers are too long.")
            return RequestHead(
                event.method.decode("ascii"),
                event.target.decode("ascii", "replace"),
                tuple((name.decode("ascii"), value.decode("latin-1")) for name, value in event.headers),
                surplus,
                event.http_version.decode("ascii"),
            )
        data = await stream.receive_some(MAX_HEAD_BYTES)
        if not data and not read_bytes:
            return None
        read_bytes += len(data)
        connection.receive_data(bytes(data))


async def refuse(stream: trio.abc.Stream, refused: Refused, *, lingers: bool = True) -> None:
    """Answer and close. Unless it `lingers`, the answer may get lost. Never raises but `Cancelled`; the
    stream is closed in any case."""
    try:
        if lingers:
            await say_goodbye(stream, refused.response())
        else:
            with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await stream.send_all(refused.response())
    finally:
        await trio.aclose_forcefully(stream)
