"""The database's figures: each moves when that which it counts happens, and by as much."""

import contextlib
import re
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

import persona.testing
from persona.errors import MemoryFailure, Overloaded
from persona.metrics import Metrics
from persona.storage import queue, upkeep
from persona.storage.batch import FAILURE_KINDS, LOCK_WAIT_S
from persona.storage.connection import open_snapshot
from persona.storage.figures import DatabaseFigures
from persona.storage.pool import Database, open_database
from tests.storage.lanes import ENDLESS, Gate, add, create, held, rows


def figures(database: Database) -> Metrics:
    metrics = Metrics()
    metrics.registry.register(DatabaseFigures(database.statistics))
    return metrics


@contextlib.asynccontextmanager
async def impatient(path: Path, **options: float) -> AsyncIterator[Database]:
    with trio.fail_after(20):
        async with open_database(path, **options) as database:  # type: ignore[arg-type]
            await database.write(create)
            yield database


async def test_batches_and_queues_are_counted_for_each_side(database: Database) -> None:
    metrics = figures(database)
    value = metrics.value
    before = value("database_batch_size_sum", side="write")
    async with held(database.write) as (_, nursery):
        for n in range(9):
            nursery.start_soon(database.write, add(n))
        await trio.testing.wait_all_tasks_blocked()
        assert value("database_queue_length", side="write") == 9
        assert value("database_queue_length", side="read") == 0
    assert value("database_queue_length", side="write") == 0
    assert value("database_batch_size_sum", side="write") - before == 10
    # The one that was held, alone, and nine together: above 8 and not above 16.
    sizes = {size: value("database_batch_size_bucket", side="write", le=size) for size in ("8.0", "16.0")}
    assert sizes["16.0"] - sizes["8.0"] == 1
    assert value("database_batch_size_count", side="read") == 0
    await database.read(rows)
    assert value("database_batch_size_count", side="read") == 1


async def test_the_wait_is_that_of_the_call_that_came_first(database: Database) -> None:
    metrics = figures(database)
    count, total = (metrics.value(f"database_wait_seconds_{what}", side="read") for what in ("count", "sum"))
    first, second = Gate(), Gate()
    try:
        async with trio.open_nursery() as nursery:
            for gate in (first, second):
                nursery.start_soon(database.read, gate)
                await gate.entered.wait()
            assert metrics.value("database_readers_busy") == 2
            for _ in range(5):
                nursery.start_soon(database.read, rows)
            await trio.testing.wait_all_tasks_blocked()
            await trio.sleep(0.3)
            first.open()
            second.open()
    finally:
        first.open()
        second.open()
    assert metrics.value("database_readers_busy") == 0
    # Two that did not wait, and five together that did: once.
    assert metrics.value("database_wait_seconds_count", side="read") - count == 3
    assert 0.3 <= metrics.value("database_wait_seconds_sum", side="read") - total < 5


async def test_a_commit_is_timed_once_for_all_that_share_it(database: Database) -> None:
    metrics = figures(database)
    count, total = (metrics.value(f"database_commit_seconds_{what}") for what in ("count", "sum"))
    async with held(database.write) as (_, nursery):
        for n in range(20):
            nursery.start_soon(database.write, add(n))
    await database.read(rows)
    assert metrics.value("database_commit_seconds_count") - count == 2
    assert 0 < metrics.value("database_commit_seconds_sum") - total < 5


async def test_a_transaction_that_fails_has_no_commit_time(database: Database) -> None:
    def orphan(conn: sqlite3.Connection) -> None:
        conn.execute("PRAGMA defer_foreign_keys = ON")
        conn.execute("INSERT INTO log (n, parent) VALUES (7, 999)")

    metrics = figures(database)
    before = metrics.value("database_commit_seconds_count")
    with pytest.raises(MemoryFailure):
        await database.write(orphan)
    assert metrics.value("database_commit_seconds_count") == before
    assert metrics.value("database_failures_total", kind="constraint") == 1


async def test_a_lock_that_another_program_holds_is_seen(tmp_path: Path) -> None:
    async with impatient(tmp_path / "p.db", busy_timeout_s=10) as database:
        metrics = figures(database)
        before, waited_s = (
            metrics.value(f"database_lock_{what}_total") for what in ("waits", "wait_seconds")
        )
        with contextlib.closing(
            sqlite3.connect(tmp_path / "p.db", isolation_level=None, check_same_thread=False)
        ) as other:
            other.execute("BEGIN IMMEDIATE")
            async with trio.open_nursery() as nursery:
                nursery.start_soon(database.write, add(1))
                await trio.sleep(0.3)
                other.execute("ROLLBACK")
        assert metrics.value("database_lock_waits_total") == before + 1
        assert 0.2 < metrics.value("database_lock_wait_seconds_total") - waited_s < 10
        assert LOCK_WAIT_S < 0.2
        # What finds the lock free is not counted, but where the processor was elsewhere for so long.
        for n in range(2, 42):
            await database.write(add(n))
        assert metrics.value("database_lock_waits_total") - before < 20
        assert metrics.value("database_failures_total", kind="busy") == 0


