"""Frames: calls matched by id, notifications, and a connection that is lost."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, memory_stream_pump, wait_all_tasks_blocked

from persona.client import (
    ConnectionLost,
    InvalidMessage,
    MessageTooLarge,
    RemoteError,
    open_client,
    wrap_client,
)
from persona.client.link import MAX_EVENTS, MAX_OUTGOING, PING_INTERVAL_S, PING_TIMEOUT_S
from tests.client.fake_server import FakeConnection, FakeServer, connected, listening
from tests.client.talk import HOUR_S, Request, hear, never


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


@pytest.mark.parametrize("payload", [2**70, {1: 2}, b"x"])
async def test_what_json_cannot_carry_is_not_sent(
    payload: Any, server: FakeServer, autojump_clock: MockClock
) -> None:
    async with connected(server) as client:
        with pytest.raises(InvalidMessage, match="cannot be sent"):
            await client.ping(payload)
        assert server.of("system.ping") == []
        # Half a surrogate pair is lost, and not the message.
        await client.ping("a\ud800b")
        assert server.of("system.ping")[0]["params"]["payload"] == "a\ufffdb"


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
