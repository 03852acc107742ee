"""Typed calls and their answers."""

import pytest
import trio
from trio.testing import MockClock

from persona.client import UnexpectedAnswer, open_client
from tests.client.fake_server import FakeConnection, FakeServer, connected, listening
from tests.client.talk import Request


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


async def test_a_long_history_fits(server: FakeServer) -> None:
    async def long(connection: FakeConnection, request: Request) -> None:
        await connection.result(request, "x" * 6_500_000)

    server.on("long", long)
    with trio.fail_after(20):
        async with listening(server.serve_stream) as url, open_client(url) as client:
            assert len(await client.call("long")) == 6_500_000
