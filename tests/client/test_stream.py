"""Streams of deltas."""

from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from persona.client import Client, RemoteError, StreamResult, UnexpectedAnswer
from persona.client.stream import MAX_BUFFERED_DELTAS
from tests.client.fake_server import FakeConnection, FakeServer, connected
from tests.client.talk import Request, hear, talks_until_cancelled


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
