"""Reading the opening request, and refusing it."""

from http import HTTPStatus
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

import persona
from persona.transport.closing import LINGER_S
from persona.transport.handshake import MAX_HEAD_BYTES, Refused, read_head, refuse

PROTOCOL = Path(persona.__file__).parent.parent / "docs/protocol.md"
HEAD = (
    b"GET /mcp?x=1 HTTP/1.1\r\nHost: localhost\r\nConnection: keep-alive, Upgrade\r\n"
    b"Upgrade: websocket\r\nX-Two: a\r\nX-Two: b, c\r\n\r\n"
)


async def test_a_head_is_read_however_it_is_cut() -> None:
    for size in (1, 7, len(HEAD)):
        ours, theirs = memory_stream_pair()
        async with trio.open_nursery() as nursery:

            async def feed(size: int = size, stream: trio.abc.SendStream = ours) -> None:
                for start in range(0, len(HEAD), size):
                    await stream.send_all(HEAD[start : start + size])

            nursery.start_soon(feed)
            head = await read_head(theirs)
        assert head is not None
        assert (head.method, head.target, head.path) == ("GET", "/mcp?x=1", "/mcp")
        assert head.header("host") == "localhost"
        assert head.header("nothing") is None
        assert head.listed("x-two") == ["a", "b", "c"]
        assert head.is_websocket
        assert head.surplus == b""


async def test_http_1_0_knows_no_websocket() -> None:
    ours, theirs = memory_stream_pair()
    await ours.send_all(HEAD.replace(b"HTTP/1.1", b"HTTP/1.0"))
    head = await read_head(theirs)
    assert head is not None
    assert head.http_version == "1.0"
    assert not head.is_websocket


async def test_what_came_with_the_head_is_kept() -> None:
    ours, theirs = memory_stream_pair()
    await ours.send_all(HEAD + b"\x81\x85first frame")
    head = await read_head(theirs)
    assert head is not None
    assert head.surplus == b"\x81\x85first frame"


async def test_a_peer_that_says_nothing() -> None:
    ours, theirs = memory_stream_pair()
    await ours.aclose()
    assert await read_head(theirs) is None


@pytest.mark.parametrize(
    "sent",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03 this is TLS\r\n\r\n",
        b"GET /mcp\r\n\r\n",
        b"GET /mcp HTTP/1.1\r\n\r\n",  # HTTP/1.1 needs a Host
        b"GET /mcp HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET /mcp HTTP/1.1\r\nHost : a\r\n\r\n",
        b"A" * (MAX_HEAD_BYTES + 1),
        b"GET /mcp HTTP/1.1\r\nHost: a\r\nX: " + b"y" * MAX_HEAD_BYTES,
        # All there before it is known to be too long.
        b"GET /mcp HTTP/1.1\r\nHost: a\r\nX: " + b"y" * MAX_HEAD_BYTES + b"\r\n\r\n",
        HEAD[:40],
    ],
)
async def test_what_is_no_request_is_refused(sent: bytes) -> None:
    ours, theirs = memory_stream_pair()
    await ours.send_all(sent)
    await ours.send_eof()
    with pytest.raises(Refused) as caught:
        await read_head(theirs)
    assert 400 <= caught.value.status < 500


@pytest.mark.parametrize(
    ("line", "status"),
    [
        (b"no header", HTTPStatus.BAD_REQUEST),
        (b"X: " + b"y" * MAX_HEAD_BYTES, HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE),
        (b"Transfer-Encoding: gzip", HTTPStatus.NOT_IMPLEMENTED),
    ],
)
async def test_the_protocol_lists_what_a_head_is_refused_with(line: bytes, status: HTTPStatus) -> None:
    ours, theirs = memory_stream_pair()
    await ours.send_all(HEAD.replace(b"X-Two: a", line))
    with pytest.raises(Refused) as caught:
        await read_head(theirs)
    assert caught.value.status == status
    assert f"\n| {status.value} | " in PROTOCOL.read_text(encoding="utf-8")


@pytest.mark.parametrize(("spare_bytes", "is_taken"), [(0, True), (-1, False)])
async def test_the_bound_is_exact(spare_bytes: int, is_taken: bool) -> None:
    ours, theirs = memory_stream_pair()
    filling = b"X-Filling: " + b"y" * (MAX_HEAD_BYTES - len(HEAD) - len(b"X-Filling: \r\n") - spare_bytes)
    await ours.send_all(HEAD[:-2] + filling + b"\r\n\r\n" + b"\x81\x85first frame" * 1000)
    if is_taken:
        head = await read_head(theirs)
        assert head is not None
        assert len(head.header("x-filling") or "") > MAX_HEAD_BYTES - 500
    else:
        with pytest.raises(Refused) as caught:
            await read_head(theirs)
        assert caught.value.status == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE


async def test_a_refusal_is_a_whole_http_answer_and_closes(autojump_clock: MockClock) -> None:
    ours, theirs = memory_stream_pair()
    refusal = Refused(HTTPStatus.SERVICE_UNAVAILABLE, "full", "No room.", (("Retry-After", "5"),))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(refuse, theirs, refusal)
        answer = b""
        while chunk := await ours.receive_some():
            answer += chunk
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
    assert b"Retry-After: 5" in head
    assert b"Connection: close" in head
    assert b"Content-Length: %d" % len(body) in head
    assert body == b"No room.\n"


async def test_a_refused_peer_that_goes_on_sending_is_not_listened_to_for_long(
    autojump_clock: MockClock,
) -> None:
    ours, theirs = memory_stream_pair()

    async def babble() -> None:
        with pytest.raises(trio.BrokenResourceError):
            while True:
                await ours.send_all(b"x")
                await trio.sleep(0.1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(babble)
        await refuse(theirs, Refused(HTTPStatus.NOT_FOUND, "path", "No."))
        assert trio.current_time() == pytest.approx(LINGER_S)


async def test_a_refusal_that_does_not_linger_is_over_at_once(autojump_clock: MockClock) -> None:
    ours, theirs = memory_stream_pair()
    await refuse(theirs, Refused(HTTPStatus.NOT_FOUND, "path", "No."), lingers=False)
    assert trio.current_time() == 0
    assert (await ours.receive_some())[:12] == b"HTTP/1.1 404"
    assert await ours.receive_some() == b""


@pytest.mark.parametrize("lingers", [True, False])
async def test_refusing_a_peer_that_has_gone_is_no_error(lingers: bool) -> None:
    ours, theirs = memory_stream_pair()
    await ours.aclose()
    await refuse(theirs, Refused(HTTPStatus.NOT_FOUND, "path", "No."), lingers=lingers)
