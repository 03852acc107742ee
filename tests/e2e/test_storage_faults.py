"""A disk that fails under a server in a process of its own.

In each fault those who talk get a typed, retryable error; what was acknowledged can be read all the
time; the event loop never stops; and service returns by itself.
"""

import contextlib
import errno
import math
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path

import attrs
import orjson
import pytest
import trio

from persona.client import Client, RemoteError, open_client
from persona.model import Conversation, NewTurn
from persona.storage import store
from persona.storage import turns as stored_turns
from persona.storage.pool import open_database
from tests.disk import (
    READ,
    SYNC,
    TRUNCATE,
    WRITE,
    Injector,
    Unwritable,
    fill,
    needs_fiu,
)
from tests.e2e.process import QUICK, ServerProcess, server_process
from tests.e2e.talkers import Talker, check_file

pytestmark = pytest.mark.slow

FAULT_S = 0.7
"""How long a fault lasts at least, so that there is something to measure."""
MAX_LAG_S = 0.1
"""What 19 of 20 pings must come back in: the loop that answers them is free."""
MAX_PAUSE_S = 2.0
"""What every ping must: far more than a busy machine makes of `MAX_LAG_S`, and far less than the five
seconds for which SQLite waits for a lock."""


@attrs.define(eq=False)
class Company:
    """Three who talk, one who reads, and one who pings."""

    folder: Path
    server: ServerProcess
    talking: list[tuple[Talker, Client]]
    disk_can_be_read: bool = True
    reads: int = 0
    round_trips_s: list[float] = attrs.field(factory=list)
    pinged_at: float = math.inf

    @property
    def talkers(self) -> list[Talker]:
        return [talker for talker, _ in self.talking]

    async def talk(self, turns: int = 3) -> None:
        """Each says so many lines, and all of them are answered."""

        async def go_on(talker: Talker, client: Client) -> None:
            await talker.join(client)
            for _ in range(turns):
                await talker.say(client)

        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for talker, client in self.talking:
                    nursery.start_soon(go_on, talker, client)

    async def are_refused(self, times: int = 5) -> set[str]:
        """Each talks until it was refused so often, and `FAULT_S` are over; the messages that came."""
        ends_at = trio.current_time() + FAULT_S
        return await self.talk_while(lambda refused: refused < times or trio.current_time() < ends_at)

    async def talk_while(self, is_wanted: Callable[[int], bool]) -> set[str]:
        """Each talks on until, having been refused so often, that is not wanted any more; the messages of
        the refusals, which are as they should be."""
        messages: set[str] = set()

        async def go_on(talker: Talker, client: Client) -> None:
            refused = 0
            while is_wanted(refused):
                with trio.fail_after(20):
                    try:
                        await talker.say(client)
                    except RemoteError as error:
                        assert (error.code, error.reason) == (-32002, "memory_error")
                        assert error.retryable
                        assert error.retry_after_s is not None
                        assert 0 < error.retry_after_s <= 10
                        messages.add(error.message)
                        refused += 1
                await trio.sleep(0.02)

        read_before = self.reads
        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for talker, client in self.talking:
                    nursery.start_soon(go_on, talker, client)
            while self.disk_can_be_read and self.reads < read_before + 5:
                await trio.sleep(0.02)
        return messages

    async def are_served_again(self, within_s: float = 15.0) -> None:
        """Without a restart and without a new connection; and nothing was lost, or said twice. The log tells
        of it."""
        with trio.fail_after(within_s):
            for talker, client in self.talking:
                while True:
                    with contextlib.suppress(RemoteError):
                        await talker.say(client)
                        break
                    await trio.sleep(0.1)
            self.disk_can_be_read = True
            await self.talk()
            for talker, client in self.talking:
                await talker.check(client)
            # Not parsed: where the log's own disk was full, there may be half a line in it.
            while '"event":"database_recovered"' not in (self.folder / "server.log").read_text():
                await self.talk(1)
                await trio.sleep(0.1)

    async def read(self, client: Client) -> None:
        """Read what was acknowledged, again and again."""
        while True:
            for talker in self.talkers:
                expected = [text for turn in talker.acknowledged for text in (turn.line, turn.answer)]
                if expected:
                    try:
                        turns = await talker.history(client)
                    except RemoteError as error:
                        assert not self.disk_can_be_read, error
                        assert error.reason == "memory_error"
                    else:
                        assert [turn.content for turn in turns][: len(expected)] == expected
                        self.reads += 1
                await trio.sleep(0.02)

    async def ping(self, client: Client) -> None:
        """Ask whether the event loop is free, again and again."""
        while True:
            self.pinged_at = trio.current_time()
            await client.ping()
            self.round_trips_s.append(trio.current_time() - self.pinged_at)
            await trio.sleep(0.01)

    def check_lag(self) -> None:
        # The last one may be on its way, and should not be for long.
        *_, worst = ordered = sorted([*self.round_trips_s, trio.current_time() - self.pinged_at])
        assert worst < MAX_PAUSE_S
        assert len(ordered) > 20
        assert ordered[len(ordered) * 19 // 20] < MAX_LAG_S


@contextlib.asynccontextmanager
async def company(
    folder: Path, *, through: Sequence[str] = (), database: dict[str, str] | None = None
) -> AsyncIterator[Company]:
    """A server and its clients. At the end it is killed, and its file looked at."""
    async with server_process(folder, through=through, **QUICK, **(database or {})) as server:
        async with contextlib.AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(open_client(server.url)) for _ in range(5)]
            talkers = [Talker("a", "aria"), Talker("b", "kira"), Talker("c", "aria")]
            met = Company(folder, server, list(zip(talkers, clients[:3], strict=True)))
            nursery = await stack.enter_async_context(trio.open_nursery())
            nursery.start_soon(met.read, clients[3])
            nursery.start_soon(met.ping, clients[4])
            await met.talk()
            yield met
            met.check_lag()
            nursery.cancel_scope.cancel()
        assert server.process.poll() is None
        server.process.kill()
        assert await server.ended() == -signal.SIGKILL
    check_file(folder, met.talkers)


