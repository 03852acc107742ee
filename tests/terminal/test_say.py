"""`--say`, and servers that are not there."""

import io

import trio

from persona.console import Interrupts
from persona.terminal import chat
from tests.client.fake_server import FakeConnection, listening
from tests.terminal.desk import Desk, Request, once_upon, running


async def test_say_prints_the_answer_and_nothing_else(desk: Desk) -> None:
    assert await desk.chat(say="Hello", persona="ARIA", token="t") == 0
    assert desk.screen.getvalue() == "You said Hello.\n"
    assert desk.errors.getvalue() == ""
    assert desk.server.of("persona.switch")[0]["params"] == {"persona_id": "ARIA"}
    assert desk.server.connections[0].headers[b"authorization"] == b"Bearer t"


async def test_say_goes_on_with_a_conversation(desk: Desk) -> None:
    assert await desk.chat(say="Hello", conversation_id="c-7") == 0
    assert desk.server.of("persona.chat_stream")[0]["params"]["conversation_id"] == "c-7"
    assert desk.server.of("persona.switch") == []


async def test_arguments_that_are_no_text_are_said_as_far_as_they_are(desk: Desk) -> None:
    assert await desk.chat(say="Hel\udcfflo", conversation_id="c\udcff") == 0
    (request,) = desk.server.of("persona.chat_stream")
    assert (request["params"]["message"], request["params"]["conversation_id"]) == ("Hel?lo", "c?")


async def test_say_to_nobody_fails_with_one_line(desk: Desk) -> None:
    assert await desk.chat(say="Hello", persona="zed") == 1
    assert desk.screen.getvalue() == ""
    assert desk.errors.getvalue() == "! persona_not_found: there is no such persona\n"


async def test_say_with_an_error_in_mid_answer_fails(desk: Desk) -> None:
    async def fail(connection: FakeConnection, request: Request) -> None:
        await once_upon(connection, request)
        await connection.error(request, -32003, "llm_unavailable", "the model is gone", retry_after_s=5)

    desk.server.on("persona.chat_stream", fail)
    assert await desk.chat(say="Hello") == 1
    assert desk.screen.getvalue() == "Once upon\n"
    assert desk.errors.getvalue() == "! llm_unavailable: the model is gone (try again in 5 s)\n"


async def test_say_with_an_answer_that_was_cut_short_fails(desk: Desk) -> None:
    async def drain(connection: FakeConnection, request: Request) -> None:
        await once_upon(connection, request)
        await connection.event(request, "stream_cancelled", reason="x", partial_response="Once upon")

    desk.server.on("persona.chat_stream", drain)
    assert await desk.chat(say="Hello") == 1
    assert desk.screen.getvalue() == "Once upon\n"
    assert desk.errors.getvalue() == "! cancelled: the answer is not complete\n"


async def test_say_stops_on_ctrl_c(desk: Desk) -> None:
    desk.server.on("persona.chat_stream", once_upon)
    async with running(desk, say="Hello"):
        await desk.screen.wait_for("Once upon")
        desk.interrupts.interrupt()
    assert desk.status == 1
    assert desk.screen.getvalue() == "Once upon\n"
    await desk.server.wait_closed()
    # Leaving the connection would stop it, too; asking first is what the protocol is for.
    assert len(desk.server.of("stream.cancel")) == 1


async def test_say_manages_with_a_server_that_announces_no_limits(desk: Desk) -> None:
    async def unknown(connection: FakeConnection, request: Request) -> None:
        await connection.error(request, -32601, "method_not_found", "?")

    desk.server.on("session.info", unknown)
    assert await desk.chat(say="Hello") == 0


# No connection


async def test_a_server_that_is_down_is_one_line(desk: Desk) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    desk.url = f"ws://127.0.0.1:{port}/mcp"
    assert await desk.chat(say="Hello") == 1
    assert desk.errors.getvalue() == f"cannot connect to ws://127.0.0.1:{port}: connection refused\n"
    assert await desk.chat() == 1
    assert desk.screen.getvalue() == ""


async def test_a_refusal_is_one_line() -> None:
    async def refuse(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(
                b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 14\r\n\r\nwho\nare\x1b[2Jyou"
            )

    errors = io.StringIO()
    with trio.fail_after(5):
        async with listening(refuse) as url:
            status = await chat(
                url, "aria", "Hi", stdin=io.StringIO(), stdout=io.StringIO(), stderr=errors, token="wrong"
            )
    assert status == 1
    assert errors.getvalue() == f"cannot connect to {url[:-4]}: HTTP 401: who are [2Jyou\n"


async def test_ctrl_c_while_connecting_gives_up() -> None:
    connecting = trio.Event()

    async def say_nothing(stream: trio.SocketStream) -> None:
        async with stream:
            connecting.set()
            await trio.sleep_forever()

    interrupts = Interrupts()
    status = None

    async def run() -> None:
        nonlocal status
        status = await chat(
            url,
            "aria",
            stdin=io.StringIO(),
            stdout=io.StringIO(),
            stderr=io.StringIO(),
            interrupts=interrupts,
        )

    with trio.fail_after(5):
        async with listening(say_nothing) as url, trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await connecting.wait()
            interrupts.interrupt()
    assert status == 1


async def test_a_connection_lost_at_the_prompt_is_noticed(desk: Desk) -> None:
    async with running(desk):
        await desk.screen.wait_for("you talk to Aria")
        await desk.server.connections[0].websocket.aclose(1012, "restart")
    assert desk.status == 1
    assert desk.errors.getvalue() == "the server closed the connection (1012: restart)\n"


async def test_a_server_killed_in_mid_answer_is_one_line(desk: Desk) -> None:
    async def die(connection: FakeConnection, request: Request) -> None:
        await once_upon(connection, request)
        await trio.aclose_forcefully(connection.stream)

    desk.server.on("persona.chat_stream", die)
    assert await desk.chat(typed="Hello\nHello again\n") == 1
    assert desk.screen.getvalue().endswith("Aria: Once upon\n")
    assert desk.errors.getvalue() == "the connection to the server broke off\n"
