"""Callers and lanes: who takes what, when, and what becomes of those who leave."""

import sqlite3
from pathlib import Path

import pytest
import structlog
import trio
import trio.testing

from persona.errors import Overloaded
from persona.storage import queue
from persona.storage.pool import Database, open_database
from tests.storage.lanes import Gate, add, batches, create, held, rows


async def test_a_lone_write_waits_for_nobody(database: Database) -> None:
    count, calls = batches(database)
    await database.write(add(1))
    assert batches(database) == (count + 1, calls + 1)


async def test_writes_that_wait_share_a_transaction(database: Database) -> None:
    count, calls = batches(database)
    async with held(database.write) as (_, nursery):
        for n in range(100):
            nursery.start_soon(database.write, add(n))
        await trio.testing.wait_all_tasks_blocked()
        assert database.statistics().write_queue_length == 100
    after = database.statistics()
    # The one that held the writer, and the one of all others.
    assert batches(database) == (count + 2, calls + 101)
    assert after.writes == calls + 101
    assert after.mean_batch_size > 30
    assert after.write_queue_length == 0
    assert await database.read(rows) == list(range(100))


async def test_a_batch_is_bounded(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "MAX_BATCH", 10)
    count, calls = batches(database)
    async with held(database.write) as (_, nursery):
        for n in range(25):
            nursery.start_soon(database.write, add(n))
    # 1, 10, 10 and 5.
    assert batches(database) == (count + 4, calls + 26)
    assert await database.read(rows) == list(range(25))


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
