"""Typed calls and their answers."""

import pytest
import trio
from trio.testing import MockClock

from persona.client import UnexpectedAnswer, open_client
from persona.testing import open_server
from tests.client.fake_server import FakeConnection, FakeServer, connected, listening
from tests.client.talk import Request, never, talks_until_cancelled


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


async def test_branches_are_typed_calls(autojump_clock: MockClock) -> None:
    async with open_server() as server, server.connect() as client:
        where = (await client.switch("aria")).conversation_id
        first = await client.chat("1")
        assert first.parent_id is not None
        again = await client.regenerate(first.turn_id, client_msg_id="r")
        assert again == await client.regenerate(first.turn_id, client_msg_id="r", conversation_id=where)
        edited = await client.edit(first.parent_id, "1!", token_budget=9)
        async with client.regenerate_stream() as stream:
            said = "".join([delta async for delta in stream])
        assert stream.result is not None
        assert stream.result.text == said
        assert stream.result.parent_id == edited.parent_id
        async with client.edit_stream(first.parent_id, "1?") as stream:
            said = "".join([delta async for delta in stream])
        assert stream.result is not None
        assert [turn.content for turn in (await client.history()).turns] == ["1?", said]
        selected = await client.select_branch(first.parent_id)
        assert selected.current_turn_id == again.turn_id
        history = await client.history()
        assert history.current_turn_id == again.turn_id
        (line, answer) = history.turns
        assert (line.sibling_index, line.sibling_count, line.previous_sibling_id) == (1, 3, None)
        assert (answer.parent_id, answer.previous_sibling_id) == (line.id, first.turn_id)
        deleted = await client.delete_conversation(where, turn_id=again.turn_id)
        assert (deleted.turns_deleted, deleted.current_turn_id) == (1, first.turn_id)
        assert (await client.delete_conversation(where)).turns_deleted == 7
        assert (await client.history()).conversation_id is None


async def test_leaving_a_regeneration_stops_it(server: FakeServer, autojump_clock: MockClock) -> None:
    server.on("conversation.regenerate_stream", talks_until_cancelled("Once"))
    server.on("conversation.regenerate", never)
    async with connected(server) as client:
        async with client.regenerate_stream(7) as stream:
            assert await anext(stream) == "Once"
        (stop,) = await server.wait_for("stream.cancel")
        with trio.move_on_after(1):
            await client.regenerate(7)
        stops = await server.wait_for("stream.cancel", 2)
    asked = [server.of(f"conversation.regenerate{suffix}")[0]["id"] for suffix in ("_stream", "")]
    assert [message["params"]["request_id"] for message in (stop, stops[1])] == asked
