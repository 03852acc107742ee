"""Opening a connection, and leaving it."""

import ssl
from collections.abc import Awaitable, Callable
from typing import NoReturn

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair

from persona.client import ConnectFailed, ConnectionLost, open_client, wrap_client
from persona.client.connect import CLOSE_TIMEOUT_S, CONNECT_TIMEOUT_S
from persona.client.link import Link
from tests.client.fake_server import FakeServer, connected, listening
from tests.client.talk import shake_hands


async def test_offers_the_sub_protocol_and_sends_the_token(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    async with connected(server, host="example.org:8000", token="s3cret") as client:
        await client.ping()
    connection = server.connections[0]
    assert connection.proposed_subprotocols == ("mcp",)
    assert connection.headers[b"authorization"] == b"Bearer s3cret"
    assert connection.path == "/mcp"


async def test_without_a_token_no_credentials_are_sent(server: FakeServer, autojump_clock: MockClock) -> None:
    async with connected(server):
        pass
    assert b"authorization" not in server.connections[0].headers


@pytest.mark.parametrize(
    ("token", "says"),
    [
        ("s3cret\r\nX: y", "holds"),
        ("s3cret ", "holds"),
        (" s3cret", "holds"),
        ("s3crét", "holds"),
        ("", "empty"),
    ],
)
async def test_a_token_that_is_no_header_is_refused_without_being_shown(
    token: str, says: str, server: FakeServer
) -> None:
    with trio.fail_after(5):
        async with listening(server.serve_stream) as url:
            with pytest.raises(ConnectFailed, match=f"the token .*{says}") as caught:
                async with open_client(url, token=token):
                    pytest.fail("was let in")
    assert "s3cr" not in str(caught.value)


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost/mcp",
        "localhost:8000",
        "ws:///mcp",
        "ws://x:99999/",
        "ws://[/",
        "ws://x/ö",
        "ws://x/a b",
    ],
)
async def test_what_is_no_websocket_url_is_refused(url: str) -> None:
    with pytest.raises(ConnectFailed, match="cannot connect to"):
        async with open_client(url):
            pass


async def test_a_server_that_is_down_gives_one_line() -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    with trio.fail_after(5), pytest.raises(ConnectFailed) as caught:
        async with open_client(f"ws://127.0.0.1:{port}/mcp"):
            pass
    assert str(caught.value) == f"cannot connect to ws://127.0.0.1:{port}: connection refused"