def logged(folder: Path, event: str = "database_failed") -> list[dict[str, str]]:
    """The log's entries of that name."""
    entries = [orjson.loads(line) for line in (folder / "server.log").read_text().splitlines()]
    return [entry for entry in entries if entry["event"] == event]


async def test_a_full_disk(small_disk: Path) -> None:
    """The log is on it, too, which must not matter."""
    async with company(small_disk) as those:
        fill(small_disk / "filler")
        assert "the database's disk is full" in await those.are_refused()
        (small_disk / "filler").unlink()
        await those.are_served_again()


@needs_fiu
@pytest.mark.parametrize(
    ("names", "error", "code"),
    [
        ([WRITE], errno.EIO, "SQLITE_IOERR_WRITE"),
        ([WRITE], errno.ENOSPC, "SQLITE_FULL"),
        ([SYNC], errno.EIO, "SQLITE_IOERR_FSYNC"),
        ([READ, WRITE, SYNC, TRUNCATE], errno.EIO, "SQLITE_IOERR_CORRUPTFS"),
    ],
    ids=["write", "full", "fsync", "everything"],
)
async def test_a_failing_disk(names: list[str], error: int, code: str, tmp_path: Path) -> None:
    injector = Injector(tmp_path / "fiu")
    async with company(tmp_path, through=injector.command) as those:
        those.disk_can_be_read = READ not in names
        await injector.fail(those.server.process.pid, *names, error=error)
        acknowledged = [len(talker.acknowledged) for talker in those.talkers]
        await those.are_refused()
        # With every call failing, nothing can be acknowledged.
        assert [len(talker.acknowledged) for talker in those.talkers] == acknowledged
        assert code in {entry["code"] for entry in logged(tmp_path)}
        await injector.heal(those.server.process.pid, *names)
        await those.are_served_again()


async def test_files_that_cannot_be_written_any_more(tmp_path: Path, unwritable: Unwritable) -> None:
    """Not even opened for writing, as with a file system that the kernel has made read-only: what SQLite
    opens meanwhile stays read-only for ever."""
    async with company(tmp_path) as those:
        with unwritable(tmp_path / "p.db", tmp_path / "p.db-wal"):
            assert "the database cannot be written" in await those.are_refused()
        await those.are_served_again()


LOST_PAGE = bytes(range(256)) * 16


async def test_a_page_that_is_damaged_while_it_serves(tmp_path: Path) -> None:
    """Who needs it gets the error; the rest goes on."""
    await write_a_long_conversation(tmp_path)
    async with company(tmp_path) as those, open_client(those.server.url) as client:
        with (tmp_path / "p.db").open("r+b", buffering=0) as file:
            at = file.read().index(b"line 1000 ") // PAGE_BYTES * PAGE_BYTES
            file.seek(at)
            good = file.read(PAGE_BYTES)
            file.seek(at)
            file.write(LOST_PAGE)
            ends_at = trio.current_time() + FAULT_S
            while trio.current_time() < ends_at:
                with pytest.raises(RemoteError) as caught:
                    await client.history(conversation_id="long", before=1002)
                assert (caught.value.reason, caught.value.retryable) == ("memory_error", True)
                assert len((await client.history(conversation_id="long")).turns) == 20
                await those.talk(1)
            assert {entry["code"] for entry in logged(tmp_path)} == {"SQLITE_CORRUPT"}
            file.seek(at)
            file.write(good)
        page = await client.history(conversation_id="long", before=1002)
        assert page.turns[-1].content.startswith("line 1000 ")
        await those.are_served_again()


PAGE_BYTES = 4096


async def write_a_long_conversation(folder: Path) -> None:
    """A database with a conversation `long` of 2000 turns, of which ten share a page."""
    turns = [
        NewTurn(role="user", speaker_id="", content=f"line {n} {'.' * 300}", created_at=0.0)
        for n in range(2000)
    ]
    async with open_database(folder / "p.db", readers=1) as database:
        (persona, *_) = await database.read(store.list_personas)
        conversation = Conversation(
            id="long", persona_id=persona.id, user="anonymous", created_at=0.0, updated_at=0.0, turn_count=0
        )
        await database.write(lambda conn: store.create_conversation(conn, conversation))
        await database.write(lambda conn: stored_turns.append_turns(conn, "long", turns))


