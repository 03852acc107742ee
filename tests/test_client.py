import base64
import hashlib
import ssl
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, memory_stream_pump, wait_all_tasks_blocked

from persona.client import (
    ChatStream,
    Client,
    ConnectFailed,
    ConnectionLost,
    MessageTooLarge,
    RemoteError,
    StreamResult,
    UnexpectedAnswer,
    open_client,
    wrap_client,
)
from persona.client.connect import CLOSE_TIMEOUT_S, CONNECT_TIMEOUT_S
from persona.client.link import MAX_EVENTS, MAX_OUTGOING, PING_INTERVAL_S, PING_TIMEOUT_S
from persona.client.stream import MAX_BUFFERED_DELTAS
from tests.fake_server import FakeConnection, FakeServer, Handler, connected, listening

Request = dict[str, Any]
HOUR_S = 3600


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


async def never(connection: FakeConnection, request: Request) -> None:
    """Takes the request and says nothing."""


def talks_until_cancelled(*chunks: str) -> Handler:
    async def handler(connection: FakeConnection, request: Request) -> None:
        await connection.event(request, "stream_start", persona_id="p-aria")
        for chunk in chunks:
            await connection.event(request, "stream_chunk", chunk=chunk)

    return handler


async def hear(stream: ChatStream, into: list[str]) -> None:
    """Iterate to the end, or to the error; what came until then is kept."""
    async for delta in stream:
        into.append(delta)  # noqa: PERF401 - an exception must not take the beginning along


# Opening


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


async def test_a_token_that_is_no_header_is_refused_without_being_shown(server: FakeServer) -> None:
    with trio.fail_after(5):
        async with listening(server.serve_stream) as url:
            with pytest.raises(ConnectFailed, match="the token holds") as caught:
                async with open_client(url, token="s3cret\r\nX: y"):
                    pytest.fail("was let in")
    assert "s3cret" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["http://localhost/mcp", "localhost:8000", "ws:///mcp", "ws://x:99999/", "ws://[/"]
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


# Closing


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


async def shake_hands(stream: trio.abc.Stream) -> None:
    """The server's half of the handshake, by hand."""
    request = await stream.receive_some()
    (key,) = [line[19:] for line in request.split(b"\r\n") if line.startswith(b"Sec-WebSocket-Key: ")]
    digest = hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()
    await stream.send_all(
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + base64.b64encode(digest) + b"\r\n\r\n"
    )


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


# Calling


async def test_answers_are_matched_by_id_in_any_order(server: FakeServer, autojump_clock: MockClock) -> None:
    async def later_for_smaller(connection: FakeConnection, request: Request) -> None:
        payload = request["params"]["payload"]
        await trio.sleep(100 - payload)
        await connection.result(request, {"pong": True, "payload": payload, "time": "now"})

    server.on("system.ping", later_for_smaller)
    got: dict[int, int] = {}
    async with connected(server) as client, trio.open_nursery() as nursery:

        async def ask(number: int) -> None:
            got[number] = (await client.ping(number)).payload

        for number in range(50):
            nursery.start_soon(ask, number)
    assert got == {number: number for number in range(50)}
    assert list(got) == list(range(49, -1, -1))
    ids = [request["id"] for request in server.of("system.ping")]
    assert sorted(ids) == list(range(1, 51))


