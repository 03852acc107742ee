"""One connection, step by step, against servers that welcome it and servers that do not."""

import errno
import select
import socket
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from loadgen import link as link_module
from loadgen.link import Link, Lost, Refused, Target
from loadgen.wire import WrongFrame, request_frame
from tests.loadgen.answering import Answering, answering, echo, message, result, text_frame

ASK = request_frame(1, "system.ping", {"payload": "p"})


def wait(link: Link, *, until: int = 1) -> list[Any]:
    """Handle what comes until there are so many messages."""
    messages: list[Any] = []
    while len(messages) < until:
        messages += step(link)
    return messages


def step(link: Link) -> list[Any]:
    poll = select.poll()
    poll.register(link.fd, select.POLLIN | (select.POLLOUT if link.wants_write else 0))
    ((_, mask),) = poll.poll(10_000) or [(0, 0)]
    assert mask, "nothing came in 10 s"
    return link.handle(mask)


@contextmanager
def opened(server: Answering, **options: Any) -> Iterator[Link]:
    link = Link(server.target, **options)
    try:
        while link.state != "open":
            step(link)
        yield link
    finally:
        link.close()


def test_it_opens_asks_and_is_answered() -> None:
    with answering() as server, opened(server) as link:
        assert link.started_at <= link.connected_at <= link.opened_at
        link.send(ASK)
        assert wait(link) == [{"jsonrpc": "2.0", "id": 1, "result": {"pong": True, "payload": "p"}}]


def test_a_token_goes_with_the_opening_request() -> None:
    with answering() as server, opened(server, token="secret"):
        assert "Authorization: Bearer secret" in server.heads[0]


@pytest.mark.parametrize(
    ("head", "kind", "retry_after_s"),
    [
        (b"HTTP/1.1 503 Full\r\nRetry-After: 7\r\n\r\n", "http_503", 7.0),
        (b"HTTP/1.1 401 No\r\n\r\n", "http_401", None),
        (b"HTTP/1.1 503 Full\r\nRetry-After: \xb2\r\n\r\n", "http_503", None),
        (b"HTTP/1.1 101 Yes\r\nSec-WebSocket-Accept: another's\r\n\r\n", "malformed_handshake", None),
        (b"SSH-2.0-whatever\r\n\r\n", "malformed_handshake", None),
        (b"HTTP/1.1 101 Yes\r\n" + b"x" * 100_000, "malformed_handshake", None),
    ],
)
def test_a_server_that_does_not_welcome_it(head: bytes, kind: str, retry_after_s: float | None) -> None:
    with answering(head=head) as server, pytest.raises(Refused) as caught, opened(server):
        pass
    assert (caught.value.kind, caught.value.retry_after_s) == (kind, retry_after_s)


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(Refused, match="connection_refused"):
        link = Link(Target.of(f"ws://127.0.0.1:{port}/mcp"))
        try:
            step(link)
        finally:
            link.close()


def test_no_socket_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: object) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    target = Target.of("ws://127.0.0.1:1/")
    monkeypatch.setattr(link_module.socket, "socket", none_left)
    with pytest.raises(Refused, match="connect_emfile"):
        Link(target)


@pytest.mark.parametrize(
    ("url", "asked"), [("", "/"), ("/mcp", "/mcp"), ("/mcp?x=1&y", "/mcp?x=1&y"), ("?x", "/?x")]
)
def test_what_is_asked_for_has_its_query(url: str, asked: str) -> None:
    assert Target.of(f"ws://127.0.0.1:1{url}").path == asked


@pytest.mark.parametrize("url", ["http://127.0.0.1/mcp", "127.0.0.1:8000", "wss://127.0.0.1/mcp", ""])
def test_what_is_no_url(url: str) -> None:
    with pytest.raises(ValueError, match="is no ws:// URL"):
        Target.of(url)


@pytest.mark.parametrize(
    "frame",
    [
        text_frame(b"no json"),
        b"\x82\x01x",
        b"\x80\x01x",
        b"\x00\x01x",
        b"\x01\x01[" + text_frame(b"[]"),
        b"\x01\x01[\x01\x01]",
        b"\x01\x01[\x80\x01x",
        struct.pack("!BBH", 0x89, 126, 300) + b"x" * 300,
        b"\x09\x02hi",
        b"\x81\x82\0\0\0\0[]",
        b"\xc1\x02[]",
    ],
    ids=[
        *("no json", "binary", "a last piece of nothing", "a piece of nothing", "a text within a text"),
        *("a text begun twice", "pieces of no json", "a ping of 300 bytes", "a ping in pieces", "masked"),
        "compressed",
    ],
)
def test_a_frame_that_no_right_server_sends(frame: bytes) -> None:
    with answering(lambda _: [frame]) as server, opened(server) as link, pytest.raises(WrongFrame):
        link.send(ASK)
        wait(link)


def test_a_ping_is_answered_and_a_frame_in_pieces_put_together() -> None:
    large = "y" * 100_000

    def answer(request: dict[str, Any]) -> list[bytes]:
        if request["id"] == 2:
            return [result(request, large)]
        return [b"\x89\x02hi", *echo(request)]

    with answering(answer) as server, opened(server) as link:
        link.send(ASK)
        wait(link)
        link.send(request_frame(2, "m", {}))
        assert wait(link)[0]["result"] == large
        # Its pong was read before the second request was.
        assert server.pongs == [b"hi"]


def test_fragments_are_put_together_with_a_ping_between_them() -> None:
    pieces = [b"\x01\x02[1", b"\x89\x02hi", b"\x00\x01,", b"\x80\x022]", text_frame(b"3")]
    with answering(lambda _: pieces) as server, opened(server) as link:
        link.send(ASK)
        assert wait(link, until=2) == [[1, 2], 3]


@pytest.mark.parametrize("endless", [b"\x81\x7f" + struct.pack("!Q", 2**40), b"\x01\x7d" + b"x" * 125])
def test_a_message_without_an_end_is_not_kept(endless: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(link_module, "MAX_MESSAGE_BYTES", 1000)
    more = b"\x00\x7d" + b"x" * 125
    with (
        answering(lambda _: [endless, *([more] * 10)]) as server,
        opened(server) as link,
        pytest.raises(WrongFrame, match="more than 1000 bytes"),
    ):
        link.send(ASK)
        wait(link)


def test_what_was_said_before_a_close_is_handed_out_first() -> None:
    close = struct.pack("!BBH", 0x88, 2, 1013)

    def answer(_request: dict[str, Any]) -> list[bytes]:
        return [message(method="event", params={}) + close]

    with answering(answer) as server, opened(server) as link:
        link.send(ASK)
        assert wait(link) == [{"jsonrpc": "2.0", "method": "event", "params": {}}]
        assert link.close_code == 1013


def test_a_close_alone_is_the_end() -> None:
    with (
        answering(lambda _: [struct.pack("!BBH", 0x88, 2, 1008)]) as server,
        opened(server) as link,
        pytest.raises(Lost, match="closed_1008"),
    ):
        link.send(ASK)
        wait(link)


def test_a_goodbye_is_answered() -> None:
    with answering() as server, opened(server) as link:
        link.say_goodbye()
        with pytest.raises(Lost, match="closed_1000"):
            wait(link)


def test_a_server_that_does_not_read_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        link = Link(Target.of(f"ws://127.0.0.1:{listener.getsockname()[1]}/"))
        client, _ = listener.accept()
        with client, pytest.raises(Lost, match="server_does_not_read"):
            link.state = "open"
            for _ in range(1000):
                link.send(b"x" * 65_536)
        link.close()
