"""The pool: group commit, isolation, snapshots, cancellation, overload, closing."""

import contextlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
import textwrap
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
import structlog
import trio
import trio.testing

from persona.errors import MemoryFailure, NotFound, Overloaded, ShuttingDown
from persona.storage import pool, queue
from persona.storage.connection import Synchronous
from persona.storage.pool import Database, open_database

Work = Callable[[sqlite3.Connection], object]
ENDLESS = "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"


def create(conn: sqlite3.Connection) -> None:
    conn.execute("CREATE TABLE log (n INTEGER PRIMARY KEY, parent INTEGER REFERENCES log (n))")


def add(n: int) -> Callable[[sqlite3.Connection], int]:
    def insert(conn: sqlite3.Connection) -> int:
        conn.execute("INSERT INTO log (n) VALUES (?)", (n,))
        return n

    return insert


def rows(conn: sqlite3.Connection) -> list[int]:
    return [n for (n,) in conn.execute("SELECT n FROM log ORDER BY n")]


class Gate:
    """A call that holds its lane until the gate is opened."""

    def __init__(self) -> None:
        self.entered = trio.Event()
        self._opened = threading.Event()
        self._token = trio.lowlevel.current_trio_token()

    def __call__(self, conn: sqlite3.Connection) -> None:
        self._token.run_sync_soon(self.entered.set)
        assert self._opened.wait(10), "nobody opened the gate"

    def open(self) -> None:
        self._opened.set()


@contextlib.asynccontextmanager
async def held(submit: Callable[[Work], object]) -> AsyncIterator[tuple[Gate, trio.Nursery]]:
    """One lane is held; calls started in the nursery queue up behind it. Opens the gate at the end."""
    gate = Gate()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(submit, gate)  # type: ignore[arg-type]
            await gate.entered.wait()
            yield gate, nursery
            await trio.testing.wait_all_tasks_blocked()
            gate.open()
    finally:
        gate.open()


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    with trio.fail_after(20):
        async with open_database(tmp_path / "p.db") as opened:
            await opened.write(create)
            yield opened


async def test_what_is_written_is_read(database: Database) -> None:
    for n in range(30):
        assert await database.write(add(n)) == n
        # Whichever reader takes it, it begins after the write was answered.
        assert await database.read(rows) == list(range(n + 1))


async def test_a_lone_write_waits_for_nobody(database: Database) -> None:
    await database.write(add(1))
    assert database.statistics().last_batch_size == 1


async def test_writes_that_wait_share_a_transaction(database: Database) -> None:
    before = database.statistics()
    async with held(database.write) as (_, nursery):
        for n in range(100):
            nursery.start_soon(database.write, add(n))
        await trio.testing.wait_all_tasks_blocked()
        assert database.statistics().write_queue_length == 100
    after = database.statistics()
    assert after.last_batch_size == 100
    assert after.writes - before.writes == 101
    assert after.mean_batch_size > 30
    assert after.write_queue_length == 0
    assert await database.read(rows) == list(range(100))


async def test_a_batch_is_bounded(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "MAX_BATCH", 10)
    async with held(database.write) as (_, nursery):
        for n in range(25):
            nursery.start_soon(database.write, add(n))
    assert database.statistics().last_batch_size == 5
    assert await database.read(rows) == list(range(25))


async def test_a_slow_batch_ends_early_and_the_rest_follows(database: Database) -> None:
    def slow_add(conn: sqlite3.Connection) -> None:
        threading.Event().wait(0.05)
        add(1000)(conn)

    async with held(database.write) as (_, nursery):
        nursery.start_soon(database.write, slow_add)
        await trio.testing.wait_all_tasks_blocked()
        for n in range(10):
            nursery.start_soon(database.write, add(n))
            await trio.testing.wait_all_tasks_blocked()
    assert database.statistics().last_batch_size == 10
    assert await database.read(rows) == [*range(10), 1000]


async def test_an_error_rolls_back_its_own_call_alone(database: Database) -> None:
    def half_done(conn: sqlite3.Connection) -> None:
        add(50)(conn)
        raise NotFound("no such thing")

    def buggy(conn: sqlite3.Connection) -> None:
        add(51)(conn)
        raise ZeroDivisionError

    def broken_sql(conn: sqlite3.Connection) -> None:
        add(52)(conn)
        conn.execute("SELECT secret FROM nowhere")

    async def fails(fn: Work, error: type[Exception]) -> None:
        with pytest.raises(error):
            await database.write(fn)

    async with held(database.write) as (_, nursery):
        nursery.start_soon(database.write, add(1))
        nursery.start_soon(fails, half_done, NotFound)
        nursery.start_soon(fails, buggy, ZeroDivisionError)
        nursery.start_soon(fails, broken_sql, MemoryFailure)
        nursery.start_soon(database.write, add(2))
    assert database.statistics().last_batch_size == 5
    assert await database.read(rows) == [1, 2]
    assert database.statistics().replaced_connections == 0