async def test_an_error_reply_is_raised_with_all_that_came(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    async def refuse(connection: FakeConnection, request: Request) -> None:
        await connection.error(
            request, -32011, "overloaded", "the queue\nis full", retryable=True, retry_after_s=3, depth=512
        )

    server.on("persona.list", refuse)
    async with connected(server) as client:
        with pytest.raises(RemoteError) as caught:
            await client.list_personas()
        error = caught.value
        assert (error.code, error.reason, error.retryable) == (-32011, "overloaded", True)
        assert (error.retry_after_s, error.field, error.data["depth"]) == (3.0, None, 512)
        assert str(error) == "overloaded: the queue is full"
        await client.ping()


async def test_an_error_reply_of_little_content_is_still_an_error(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    async def refuse(connection: FakeConnection, request: Request) -> None:
        await connection.send({"jsonrpc": "2.0", "id": request["id"], "error": None})

    server.on("persona.list", refuse)
    async with connected(server) as client:
        with pytest.raises(RemoteError, match="unknown: no message"):
            await client.call("persona.list")


async def test_typed_calls_ignore_fields_of_the_future(server: FakeServer, autojump_clock: MockClock) -> None:
    async with connected(server) as client:
        people = await client.list_personas()
        assert [person.name for person in people.personas] == ["Aria", "Kira"]
        assert people.personas[1].cooldown_remaining == 12.5
        assert (await client.switch("ARIA")).conversation_id == "c-1"
        assert (await client.history(limit=2)).turns[1].content == "Well met!"
        assert (await client.session_info()).server.llm == "ollama"
        assert (await client.clear_session()).cleared
    assert server.of("conversation.history")[0]["params"] == {"limit": 2}


async def test_an_answer_of_another_shape_is_named(server: FakeServer, autojump_clock: MockClock) -> None:
    async def nonsense(connection: FakeConnection, request: Request) -> None:
        await connection.result(request, {"personas": "many", "total_count": 2, "available_count": 1})

    server.on("persona.list", nonsense)
    async with connected(server) as client:
        with pytest.raises(UnexpectedAnswer, match=r"persona\.list .*personas"):
            await client.list_personas()


async def test_a_cancelled_call_is_forgotten_and_its_late_answer_dropped(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    async def slow(connection: FakeConnection, request: Request) -> None:
        await trio.sleep(10)
        await connection.result(request, "late")

    server.on("slow", slow)
    async with connected(server) as client:
        with trio.move_on_after(1) as scope:
            await client.call("slow")
        assert scope.cancelled_caught
        await trio.sleep(15)
        assert client._link.unmatched == 1
        assert (await client.ping("still here")).payload == "still here"
    assert server.of("stream.cancel") == []


async def test_a_cancelled_chat_is_cancelled_on_the_server(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    server.on("persona.chat", never)
    async with connected(server) as client:
        with trio.move_on_after(1):
            await client.chat("Hello", options={"seed": 1})
        (request,) = server.of("persona.chat")
        assert request["params"] == {"message": "Hello", "token_budget": 500, "options": {"seed": 1}}
        (cancel,) = await server.wait_for("stream.cancel")
    assert cancel["params"] == {"request_id": request["id"]}
    assert "id" not in cancel


async def test_a_message_the_server_would_not_take_is_not_sent(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    async with connected(server) as client:
        with pytest.raises(MessageTooLarge, match="the server takes at most 65536"):
            await client.call("system.ping", {"payload": "ü" * 33_000})
        await client.ping("ü" * 32_000)


async def test_the_limit_is_the_one_that_is_announced(server: FakeServer, autojump_clock: MockClock) -> None:
    async with connected(server) as client:
        await client.session_info()
        client._link.max_message_bytes = 50  # what an operator might set
        with pytest.raises(MessageTooLarge):
            await client.ping("x" * 50)


async def test_a_stalled_server_makes_callers_wait_and_cancels_never(autojump_clock: MockClock) -> None:
    client_stream, server_stream = memory_stream_pair()
    release = trio.Event()
    server = FakeServer()

    async def wait_for_release() -> None:
        await release.wait()
        memory_stream_pump(client_stream.send_stream, server_stream.receive_stream)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, server_stream)
        async with wrap_client(client_stream) as client:
            client_stream.send_stream.send_all_hook = wait_for_release
            sent = 0
            with trio.move_on_after(1):
                while True:
                    await client.notify("note", {})
                    sent += 1
            # One is in the writer's hands, the rest waits.
            assert sent == MAX_OUTGOING + 1
            with trio.move_on_after(1):
                await client.ping("cancelled before there was a place for it")
            assert client._link._waiting == {}
            client._link.ask_to_cancel(7)
            assert client._link.cancels_dropped == 1
            release.set()
            await client.ping()
    assert len(server.of("note")) == sent


# Losing the connection


async def test_all_pending_calls_fail_when_the_server_closes(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    server.on("hang", never)
    errors: list[ConnectionLost] = []
    async with connected(server) as client:

        async def hang() -> None:
            with pytest.raises(ConnectionLost) as caught:
                await client.call("hang")
            errors.append(caught.value)

        async def listen() -> None:
            assert [event async for event in client.events()] == []

        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(hang)
            nursery.start_soon(listen)
            nursery.start_soon(client.wait_closed)
            await server.wait_for("hang", 5)
            await server.connections[0].websocket.aclose(1012, "restart")
        assert {str(error) for error in errors} == {"the server closed the connection (1012: restart)"}
        assert {error.code for error in errors} == {1012}
        assert len({id(error) for error in errors}) == 5
        with pytest.raises(ConnectionLost, match="1012"):
            await client.ping()
        with pytest.raises(ConnectionLost, match="1012"):
            await client.notify("note")
        with pytest.raises(ConnectionLost, match="1012"):
            await anext(client.chat_stream("Hello"))


async def test_answers_sent_just_before_the_close_still_count(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    async def answer_and_close(connection: FakeConnection, request: Request) -> None:
        await connection.answer(request, *("x" * 40))
        await connection.websocket.aclose()

    server.on("persona.chat_stream", answer_and_close)
    async with connected(server) as client:
        stream = client.chat_stream("Hello")
        assert "".join([delta async for delta in stream]) == "x" * 40
        await client.wait_closed()


async def test_a_server_that_dies_in_mid_frame_ends_the_client(server: FakeServer) -> None:
    async def die(connection: FakeConnection, request: Request) -> None:
        await connection.event(request, "stream_start", persona_id="p-aria")
        await connection.event(request, "stream_chunk", chunk="Once upon")
        await connection.stream.send_all(b"\x81\x7e\x01")  # a text frame, cut off in its length
        await trio.aclose_forcefully(connection.stream)

    server.on("persona.chat_stream", die)
    got: list[str] = []
    with trio.fail_after(5):
        async with listening(server.serve_stream) as url, open_client(url) as client:
            with pytest.raises(ConnectionLost, match="broke off"):
                await hear(client.chat_stream("Hello"), got)
            await client.wait_closed()
    assert got == ["Once upon"]


async def test_a_server_that_falls_silent_is_noticed(server: FakeServer, autojump_clock: MockClock) -> None:
    async def swallow() -> None:
        await trio.sleep_forever()

    server.on("hang", never)
    client_stream, server_stream = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.serve_stream, server_stream)
        async with wrap_client(client_stream) as client:
            await trio.sleep(HOUR_S)  # pings are answered all the while
            await client.ping()
            client_stream.receive_stream.receive_some_hook = swallow
            client_stream.send_stream.send_all_hook = swallow
            started = trio.current_time()
            with pytest.raises(ConnectionLost, match="has not answered a ping for 20 s"):
                await client.call("hang")
            assert trio.current_time() - started <= PING_INTERVAL_S + PING_TIMEOUT_S
            await wait_all_tasks_blocked()
            with pytest.raises(trio.ClosedResourceError):
                await client_stream.send_all(b"x")
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("frame", ["{", "nonsense", ""])
async def test_what_is_not_json_ends_the_client(
    frame: str, server: FakeServer, autojump_clock: MockClock
) -> None:
    async def nonsense(connection: FakeConnection, request: Request) -> None:
        await connection.send(frame)

    server.on("hang", nonsense)
    async with connected(server) as client:
        with pytest.raises(ConnectionLost, match="not JSON"):
            await client.call("hang")


@pytest.mark.parametrize(
    "message",
    [
        7,
        [],
        {},
        {"jsonrpc": "2.0", "id": None, "error": {"code": -32700, "message": "?"}},
        {"jsonrpc": "2.0", "id": [1], "result": 1},
        {"jsonrpc": "2.0", "id": 12345, "result": 1},
        {"jsonrpc": "2.0", "id": "1", "result": 1},
        {"jsonrpc": "2.0", "id": 1, "method": "client.please", "params": {}},
    ],
)
async def test_json_that_fits_nothing_is_passed_over(
    message: Any, server: FakeServer, autojump_clock: MockClock
) -> None:
    async def nonsense(connection: FakeConnection, request: Request) -> None:
        await connection.send(message)
        await connection.result(request, "fine")

    server.on("odd", nonsense)
    async with connected(server) as client:
        assert await client.call("odd") == "fine"


async def test_the_client_of_a_block_that_was_left_says_so(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    async with connected(server) as client:
        pass
    with pytest.raises(ConnectionLost, match="the client was closed"):
        await client.ping()


# Streams


async def test_iterating_gives_the_deltas_and_then_the_result(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    async with connected(server) as client:
        stream = client.chat_stream("Hello", persona_id="aria", token_budget=50)
        assert [delta async for delta in stream] == ["You said ", "Hello", "."]
        assert stream.stream_id == "s-1"
        assert stream.result == StreamResult(
            text="You said Hello.",
            finish_reason="stop",
            turn_id=42,
            tokens_used=7,
            conversation_id="c-1",
            model="fake",
            persona_name="Aria",
        )
        assert [delta async for delta in stream] == []
    (request,) = server.of("persona.chat_stream")
    assert request["params"] == {"message": "Hello", "persona_id": "aria", "token_budget": 50}
    assert server.of("stream.cancel") == []


async def test_nothing_is_sent_until_the_stream_is_used(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    async with connected(server) as client:
        stream = client.chat_stream("Hello")
        await wait_all_tasks_blocked()
        assert server.received == []
        assert stream.result is None
        async with stream:
            await server.wait_for("persona.chat_stream")


async def test_a_stream_holds_up_nothing_else(server: FakeServer, autojump_clock: MockClock) -> None:
    server.on("persona.chat_stream", talks_until_cancelled("Once"))
    async with (
        connected(server) as client,
        client.chat_stream("Hello") as one,
        client.chat_stream("Hi") as two,
    ):
        assert await anext(one) == "Once"
        assert (await client.ping(5)).payload == 5
        assert await anext(two) == "Once"


@pytest.mark.parametrize("how", ["break", "raise", "cancel"])
async def test_leaving_the_block_early_cancels_on_the_server(
    how: str, server: FakeServer, autojump_clock: MockClock
) -> None:
    server.on("persona.chat_stream", talks_until_cancelled("Once ", "upon "))

    async def listen(client: Client, scope: trio.CancelScope) -> None:
        async with client.chat_stream("Hello") as stream:
            streams.append(stream)
            async for _ in stream:
                if how == "raise":
                    raise LookupError("mine")
                if how == "cancel":
                    scope.cancel()
                    await trio.sleep_forever()  # not in the iterator: the consumer's own wait
                break

    streams: list[Any] = []
    async with connected(server) as client:
        with trio.CancelScope() as scope:
            if how == "raise":
                with pytest.raises(LookupError, match="mine"):
                    await listen(client, scope)
            else:
                await listen(client, scope)
        (cancel,) = await server.wait_for("stream.cancel")
        assert cancel["params"] == {"request_id": server.of("persona.chat_stream")[0]["id"]}
        result = streams[0].result
        assert result.finish_reason == "cancelled"
        assert result.text.startswith("Once ")
        # Late events find nobody; the stream stays over.
        await server.connections[0].event(server.of("persona.chat_stream")[0], "stream_chunk", chunk="late")
        await client.ping()
        assert [delta async for delta in streams[0]] == []


async def test_cancelling_while_waiting_for_a_delta_cancels_on_the_server(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    server.on("persona.chat_stream", talks_until_cancelled("Once"))
    got: list[str] = []
    async with connected(server) as client:
        with trio.move_on_after(1) as scope:
            await hear(client.chat_stream("Hello"), got)  # no block around it
        assert scope.cancelled_caught
        await server.wait_for("stream.cancel")
    assert got == ["Once"]


async def test_a_stream_that_was_never_sent_is_not_cancelled(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    async with connected(server) as client:
        with trio.CancelScope() as scope:
            scope.cancel()
            async with client.chat_stream("Hello"):
                pytest.fail("was not cancelled")
        await client.ping()
    assert [message["method"] for message in server.received] == ["system.ping"]


async def test_a_stream_that_has_ended_is_not_cancelled(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    async with connected(server) as client:
        async with client.chat_stream("Hello") as stream:
            async for _ in stream:
                pass
            stream.cancel()
        await client.ping()
    assert server.of("stream.cancel") == []


async def test_cancel_lets_the_server_end_the_stream(server: FakeServer, autojump_clock: MockClock) -> None:
    started: list[Request] = []

    async def talk(connection: FakeConnection, request: Request) -> None:
        started.append(request)
        await talks_until_cancelled("Once ")(connection, request)

    async def stop(connection: FakeConnection, cancel: Request) -> None:
        await connection.event(started[0], "stream_chunk", chunk="upon")
        await connection.event(
            started[0], "stream_cancelled", reason="client", partial_response="Once upon", turn_id=9
        )

    server.on("persona.chat_stream", talk)
    server.on("stream.cancel", stop)
    got: list[str] = []
    async with connected(server) as client, client.chat_stream("Hello") as stream:
        async for delta in stream:
            got.append(delta)
            stream.cancel()
    assert got == ["Once ", "upon"]
    assert stream.result == StreamResult(text="Once upon", finish_reason="cancelled", turn_id=9)


async def test_an_error_in_mid_answer_is_raised_after_what_was_said(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    async def fail(connection: FakeConnection, request: Request) -> None:
        await connection.event(request, "stream_start", persona_id="p-aria")
        await connection.event(request, "stream_chunk", chunk="Once")
        await connection.error(
            request, -32003, "llm_unavailable", "the model is gone", event_type="stream_error"
        )

    server.on("persona.chat_stream", fail)
    got: list[str] = []
    async with connected(server) as client, client.chat_stream("Hello") as stream:
        with pytest.raises(RemoteError, match="llm_unavailable: the model is gone"):
            await hear(stream, got)
        assert stream.result is None
    assert got == ["Once"]
    assert server.of("stream.cancel") == []


async def test_the_place_in_the_queue_is_told(server: FakeServer, autojump_clock: MockClock) -> None:
    async def queue(connection: FakeConnection, request: Request) -> None:
        await connection.event(request, "stream_start", persona_id="p-aria")
        for position in (3, 2):
            await connection.event(request, "stream_queued", position=position)
            await trio.sleep(1)
        await connection.event(request, "stream_of_the_future", what=1)
        await connection.event(request, "stream_chunk", chunk="Hi")
        await connection.complete(request, "Hi")

    server.on("persona.chat_stream", queue)
    positions: list[tuple[int, int | None]] = []

    async def note(position: int) -> None:
        await trio.lowlevel.checkpoint()
        positions.append((position, stream.position))

    async with connected(server) as client:
        stream = client.chat_stream("Hello", on_queued=note)
        assert [delta async for delta in stream] == ["Hi"]
    assert positions == [(3, 3), (2, 2)]
    assert stream.position is None


@pytest.mark.parametrize(
    "answer", ["text", {"response": "whole"}, {"event_type": "stream_complete", "data": {}}]
)
async def test_an_answer_that_is_no_stream_is_named(
    answer: Any, server: FakeServer, autojump_clock: MockClock
) -> None:
    async def whole(connection: FakeConnection, request: Request) -> None:
        await connection.result(request, answer)

    server.on("persona.chat_stream", whole)
    async with connected(server) as client:
        with pytest.raises(UnexpectedAnswer, match=r"persona\.chat_stream"):
            await anext(client.chat_stream("Hello"))


async def test_a_slow_consumer_loses_nothing_and_keeps_little(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    chunks = [f"{number} " for number in range(1000)]

    async def talk(connection: FakeConnection, request: Request) -> None:
        await connection.answer(request, *chunks)

    server.on("persona.chat_stream", talk)
    async with connected(server) as client, client.chat_stream("Hello") as stream:
        first = await anext(stream)
        most = 0
        while stream.result is None:
            most = max(most, len(stream._deltas))
            await trio.lowlevel.checkpoint()
        rest = [delta async for delta in stream]
    assert most <= MAX_BUFFERED_DELTAS
    assert len(rest) <= MAX_BUFFERED_DELTAS
    assert first + "".join(rest) == "".join(chunks)


# Notifications


async def test_notifications_come_through_the_channel(server: FakeServer, autojump_clock: MockClock) -> None:
    async with connected(server) as client:
        await client.ping()
        event = {"topic": "system", "type": "hello", "data": 1, "seq": 1}
        await server.connections[0].send({"jsonrpc": "2.0", "method": "event", "params": event})
        got = await client.events().receive()
        assert (got.method, got.params) == ("event", event)


async def test_the_oldest_notifications_go_when_nobody_reads(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    async def burst(connection: FakeConnection, request: Request) -> None:
        for number in range(MAX_EVENTS + 10):
            await connection.send({"jsonrpc": "2.0", "method": "event", "params": number})
        await connection.result(request, None)

    server.on("burst", burst)
    async with connected(server) as client:
        await client.call("burst")
        assert client.events_dropped == 10
        assert (await client.events().receive()).params == 10


async def test_a_closed_event_channel_does_not_hurt_the_calls(
    server: FakeServer, autojump_clock: MockClock
) -> None:
    async with connected(server) as client:
        client.events().close()
        await client.ping()
        await server.connections[0].send({"jsonrpc": "2.0", "method": "event", "params": 1})
        await client.ping()
        assert client.events_dropped == 1


# The wire


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


async def test_a_long_history_fits(server: FakeServer) -> None:
    async def long(connection: FakeConnection, request: Request) -> None:
        await connection.result(request, "x" * 6_500_000)

    server.on("long", long)
    with trio.fail_after(20):
        async with listening(server.serve_stream) as url, open_client(url) as client:
            assert len(await client.call("long")) == 6_500_000
