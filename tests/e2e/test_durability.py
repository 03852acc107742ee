"""The server as a process: killed at any moment it keeps what it acknowledged; told to stop it stops well."""

import contextlib
import random
import re
import signal
import sqlite3
import sys
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock
from trio_websocket import wrap_client_stream

from persona.testing import open_server
from tests.e2e.exchanges import begin
from tests.e2e.process import QUICK, STREAMING, ServerProcess, server_process
from tests.e2e.talkers import Talker, check_file, talk
from tests.serving import Wire, dial


async def kill_between_turns(folder: Path, talkers: list[Talker]) -> None:
    async with server_process(folder, **QUICK) as server:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for talker in talkers:
                    nursery.start_soon(talk, talker, server.url, 3)
        server.process.kill()
        assert await server.ended() == -signal.SIGKILL
    check_file(folder, talkers)


async def kill_in_the_middle(folder: Path, talkers: list[Talker], after_s: float, variables: Any) -> None:
    async with server_process(folder, **variables) as server:
        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                for talker in talkers:
                    nursery.start_soon(talk, talker, server.url, None)
                await trio.sleep(after_s)
                server.process.kill()
        assert await server.ended() == -signal.SIGKILL
    check_file(folder, talkers)


def some_talkers(count: int) -> list[Talker]:
    return [Talker("abcd"[n], ("aria", "kira")[n % 2]) for n in range(count)]


async def test_kill_9_between_turns_loses_nothing(tmp_path: Path) -> None:
    talkers = some_talkers(4)
    await kill_between_turns(tmp_path, talkers)
    assert all(len(talker.acknowledged) == 3 for talker in talkers)
    async with server_process(tmp_path, **QUICK) as server:
        for talker in talkers:
            await talk(talker, server.url, 0)


WRITE_LOOP_ROUNDS = 5
"""For each of four servers, which makes 20 rounds."""


async def kill_again_and_again(folder: Path, dice: random.Random) -> None:
    folder.mkdir()
    talkers = some_talkers(3)
    for number in range(WRITE_LOOP_ROUNDS):
        before = sum(len(talker.acknowledged) for talker in talkers)
        await kill_in_the_middle(folder, talkers, 0.3 + dice.random() * 0.3, QUICK)
        assert sum(len(talker.acknowledged) for talker in talkers) > before, f"nothing written in {number}"
    # And once slowly, so that it dies in mid-answer.
    await kill_in_the_middle(folder, talkers, 0.3 + dice.random() * 0.5, STREAMING)
    async with server_process(folder, **QUICK) as server:
        with trio.fail_after(60):
            for talker in talkers:
                await talk(talker, server.url, 1)


@pytest.mark.slow
async def test_kill_9_in_a_write_loop_20_times_loses_nothing_acknowledged(tmp_path: Path) -> None:
    """Each round, `check_file` finds the database whole, and every line and answer that was acknowledged
    in it; the next round's clients find the same through the server."""
    async with trio.open_nursery() as nursery:
        for name in ("one", "two", "three", "four"):
            nursery.start_soon(kill_again_and_again, tmp_path / name, random.Random(name))


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
