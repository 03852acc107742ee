"""The server as a process: killed at any moment it keeps what it acknowledged; told to stop it stops well."""

import contextlib
import random
import re
import shutil
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock
from trio_websocket import wrap_client_stream

from persona.client import Client, ConnectionLost, open_client
from persona.testing import open_server
from tests.e2e.exchanges import begin
from tests.e2e.process import QUICK, STREAMING, ServerProcess, server_process
from tests.serving import Wire, dial


def check_file(folder: Path) -> None:
    """What the killed server left is a whole database; looked at in a copy, as recovery is its own job."""
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for file in folder.glob("p.db*"):
        shutil.copy(file, copy / file.name)
    with contextlib.closing(sqlite3.connect(copy / "p.db")) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert conn.execute("PRAGMA foreign_key_check").fetchall() == []


@attrs.frozen
class Acknowledged:
    client_msg_id: str
    line: str
    answer: str
    turn_id: int | None


@attrs.define
class Talker:
    """Somebody who keeps their own record of the conversation, whatever happens to the server."""

    name: str
    persona: str
    conversation_id: str = ""
    acknowledged: list[Acknowledged] = attrs.field(factory=list)
    pending: tuple[str, str] | None = None
    """`client_msg_id` and line of a turn whose answer never came."""
    _count: int = 0

    async def join(self, client: Client) -> None:
        if not self.conversation_id:
            self.conversation_id = (await client.switch(self.persona)).conversation_id

    async def say(self, client: Client) -> None:
        """One turn, by chat and by stream in turns; recorded once it is acknowledged."""
        if self.pending is None:
            self._count += 1
            self.pending = (
                f"{self.name}-{self._count}",
                f"Line {self._count} of {self.name}. Hello!",
            )
        client_msg_id, line = self.pending
        if self._count % 2:
            answer = await self._send(client, client_msg_id, line)
        else:
            answer = await self._stream(client, client_msg_id, line)
        self.acknowledged.append(answer)
        self.pending = None

    async def _send(self, client: Client, client_msg_id: str, line: str) -> Acknowledged:
        answer = await client.chat(line, conversation_id=self.conversation_id, client_msg_id=client_msg_id)
        return Acknowledged(client_msg_id, line, answer.response, answer.turn_id)

    async def _stream(self, client: Client, client_msg_id: str, line: str) -> Acknowledged:
        stream = client.chat_stream(line, conversation_id=self.conversation_id, client_msg_id=client_msg_id)
        async with stream:
            said = "".join([delta async for delta in stream])
        assert stream.result is not None
        assert stream.result.text == said
        return Acknowledged(client_msg_id, line, said, stream.result.turn_id)

    async def check(self, client: Client) -> None:
        """After a restart: all that was acknowledged is there, once, and nothing but what was said."""
        if self.pending is not None:
            # Saved or not when the server died: sent again, it is there once in either case.
            await self.say(client)
        turns = await self._history(client)
        expected = [text for turn in self.acknowledged for text in (turn.line, turn.answer)]
        assert [turn.content for turn in turns] == expected
        answers = [turn.id for turn in turns if turn.role == "assistant"]
        assert answers == [turn.turn_id for turn in self.acknowledged]
        for turn in self.acknowledged[-3:]:
            assert await self._send(client, turn.client_msg_id, turn.line) == turn
            assert await self._stream(client, turn.client_msg_id, turn.line) == turn
        assert len(await self._history(client)) == len(turns)

    async def _history(self, client: Client) -> list[Any]:
        turns: list[Any] = []
        before = None
        while True:
            page = await client.history(conversation_id=self.conversation_id, limit=200, before=before)
            turns = [*page.turns, *turns]
            if not page.has_more:
                return turns
            before = page.next_before


async def talk(talker: Talker, url: str, turns: int | None) -> None:
    """Check what is there, then say so many turns, or go on until the server is gone."""
    try:
        async with open_client(url) as client:
            await talker.join(client)
            await talker.check(client)
            while turns is None or turns > 0:
                await talker.say(client)
                turns = None if turns is None else turns - 1
    except ConnectionLost:
        assert turns is None


async def kill_between_turns(folder: Path, talkers: list[Talker]) -> None:
    async with server_process(folder, **QUICK) as server:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for talker in talkers:
                    nursery.start_soon(talk, talker, server.url, 3)
        server.process.kill()
        assert await server.ended() == -signal.SIGKILL
    check_file(folder)


async def kill_in_the_middle(folder: Path, talkers: list[Talker], after_s: float, variables: Any) -> None:
    async with server_process(folder, **variables) as server:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for talker in talkers:
                    nursery.start_soon(talk, talker, server.url, None)
                await trio.sleep(after_s)
                server.process.kill()
        assert await server.ended() == -signal.SIGKILL
    check_file(folder)


def four_talkers() -> list[Talker]:
    return [Talker(name, persona) for name, persona in zip("abcd", ("aria", "kira") * 2, strict=True)]


async def test_kill_9_between_turns_loses_nothing(tmp_path: Path) -> None:
    talkers = four_talkers()
    await kill_between_turns(tmp_path, talkers)
    assert all(len(talker.acknowledged) == 3 for talker in talkers)
    async with server_process(tmp_path, **QUICK) as server:
        for talker in talkers:
            await talk(talker, server.url, 0)


