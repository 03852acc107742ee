"""What a lane does with what it took: one commit, faults kept apart, a snapshot for each read."""

import contextlib
import sqlite3
import threading
from functools import partial
from pathlib import Path

import pytest
import structlog
import trio
import trio.testing

from persona.errors import MemoryFailure, NotFound
from persona.storage.pool import Database, open_database
from tests.storage.lanes import ENDLESS, Gate, Work, add, batches, create, held, rows


def counted(n: int, ran: list[int]) -> Work:
    def fn(conn: sqlite3.Connection) -> None:
        ran.append(n)
        add(n)(conn)

    return fn


async def test_a_slow_batch_ends_early_and_the_rest_follows(database: Database) -> None:
    def slow_add(conn: sqlite3.Connection) -> None:
        threading.Event().wait(0.05)
        add(1000)(conn)

    count, calls = batches(database)
    async with held(database.write) as (_, nursery):
        nursery.start_soon(database.write, slow_add)
        await trio.testing.wait_all_tasks_blocked()
        for n in range(10):
            nursery.start_soon(database.write, add(n))
            await trio.testing.wait_all_tasks_blocked()
    # The one that held the writer, the slow one, and ten in one.
    assert batches(database) == (count + 3, calls + 12)
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

    count, calls = batches(database)
    async with held(database.write) as (_, nursery):
        nursery.start_soon(database.write, add(1))
        nursery.start_soon(fails, half_done, NotFound)
        nursery.start_soon(fails, buggy, ZeroDivisionError)
        nursery.start_soon(fails, broken_sql, MemoryFailure)
        nursery.start_soon(database.write, add(2))
    assert batches(database) == (count + 2, calls + 6)
    assert await database.read(rows) == [1, 2]
    assert database.statistics().replaced_connections == 0


async def test_only_a_batch_with_an_error_in_it_is_run_again_and_with_savepoints(database: Database) -> None:
    ran: list[int] = []
    statements: list[str] = []

    def fail(conn: sqlite3.Connection) -> None:
        conn.execute("SELECT secret FROM nowhere")

    async def fails() -> None:
        with pytest.raises(MemoryFailure):
            await database.write(fail)

    await database.write(lambda conn: conn.set_trace_callback(statements.append))
    async with held(database.write) as (_, nursery):
        for n in (1, 2):
            nursery.start_soon(database.write, counted(n, ran))
            await trio.testing.wait_all_tasks_blocked()
    assert ran == [1, 2]
    assert not [text for text in statements if "SAVEPOINT" in text]

    ran.clear()
    count, calls = batches(database)
    async with held(database.write) as (_, nursery):
        for submit in (
            partial(database.write, counted(3, ran)),
            fails,
            partial(database.write, counted(4, ran)),
        ):
            nursery.start_soon(submit)
            await trio.testing.wait_all_tasks_blocked()
    # The last one came to its turn when it was known that one fails.
    assert ran == [3, 3, 4]
    assert batches(database) == (count + 2, calls + 4)
    assert statements.count("SAVEPOINT call") == 3
    assert database.statistics().failures["other"] == 1
    assert await database.read(rows) == [1, 2, 3, 4]


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

    async def fails(fn: Work) -> None:
        with pytest.raises(MemoryFailure):
            await database.write(fn)

    async with held(database.write) as (_, nursery):
        for submit, fn in (
            (fails, counted(2, ran)),
            (fails, lambda conn: conn.execute("INSERT OR ROLLBACK INTO log (n) VALUES (1)")),
            (database.write, counted(3, ran)),
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