async def test_a_stop_while_the_disk_is_full(small_disk: Path) -> None:
    async with server_process(small_disk, **QUICK) as server:
        talker = Talker("a", "aria")
        async with open_client(server.url) as client:
            await talker.join(client)
            for _ in range(3):
                await talker.say(client)
                # For these the file will have to grow, which it cannot.
                await client.chat("A long story. " * 200, persona_id="kira")
            fill(small_disk / "filler")
            with pytest.raises(RemoteError, match="memory_error"), trio.fail_after(20):
                while True:
                    await talker.say(client)
        server.process.send_signal(signal.SIGTERM)
        assert await server.ended(within_s=15) == 0
    (small_disk / "filler").unlink()
    check_file(small_disk, [talker])
    async with server_process(small_disk, **QUICK) as server, open_client(server.url) as client:
        await talker.check(client)


async def refused_start(folder: Path) -> str:
    """What `persona serve` says on a database that it does not take."""
    ports = ("--port", "0", "--http-port", "0")
    command = [sys.executable, "-m", "persona", "serve", *ports, "--llm", "scripted"]
    with trio.fail_after(20):
        done = await trio.run_process(
            [*command, "--db", str(folder / "p.db"), "--log-level", "error"],
            check=False,
            capture_stdout=True,
            capture_stderr=True,
        )
    assert (done.returncode, done.stdout) == (1, b"")
    (line,) = done.stderr.decode().splitlines()
    assert line.startswith(f"persona: error: {folder / 'p.db'}: ")
    return line


async def test_a_start_on_a_damaged_file(tmp_path: Path) -> None:
    await write_a_long_conversation(tmp_path)
    good = (tmp_path / "p.db").read_bytes()
    at = good.index(b"line 1000 ") // PAGE_BYTES * PAGE_BYTES
    (tmp_path / "p.db").write_bytes(good[:at] + LOST_PAGE + good[at + PAGE_BYTES :])
    assert "the database is damaged; restore a backup" in await refused_start(tmp_path)
    assert (tmp_path / "p.db").read_bytes() == good[:at] + LOST_PAGE + good[at + PAGE_BYTES :]
    (tmp_path / "p.db").write_bytes(good)
    async with server_process(tmp_path, **QUICK) as server, open_client(server.url) as client:
        assert len((await client.history(conversation_id="long")).turns) == 20


async def test_a_start_on_files_that_cannot_be_written(tmp_path: Path, unwritable: Unwritable) -> None:
    await write_a_long_conversation(tmp_path)
    before = (tmp_path / "p.db").read_bytes()
    with unwritable(tmp_path / "p.db"):
        assert "cannot be written; make the file" in await refused_start(tmp_path)
    with unwritable(tmp_path):
        assert "cannot be written; make the file" in await refused_start(tmp_path)
    assert (tmp_path / "p.db").read_bytes() == before
    async with server_process(tmp_path, **QUICK):
        pass


async def test_a_start_on_a_full_disk(small_disk: Path) -> None:
    fill(small_disk / "filler")
    assert "the disk is full; make room" in await refused_start(small_disk)
    (small_disk / "filler").unlink()
    async with server_process(small_disk, **QUICK):
        pass


HOLD_THE_LOCK = """
import sqlite3, sys, time
conn = sqlite3.connect(sys.argv[1], isolation_level=None)
conn.execute("BEGIN IMMEDIATE")
print("held", flush=True)
time.sleep(float(sys.argv[2]))
conn.execute("ROLLBACK")
print("done", flush=True)
"""


@contextlib.asynccontextmanager
async def lock_holder(file: Path, seconds: float) -> AsyncIterator[trio.Event]:
    """Another program holds the lock for so long; the event comes when it has let go."""
    command = [sys.executable, "-c", HOLD_THE_LOCK, str(file), str(seconds)]
    process = await trio.lowlevel.open_process(command, stdout=subprocess.PIPE)
    assert process.stdout is not None
    held, done = trio.Event(), trio.Event()
    said = b""

    async def listen() -> None:
        nonlocal said
        async for data in process.stdout:
            said += data
            held.set()
        assert said == b"held\ndone\n"
        done.set()

    try:
        async with process.stdout, trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            with trio.fail_after(10):
                await held.wait()
            yield done
    finally:
        process.kill()
        with trio.move_on_after(10, shield=True):
            await process.wait()


async def test_another_program_holds_the_lock_for_10_s(tmp_path: Path) -> None:
    async with company(tmp_path) as those:
        async with lock_holder(tmp_path / "p.db", 10) as done:
            # Who comes while others have waited for a part of it may outlast it.
            messages = await those.talk_while(lambda _: not done.is_set())
            assert messages == {"the database is busy"}
        await those.are_served_again()
    assert {entry["code"] for entry in logged(tmp_path)} == {"SQLITE_BUSY"}