@pytest.mark.slow
async def test_kill_9_at_any_moment_loses_nothing_acknowledged(tmp_path: Path) -> None:
    dice = random.Random(9)
    talkers = four_talkers()
    for _ in range(3):
        # Flat out, so that it dies while it writes; then slowly, so that it dies in mid-answer.
        await kill_in_the_middle(tmp_path, talkers, 0.3 + dice.random() * 0.3, QUICK)
        await kill_in_the_middle(tmp_path, talkers, 0.3 + dice.random() * 0.5, STREAMING)
        await kill_between_turns(tmp_path, talkers)
    async with server_process(tmp_path, **QUICK) as server:
        with trio.fail_after(60):
            for talker in talkers:
                await talk(talker, server.url, 1)
    assert sum(len(talker.acknowledged) for talker in talkers) > 60


# Stopping.


def exactly_the_one_line(server: ServerProcess) -> bool:
    return re.fullmatch(r"listening on ws://127\.0\.0\.1:[1-9]\d*/mcp\n", server.stdout) is not None


both_signals = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
# The server makes no difference between the two; each process takes most of a second to start.
one_signal_and_slowly_the_other = pytest.mark.parametrize(
    "number", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)]
)


@both_signals
async def test_a_signal_while_idle(number: signal.Signals, tmp_path: Path) -> None:
    async with server_process(tmp_path, **QUICK) as server, dial(server.url) as wire:
        await wire.alive()
        server.process.send_signal(number)
        assert await wire.close_code() == 1012
        assert await server.ended(within_s=5) == 0
        assert exactly_the_one_line(server)
    assert not list(tmp_path.glob("p.db-*"))  # the write-ahead log was taken in
    assert "Traceback" not in (tmp_path / "server.log").read_text()


SIGNAL_WHEN_LISTENING = """
import functools, signal, sys
import trio
from persona.app import run_server
from persona.testing import settings_with

settings = settings_with(server={"port": 0}, database={"path": sys.argv[1]})
number = signal.Signals(int(sys.argv[2]))
trio.run(functools.partial(run_server, settings, on_listening=lambda url: signal.raise_signal(number)))
"""


@both_signals
async def test_a_signal_as_soon_as_it_listens(number: signal.Signals, tmp_path: Path) -> None:
    """Whoever starts a server and waits for its line may change their mind at once. Here the signal
    comes with the line itself, the earliest that it can."""
    command = [sys.executable, "-c", SIGNAL_WHEN_LISTENING, str(tmp_path / "p.db"), str(int(number))]
    with trio.fail_after(20):
        done = await trio.run_process(command, check=False, capture_stdout=True, capture_stderr=True)
    assert done.returncode == 0, done.stderr.decode()


@one_signal_and_slowly_the_other
async def test_a_signal_while_a_stream_runs_lets_it_finish(number: signal.Signals, tmp_path: Path) -> None:
    async with server_process(tmp_path, **STREAMING) as server, dial(server.url) as wire:
        exchange = await begin(wire, "chat_stream", message="Tell me of your travels", persona_id="aria")
        await exchange.receive_from(wire, until_chunks=2)
        server.process.send_signal(number)
        (await exchange.receive_from(wire)).check()
        assert exchange.terminal_events == ["stream_complete"]
        assert exchange.result["finish_reason"] == "stop"
        assert len(exchange.chunks) > 4
        assert await wire.close_code() == 1012
        assert await server.ended(within_s=5) == 0
        assert exactly_the_one_line(server)
    with contextlib.closing(sqlite3.connect(tmp_path / "p.db")) as conn:
        assert conn.execute("SELECT content FROM turns ORDER BY id").fetchall() == [
            ("Tell me of your travels",),
            (exchange.text,),
        ]


@one_signal_and_slowly_the_other
async def test_a_second_signal_ends_it_at_once(number: signal.Signals, tmp_path: Path) -> None:
    variables = {**STREAMING, "PERSONA_LLM_SCRIPTED_TOKENS_PER_S": "0.1"}
    async with server_process(tmp_path, **variables) as server, dial(server.url) as wire:
        await wire.call("events.subscribe", {"topics": ["system"]})
        exchange = await begin(wire, "chat_stream", message="Tell me of your travels", persona_id="aria")
        await exchange.receive_from(wire, until_chunks=1)
        server.process.send_signal(number)
        assert (await wire.receive())["params"]["type"] == "system.draining"
        server.process.send_signal(number)
        assert await server.ended(within_s=1) == -number
        assert exactly_the_one_line(server)
    check_file(tmp_path)


async def test_a_server_that_is_cancelled_says_that_it_restarts(autojump_clock: MockClock) -> None:
    """As when a part of it crashes: its clients are told to come back, not that they met a bug."""
    scope = trio.CancelScope()

    async def serve(*, task_status: trio.TaskStatus[trio.abc.Stream]) -> None:
        with scope:
            async with open_server() as server:
                task_status.started(server.connect_stream())
                await trio.sleep_forever()

    async with trio.open_nursery() as nursery:
        stream = await nursery.start(serve)
        wire = Wire(await wrap_client_stream(nursery, stream, "localhost", "/mcp"))
        await begin(wire, "chat_stream", message="Hello", persona_id="aria")
        await trio.sleep(1.25)
        scope.cancel()
        assert await wire.close_code() == 1012
        nursery.cancel_scope.cancel()
