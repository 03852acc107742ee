"""A whole server over memory streams, and the race that `docs/contributing.md` shows."""

from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from persona.client import RemoteError
from persona.testing import EPOCH, open_server


async def test_a_greeting_takes_no_time(autojump_clock: MockClock) -> None:
    async with open_server() as server, server.connect() as client:
        switched = await client.switch("aria")
        assert switched.name == "Aria"
        answer = await client.chat("Hello")
        assert answer.response
        assert answer.time_to_first_token == pytest.approx(1.0)
        history = await client.history()
        assert [turn.content for turn in history.turns] == ["Hello", answer.response]


# docs: begin
async def test_a_cancel_in_the_instant_of_the_deadline(autojump_clock: MockClock) -> None:
    async with open_server(limits={"chat_timeout_s": 1.25}) as server, server.connect() as client:
        await client.switch("aria")
        ended = []

        async def listen() -> None:
            said = ""
            try:
                async for delta in client.chat_stream("Tell me a long story"):
                    said += delta
            except RemoteError as error:
                ended.append(error.reason)
            assert said

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            # The first token comes at 1.0, then ten a second; the deadline is at 1.25.
            await trio.sleep(1.25)
            (session,) = server.server.sessions
            session.cancel_all("client")

        # Either may win. Never both: the stream ended once, and what was said is on disk.
        (turn, answer) = (await client.history()).turns
        assert turn.content == "Tell me a long story"
        assert answer.finish_reason in ("cancelled", "timeout")
        assert ended == (["deadline_exceeded"] if answer.finish_reason == "timeout" else [])


# docs: end


async def test_wall_clock_times_follow_the_mock_clock(autojump_clock: MockClock) -> None:
    async with open_server() as server, server.connect() as client:
        await trio.sleep(3600)
        assert (await client.status()).uptime_seconds == 3600
    assert EPOCH == 1_767_225_600


async def test_settings_are_given_by_section(autojump_clock: MockClock) -> None:
    async with open_server(limits={"max_connections": 1}) as server, server.connect() as client:
        await client.ping()
        assert server.server.settings.limits.max_connections == 1
        assert server.server.settings.limits.max_in_flight == 16


async def test_drain_finishes_what_runs(autojump_clock: MockClock) -> None:
    async with open_server() as server, server.connect() as client:
        await client.switch("aria")
        answers = []

        async def talk() -> None:
            answers.append(await client.chat("Hello"))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(talk)
            await trio.sleep(0.5)
            await server.drain()
        assert answers[0].finish_reason == "stop"


def test_the_documentation_shows_the_race_as_it_is() -> None:
    source = Path(__file__).read_text()
    shown = source.split("# docs: begin\n")[1].split("# docs: end\n")[0].strip()
    page = (Path(__file__).parent.parent / "docs" / "contributing.md").read_text()
    assert shown in page
