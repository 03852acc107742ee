"""The pool: opening, closing, what survives a kill; and the one in memory."""

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from persona.errors import MemoryFailure, NotFound, ShuttingDown
from persona.storage import pool
from persona.storage.batch import Writer
from persona.storage.connection import Synchronous
from persona.storage.pool import Database, open_database, write_shielded
from tests.storage.lanes import ENDLESS, Gate, Work, add, create, held, rows


async def test_what_is_written_is_read(database: Database) -> None:
    for n in range(30):
        assert await database.write(add(n)) == n
        # Whichever reader takes it, it begins after the write was answered.
        assert await database.read(rows) == list(range(n + 1))


async def test_closing_under_cancellation_finishes_what_was_accepted(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    gate = Gate()
    with trio.fail_after(20):
        async with trio.open_nursery() as callers:
            with trio.CancelScope() as scope:
                async with open_database(path) as database:
                    await database.write(create)
                    # The callers outlive the block and are not cancelled with it.
                    submit = callers.start_soon
                    submit(database.write, gate)
                    for n in range(40):
                        submit(database.write, add(n))
                    submit(database.read, rows)
                    await trio.testing.wait_all_tasks_blocked()
                    threading.Timer(0.1, gate.open).start()
                    scope.cancel()
                    await trio.sleep_forever()
            assert scope.cancelled_caught
        with pytest.raises(ShuttingDown):
            await database.write(add(99))
        with pytest.raises(ShuttingDown):
            await database.read(rows)
    with contextlib.closing(sqlite3.connect(path)) as conn:
        assert rows(conn) == list(range(40))


async def test_a_bug_in_a_lane_leaves_nobody_waiting(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Shielded or not: nobody will come to what they asked for."""
    told: list[str] = []

    async def ask(kind: str, call: Callable[[], Awaitable[object]]) -> None:
        with trio.move_on_after(60, shield=kind == "shielded"), pytest.raises(ShuttingDown):
            await call()
        told.append(kind)

    def buggy(_lane: Writer) -> None:
        raise ZeroDivisionError

    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        async with open_database(":memory:", threads=False) as database, trio.open_nursery() as nursery:
            await database.write(create)
            monkeypatch.setattr(Writer, "run", buggy)
            nursery.start_soon(ask, "plain", lambda: database.write(add(1)))
            nursery.start_soon(ask, "shielded", lambda: database.write(add(2)))
            nursery.start_soon(ask, "shielded", lambda: write_shielded(database, add(3)))
    assert sorted(told) == ["plain", "shielded", "shielded"]
    assert trio.current_time() == 0
    with pytest.raises(ShuttingDown):
        await database.read(rows)


async def test_closing_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "CLOSE_TIMEOUT_S", 0.1)

    async def endless(database: Database) -> None:
        with pytest.raises(ShuttingDown):
            await database.read(lambda conn: conn.execute(ENDLESS).fetchone())

    with trio.fail_after(20):
        async with trio.open_nursery() as callers:
            submit = callers.start_soon
            async with open_database(tmp_path / "p.db") as database:
                submit(endless, database)
                await trio.testing.wait_all_tasks_blocked()


async def test_a_thread_that_has_a_connection_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool, "CLOSE_TIMEOUT_S", 0.05)
    begun, ended = threading.Event(), threading.Event()

    def slow(_conn: sqlite3.Connection) -> None:
        begun.set()
        threading.Event().wait(0.4)
        ended.set()

    async def given_up(database: Database) -> None:
        with pytest.raises(ShuttingDown):
            await database.write(slow)

    with trio.fail_after(20):
        async with trio.open_nursery() as callers:
            async with open_database(tmp_path / "p.db") as database:
                # It outlives the database, which is what is tested.
                callers.start_soon(given_up, database)  # noqa: ASYNC111
                await trio.to_thread.run_sync(begun.wait)
            # Its caller was given up long before.
            assert ended.is_set()


async def test_nothing_is_left_in_the_log_after_closing(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    with trio.fail_after(20):
        async with open_database(path) as database:
            await database.write(create)
            assert path.with_name("p.db-wal").stat().st_size > 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["p.db"]


async def test_an_exception_of_the_block_leaves_it_as_it_is(tmp_path: Path) -> None:
    with trio.fail_after(20):
        with pytest.raises(KeyError, match="mine") as caught:
            async with open_database(tmp_path / "p.db"):
                raise KeyError("mine")
        assert caught.value.__context__ is None
        # A group of the block's own stays one.
        with pytest.RaisesGroup(pytest.RaisesExc(KeyError, match="one")):
            async with open_database(tmp_path / "p.db"):
                raise ExceptionGroup("mine", [KeyError("one")])


@pytest.mark.parametrize("synchronous", ["full", "normal"])
async def test_every_connection_is_set_up(tmp_path: Path, synchronous: Synchronous) -> None:
    def pragmas(conn: sqlite3.Connection) -> list[object]:
        names = ("journal_mode", "synchronous", "cache_size", "foreign_keys", "query_only", "busy_timeout")
        assert conn.execute("PRAGMA wal_autocheckpoint").fetchone() == (0,)
        return [conn.execute(f"PRAGMA {name}").fetchone()[0] for name in names]

    level = {"full": 2, "normal": 1}[synchronous]
    with trio.fail_after(20):
        async with open_database(
            tmp_path / "p.db", synchronous=synchronous, cache_pages=123, busy_timeout_s=0.5
        ) as database:
            assert await database.write(pragmas) == ["wal", level, 123, 1, 0, 500]
            async with held(database.read):
                assert await database.read(pragmas) == ["wal", level, 123, 1, 1, 500]
            assert await database.read(pragmas) == ["wal", level, 123, 1, 1, 500]


async def test_in_memory_time_stands_still(autojump_clock: trio.testing.MockClock) -> None:
    began = trio.current_time()
    async with open_database(":memory:", threads=False) as database:
        await database.write(create)

        async def fails(fn: Work) -> None:
            with pytest.raises(NotFound):
                await database.write(fn)

        def half_done(conn: sqlite3.Connection) -> None:
            add(50)(conn)
            raise NotFound("no such thing")

        async with trio.open_nursery() as nursery:
            for n in range(20):
                nursery.start_soon(database.write, add(n))
            nursery.start_soon(fails, half_done)
        assert database.statistics().mean_batch_size > 5
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(database.read, rows)
        assert await database.read(rows) == list(range(20))
        with pytest.raises(MemoryFailure):
            await database.read(add(1000))
        await database.write(add(1000))
        with trio.CancelScope() as scope:
            scope.cancel()
            await database.write(add(1001))
        assert await database.read(rows) == [*range(20), 1000]
        assert trio.current_time() == began
        await trio.sleep(3600)
    assert trio.current_time() == began + 3600
    with pytest.raises(ShuttingDown):
        await database.read(rows)


async def test_memory_and_threads_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="memory"):
        async with open_database(":memory:"):
            pass
    with pytest.raises(ValueError, match="memory"):
        async with open_database(tmp_path / "p.db", threads=False):
            pass


KILLED = """
    import itertools, os, sys
    from pathlib import Path
    import trio
    from persona.storage.pool import open_database

    def create(conn):
        conn.execute("CREATE TABLE IF NOT EXISTS log (n INTEGER)")

    async def write(database, numbers):
        for n in numbers:
            await database.write(lambda conn: conn.execute("INSERT INTO log (n) VALUES (?)", (n,)).rowcount)
            os.write(1, b"+%d\\n" % n)

    async def main(path, start):
        async with open_database(path) as database:
            await database.write(create)
            async with trio.open_nursery() as nursery:
                numbers = itertools.count(start)
                for _ in range(20):
                    nursery.start_soon(write, database, numbers)

    trio.run(main, Path(sys.argv[1]), int(sys.argv[2]))
"""


@pytest.mark.slow
def test_nothing_acknowledged_is_lost_by_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    acknowledged: set[int] = set()
    for round_ in range(4):
        start = 1_000_000 * round_
        command = [sys.executable, "-c", textwrap.dedent(KILLED), str(path), str(start)]
        with subprocess.Popen(command, stdout=subprocess.PIPE) as child:
            assert child.stdout is not None
            lines = [child.stdout.readline() for _ in range(300 + 217 * round_)]
            os.kill(child.pid, signal.SIGKILL)
            lines += child.stdout.readlines()
        assert child.returncode == -signal.SIGKILL
        acknowledged.update(int(line) for line in lines if re.fullmatch(rb"\+\d+\n", line))
        with contextlib.closing(sqlite3.connect(path)) as conn:
            found = [n for (n,) in conn.execute("SELECT n FROM log")]
            assert len(acknowledged) >= 250 * (round_ + 1)
            assert acknowledged <= set(found)
            assert len(found) == len(set(found))
            assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


@pytest.mark.parametrize("threads", [True, False])
async def test_memory_is_given_back_by_both_sides(threads: bool, tmp_path: Path) -> None:
    said: list[str] = []

    def listen(conn: sqlite3.Connection) -> None:
        conn.set_trace_callback(said.append)

    path = tmp_path / "p.db" if threads else ":memory:"
    with trio.fail_after(20):
        async with open_database(path, readers=1, threads=threads) as database:  # type: ignore[arg-type]
            await database.write(listen)
            if threads:
                await database.read(listen)
            await database.release_memory()
            await database.write(create)
            assert await database.read(rows) == []
    assert said.count("PRAGMA shrink_memory") == 2