@pytest.mark.parametrize("side", ["read", "write"])
async def test_sqlite_errors_are_translated_and_logged(database: Database, side: str) -> None:
    with structlog.testing.capture_logs() as logs, pytest.raises(MemoryFailure) as caught:
        await getattr(database, side)(lambda conn: conn.execute("SELECT secret FROM nowhere"))
    assert "nowhere" not in caught.value.message
    assert caught.value.retryable
    assert isinstance(caught.value.__cause__, sqlite3.OperationalError)
    (line,) = [line for line in logs if line["event"] == "database_failed"]
    assert "nowhere" in line["error"]


async def test_a_failed_commit_fails_the_whole_batch(database: Database) -> None:
    def orphan(conn: sqlite3.Connection) -> None:
        conn.execute("PRAGMA defer_foreign_keys = ON")
        conn.execute("INSERT INTO log (n, parent) VALUES (7, 999)")

    failed = []

    async def fails(fn: Work) -> None:
        with pytest.raises(MemoryFailure) as caught:
            await database.write(fn)
        failed.append(caught.value)

    async with held(database.write) as (_, nursery):
        for fn in (add(1), orphan, add(2)):
            nursery.start_soon(fails, fn)
    assert len({id(error) for error in failed}) == 3
    assert await database.read(rows) == []
    await database.write(add(3))
    assert await database.read(rows) == [3]


async def test_a_lost_transaction_fails_what_ran_and_repeats_nothing(database: Database) -> None:
    await database.write(add(1))
    ran: list[int] = []

    def counted(n: int) -> Work:
        def fn(conn: sqlite3.Connection) -> None:
            ran.append(n)
            add(n)(conn)

        return fn

    async def fails(fn: Work) -> None:
        with pytest.raises(MemoryFailure):
            await database.write(fn)

    async with held(database.write) as (_, nursery):
        for submit, fn in (
            (fails, counted(2)),
            (fails, lambda conn: conn.execute("INSERT OR ROLLBACK INTO log (n) VALUES (1)")),
            (database.write, counted(3)),
        ):
            nursery.start_soon(submit, fn)
            await trio.testing.wait_all_tasks_blocked()
    assert ran == [2, 3]
    assert await database.read(rows) == [1, 3]


@pytest.mark.parametrize("side", ["read", "write"])
async def test_a_broken_connection_is_replaced(database: Database, side: str) -> None:
    with contextlib.suppress(MemoryFailure):
        await getattr(database, side)(lambda conn: conn.close())
    await database.write(add(1))
    assert await database.read(rows) == [1]
    assert database.statistics().replaced_connections == 1


async def test_a_lock_held_by_another_program_is_a_retryable_failure(tmp_path: Path) -> None:
    with trio.fail_after(20):
        async with open_database(tmp_path / "p.db", busy_timeout_s=0.05) as database:
            await database.write(create)
            with contextlib.closing(sqlite3.connect(tmp_path / "p.db", isolation_level=None)) as other:
                other.execute("BEGIN IMMEDIATE")
                with pytest.raises(MemoryFailure, match="busy") as caught:
                    await database.write(add(1))
                assert caught.value.retry_after_s is not None
                assert await database.read(rows) == []
                other.execute("ROLLBACK")
            await database.write(add(1))
            assert database.statistics().replaced_connections == 0


async def test_a_read_is_one_snapshot(database: Database) -> None:
    await database.write(add(1))
    between = Gate()
    seen: list[list[int]] = []

    def twice(conn: sqlite3.Connection) -> None:
        seen.append(rows(conn))
        between(conn)
        seen.append(rows(conn))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(database.read, twice)
        await between.entered.wait()
        await database.write(add(2))
        # Another reader, while the first is under way, already sees it.
        assert await database.read(rows) == [1, 2]
        between.open()
    assert seen == [[1], [1]]
    assert await database.read(rows) == [1, 2]


async def test_an_exception_that_is_kept_does_not_keep_the_snapshot(tmp_path: Path) -> None:
    def leaves_a_cursor(conn: sqlite3.Connection) -> None:
        cursor = conn.execute("SELECT n FROM log")
        cursor.fetchone()
        raise NotFound("half way")

    with trio.fail_after(20):
        async with open_database(tmp_path / "p.db", readers=1) as database:
            await database.write(create)
            for n in range(3):
                await database.write(add(n))
            with pytest.raises(NotFound) as kept:
                await database.read(leaves_a_cursor)
            await database.write(add(3))
            assert await database.read(rows) == [0, 1, 2, 3]
            assert kept.value.message == "half way"


async def test_readers_cannot_write(database: Database) -> None:
    with pytest.raises(MemoryFailure):
        await database.read(add(1))
    assert await database.read(rows) == []