async def test_failures_are_counted_by_kind(tmp_path: Path) -> None:
    async with impatient(tmp_path / "p.db", busy_timeout_s=0.05) as database:
        metrics = figures(database)

        def failures() -> dict[str, float]:
            counts = {kind: metrics.value("database_failures_total", kind=kind) for kind in FAILURE_KINDS}
            return {kind: count for kind, count in counts.items() if count}

        assert failures() == {}
        with contextlib.closing(sqlite3.connect(tmp_path / "p.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(MemoryFailure):
                await database.write(add(1))
        assert failures() == {"busy": 1}
        for _ in range(2):
            with pytest.raises(MemoryFailure):
                await database.read(add(1))
        assert failures() == {"busy": 1, "readonly": 2}
        with pytest.raises(MemoryFailure):
            await database.write(lambda conn: conn.execute("SELECT secret FROM nowhere"))
        assert failures() == {"busy": 1, "readonly": 2, "other": 1}
        assert metrics.value("database_connections_replaced_total") == 0
        with contextlib.suppress(MemoryFailure):
            await database.write(lambda conn: conn.close())
        assert metrics.value("database_connections_replaced_total") == 1


async def test_a_read_that_was_interrupted_for_its_caller_is_no_failure(tmp_path: Path) -> None:
    async with impatient(tmp_path / "p.db", readers=1) as database:
        with trio.move_on_after(0.05) as scope:
            await database.read(lambda conn: conn.execute(ENDLESS).fetchone())
        assert scope.cancelled_caught
        assert await database.read(rows) == []
        assert sum(database.statistics().failures.values()) == 0


async def test_a_full_queue_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(queue, "MAX_ADMISSION_S", 0.05)
    async with impatient(tmp_path / "p.db", max_queue=1) as database:
        metrics = figures(database)
        async with held(database.write):
            with pytest.raises(Overloaded):
                await database.write(add(1))
        assert metrics.value("database_refused_total", side="write") == 1
        assert metrics.value("database_refused_total", side="read") == 0


async def test_the_size_of_the_log_is_that_of_its_file(database: Database, tmp_path: Path) -> None:
    metrics = figures(database)
    for n in range(10):
        await database.write(add(n))
    size = (tmp_path / "p.db-wal").stat().st_size
    assert size > 10 * 4096
    assert metrics.value("database_wal_bytes") == size


async def test_without_a_file_there_is_no_log(autojump_clock: trio.testing.MockClock) -> None:
    async with open_database(":memory:", threads=False) as database:
        await database.write(create)
        metrics = figures(database)
        assert metrics.value("database_wal_bytes") == 0
        assert metrics.value("database_commit_seconds_count") == 1


async def test_a_servers_metrics_show_its_database(autojump_clock: trio.testing.MockClock) -> None:
    async with persona.testing.open_server() as server, server.connect() as client:
        before = server.server.metrics.value("database_batch_size_sum", side="write")
        await client.switch("aria")
        await client.chat("Hello")
        assert server.server.metrics.value("database_batch_size_sum", side="write") > before


async def test_the_docs_name_every_one_of_them(database: Database) -> None:
    text = (Path(persona.__file__).parent.parent / "docs" / "operations.md").read_text(encoding="utf-8")
    named = {name.removesuffix("_total") for name in re.findall(r"`(persona_database_[a-z_]+)", text)}
    assert named == {family.name for family in DatabaseFigures(database.statistics).collect()}


async def test_checkpoints_are_counted_by_what_came_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`database.wal_limit_bytes` is reached, while nobody reads, while somebody does, and in vain."""
    monkeypatch.setattr(upkeep, "LOOK_EVERY_S", 0.0)
    monkeypatch.setattr(upkeep, "IDLE_S", 1000.0)
    path, kinds = tmp_path / "p.db", ("wal_checkpoints", "wal_checkpoints_put_off", "upkeep_failures")

    async with impatient(path, wal_limit_bytes=64 * 1024) as database:
        metrics = figures(database)

        async def counted_after_writing() -> list[float]:
            before = [metrics.value(f"database_{kind}_total") for kind in kinds]
            for _ in range(70):
                await database.write(
                    lambda conn: conn.execute("INSERT INTO pages VALUES (randomblob(4000))").rowcount
                )
            return [
                metrics.value(f"database_{kind}_total") - count
                for kind, count in zip(kinds, before, strict=True)
            ]

        await database.write(lambda conn: conn.execute("CREATE TABLE pages (content)").rowcount)
        done, put_off, failed = await counted_after_writing()
        assert done > 0
        assert put_off == failed == 0
        with open_snapshot(path):
            done, put_off, failed = await counted_after_writing()
            assert put_off > 0
            assert failed == 0
        await database.write(
            lambda conn: conn.set_authorizer(
                lambda _, name, *__: sqlite3.SQLITE_DENY if name == "wal_checkpoint" else sqlite3.SQLITE_OK
            )
        )
        done, put_off, failed = await counted_after_writing()
        assert failed > 0
        assert done == put_off == 0
        await database.write(lambda conn: conn.set_authorizer(None))