def http(response: bytes) -> Callable[[trio.SocketStream], Awaitable[None]]:
    """A server that answers anything with `response`, and hangs up."""

    async def serve(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(response)

    return serve


@pytest.mark.parametrize(
    ("response", "message", "status", "retry_after_s"),
    [
        (
            b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 12\r\n\r\nwrong \x1b[1mto\n",
            "HTTP 401: wrong [1mto",
            401,
            None,
        ),
        (
            b"HTTP/1.1 503 Busy\r\nRetry-After: 7\r\nContent-Length: 4\r\n\r\nfull",
            "HTTP 503: full",
            503,
            7.0,
        ),
        (b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", "HTTP 404", 404, None),
        (b"", "the server hung up during the handshake", None, None),
    ],
)
async def test_a_refused_handshake_says_why(
    response: bytes, message: str, status: int | None, retry_after_s: float | None
) -> None:
    with trio.fail_after(5):
        async with listening(http(response)) as url:
            with pytest.raises(ConnectFailed) as caught:
                async with open_client(url):
                    pytest.fail("was let in")
    assert str(caught.value).endswith(f": {message}")
    assert (caught.value.status, caught.value.retry_after_s) == (status, retry_after_s)


async def test_a_server_of_another_protocol_is_refused_at_once() -> None:
    with trio.fail_after(5):
        async with listening(http(b"SSH-2.0-OpenSSH_9.6\r\n")) as url:
            with pytest.raises(ConnectFailed, match=r"^cannot connect to .*: .+$"):
                async with open_client(url):
                    pytest.fail("was let in")


async def test_tls_to_a_server_without_it_is_refused() -> None:
    with trio.fail_after(5):
        async with listening(http(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as url:
            with pytest.raises(ConnectFailed, match="cannot connect to wss://") as caught:
                async with open_client(url.replace("ws://", "wss://")):
                    pytest.fail("was let in")
    assert "\n" not in str(caught.value)
    assert isinstance(caught.value.__cause__, trio.BrokenResourceError | ssl.SSLError)


async def test_a_silent_server_is_given_up_after_the_timeout(autojump_clock: MockClock) -> None:
    started = trio.current_time()
    with pytest.RaisesGroup(pytest.RaisesExc(ConnectFailed, match="no answer within 10 s")):
        async with connected(FakeServer(accepts=False)):
            pytest.fail("was let in")
    assert trio.current_time() - started == CONNECT_TIMEOUT_S


async def test_leaving_says_goodbye(server: FakeServer, autojump_clock: MockClock) -> None:
    async with connected(server) as client:
        await client.ping()
    assert server.closed == [(1000, None)]
    assert trio.current_time() < CLOSE_TIMEOUT_S


async def test_what_was_sent_just_before_leaving_arrives(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    async with connected(server) as client:
        for number in range(20):
            await client.notify("note", {"number": number})
    assert [message["params"]["number"] for message in server.of("note")] == list(range(20))


async def test_an_exception_of_the_body_comes_out_as_it_is(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    client_stream, server_stream = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, server_stream)
        problem = LookupError("mine")
        with pytest.raises(LookupError) as caught:
            async with wrap_client(client_stream):
                raise problem
        assert caught.value is problem
        await server.wait_closed()
    assert server.closed == [(1000, None)]


async def test_a_group_of_the_body_comes_out_as_it_is(server: FakeServer, autojump_clock: MockClock) -> None:
    client_stream, server_stream = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, server_stream)
        problem = ExceptionGroup("mine", [LookupError()])
        with pytest.RaisesGroup(LookupError) as caught:
            async with wrap_client(client_stream):
                raise problem
        assert caught.value is problem


async def test_cancelling_the_body_passes_through(server: FakeServer, autojump_clock: MockClock) -> None:
    client_stream, server_stream = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, server_stream)
        with trio.move_on_after(1) as scope:
            async with wrap_client(client_stream) as client:
                await client.ping()
                await trio.sleep_forever()
        assert scope.cancelled_caught
        assert trio.current_time() == 1
        await server.wait_closed()


async def test_a_cancellation_of_the_body_is_in_no_group(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    client_stream, server_stream = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, server_stream)
        with trio.move_on_after(1) as scope, pytest.raises(trio.Cancelled):
            async with wrap_client(client_stream):
                await trio.sleep_forever()
        # A group would have passed by `raises`, and come to the scope.
        assert (scope.cancel_called, scope.cancelled_caught) == (True, False)


async def test_a_bug_of_ours_is_not_lost_in_the_cancellation_that_it_brings(
    server: FakeServer, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def buggy(_link: Link) -> None:
        await trio.sleep(1)
        raise ZeroDivisionError

    monkeypatch.setattr(Link, "keep_alive", buggy)
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with connected(server):
            await trio.sleep_forever()


async def test_an_exception_under_cancellation_is_not_hidden(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    client_stream, server_stream = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, server_stream)
        with trio.CancelScope() as scope, pytest.raises(LookupError, match="mine"):
            async with wrap_client(client_stream):
                _cancel_and_raise(scope)


def _cancel_and_raise(scope: trio.CancelScope) -> NoReturn:
    scope.cancel()
    raise LookupError("mine")


@pytest.mark.parametrize("is_cancelled", [False, True])
async def test_a_peer_that_does_not_say_goodbye_is_left_all_the_same(
    is_cancelled: bool, autojump_clock: MockClock
) -> None:
    client_stream, server_stream = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(shake_hands, server_stream)
        with trio.CancelScope() as scope:
            async with wrap_client(client_stream):
                started = trio.current_time()
                if is_cancelled:
                    scope.cancel()
                    await trio.sleep_forever()
        expected = 0.0 if is_cancelled else CLOSE_TIMEOUT_S
        assert trio.current_time() - started == expected


async def test_a_ping_that_arrives_while_closing_does_no_harm(autojump_clock: MockClock) -> None:
    client_stream, server_stream = memory_stream_pair()

    async def ping_instead_of_goodbye() -> None:
        await shake_hands(server_stream)
        await server_stream.receive_some()  # the close frame
        await server_stream.send_all(b"\x89\x00")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ping_instead_of_goodbye)
        async with wrap_client(client_stream):
            pass
    # trio-websocket's reader dies of it (its issue 184): nothing comes out, and nobody waits for it.
    assert trio.current_time() < CLOSE_TIMEOUT_S


async def test_the_client_of_a_block_that_was_left_says_so(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    async with connected(server) as client:
        pass
    with pytest.raises(ConnectionLost, match="the client was closed"):
        await client.ping()


async def test_a_conversation_over_a_real_socket(server: FakeServer) -> None:
    with trio.fail_after(5):
        async with listening(server.serve_stream) as url, open_client(url, token="t") as client:
            await client.switch("aria")
            async with client.chat_stream("Grüße 🎵") as stream:
                text = "".join([delta async for delta in stream])
            assert text == "You said Grüße 🎵."
            with trio.move_on_after(60) as scope:
                await client.ping()
            assert not scope.cancelled_caught
        await server.wait_closed()
    assert server.closed == [(1000, None)]