async def test_reads_that_wait_share_a_hop_and_a_long_one_holds_nobody_up(database: Database) -> None:
    first, second, long = Gate(), Gate(), Gate()
    answered: list[str] = []

    async def short() -> None:
        await database.read(rows)
        answered.append("short")
        long.open()

    async def read(fn: Gate) -> None:
        await database.read(fn)
        answered.append("gate")

    try:
        async with trio.open_nursery() as nursery:
            for gate in (first, second):
                nursery.start_soon(read, gate)
                await gate.entered.wait()
            assert database.statistics().readers_busy == 2
            nursery.start_soon(read, long)
            await trio.testing.wait_all_tasks_blocked()
            nursery.start_soon(short)
            await trio.testing.wait_all_tasks_blocked()
            assert database.statistics().read_queue_length == 2
            # This reader takes both, in this order; the other one is still held.
            first.open()
            await long.entered.wait()
            second.open()
    finally:
        for gate in (first, second, long):
            gate.open()
    assert answered == ["gate", "gate", "short", "gate"]


async def test_cancelling_a_write_that_waits_drops_it(database: Database) -> None:
    async with held(database.write) as (_, nursery):
        with trio.move_on_after(0.02) as scope:
            await database.write(add(1))
        assert scope.cancelled_caught
        assert database.statistics().write_queue_length == 0
        nursery.start_soon(database.write, add(2))
    assert await database.read(rows) == [2]


async def test_cancelling_a_write_in_an_unstarted_part_of_a_batch_drops_it(database: Database) -> None:
    inner = Gate()

    scope = trio.CancelScope()

    async def write_in_scope() -> None:
        with scope:
            await database.write(add(1))

    async def cancel_when_entered() -> None:
        await inner.entered.wait()
        scope.cancel()
        await trio.testing.wait_all_tasks_blocked()
        inner.open()

    async with trio.open_nursery() as nursery, held(database.write) as (_, waiting):
        waiting.start_soon(database.write, inner)
        await trio.testing.wait_all_tasks_blocked()
        waiting.start_soon(write_in_scope)
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(database.write, add(2))
        nursery.start_soon(cancel_when_entered)
    assert scope.cancelled_caught
    assert await database.read(rows) == [2]


async def test_cancelling_a_running_write_returns_at_once_and_it_is_done_wholly(database: Database) -> None:
    gate = Gate()

    def two_rows(conn: sqlite3.Connection) -> None:
        add(1)(conn)
        gate(conn)
        add(2)(conn)

    with trio.move_on_after(0.05) as scope:
        await database.write(two_rows)
    assert scope.cancelled_caught
    assert gate.entered.is_set()
    assert await database.read(rows) == []
    gate.open()
    await database.write(add(3))
    assert await database.read(rows) == [1, 2, 3]


async def test_a_bug_in_an_abandoned_call_is_logged(database: Database) -> None:
    gate = Gate()

    def buggy(conn: sqlite3.Connection) -> None:
        gate(conn)
        raise ZeroDivisionError

    with structlog.testing.capture_logs() as logs:
        with trio.move_on_after(0.05):
            await database.write(buggy)
        gate.open()
        await database.write(add(1))
    assert [line["event"] for line in logs] == ["abandoned_call_failed"]


async def test_cancelling_a_long_read_interrupts_it(tmp_path: Path) -> None:
    with trio.fail_after(20):
        async with open_database(tmp_path / "p.db", readers=1) as database:
            with structlog.testing.capture_logs() as logs:
                with trio.move_on_after(0.05) as scope:
                    await database.read(lambda conn: conn.execute(ENDLESS).fetchone())
                assert scope.cancelled_caught
                # The only reader is free again, on the same connection.
                assert await database.read(lambda conn: conn.execute("SELECT 1").fetchone()) == (1,)
            assert logs == []
            assert database.statistics().replaced_connections == 0


async def test_a_full_queue_refuses_after_a_bounded_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue, "MAX_ADMISSION_S", 0.05)
    with trio.fail_after(20):
        async with open_database(tmp_path / "p.db", max_queue=3) as database:
            await database.write(create)
            async with held(database.write) as (gate, nursery):
                nursery.start_soon(database.write, add(1))
                with trio.CancelScope() as scope:
                    async with trio.open_nursery() as leaving:
                        leaving.start_soon(database.write, add(2))
                        await trio.testing.wait_all_tasks_blocked()
                        with pytest.raises(Overloaded) as caught:
                            await database.write(add(3))
                        assert caught.value.retry_after_s == 0.05
                        scope.cancel()
                # Who left made room; who waits for room gets it when a place is free.
                nursery.start_soon(database.write, add(4))
                await trio.testing.wait_all_tasks_blocked()
                monkeypatch.setattr(queue, "MAX_ADMISSION_S", 10)
                nursery.start_soon(database.write, add(5))
                await trio.testing.wait_all_tasks_blocked()
                gate.open()
            assert await database.read(rows) == [1, 4, 5]


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
