"""The log is taken in when it is long and when nobody writes; it holds nobody up, and fails alone."""

import contextlib
import itertools
import shutil
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
import trio

from persona.storage import upkeep
from persona.storage.pool import Database, open_database
from persona.storage.upkeep import Upkeep
from tests.storage.lanes import Gate, Work, add, create, rows

LIMIT_BYTES = 64 * 1024
FAR_AWAY_S = 1000.0


def page(conn: sqlite3.Connection) -> None:
    """A row that fills a page of its own."""
    conn.execute("INSERT INTO pages (content) VALUES (randomblob(4000))")


def create_pages(conn: sqlite3.Connection) -> None:
    conn.execute("CREATE TABLE pages (content BLOB)")


async def until_checkpoints(database: Database, count: int) -> None:
    while database.statistics().wal_checkpoints < count:
        await trio.sleep(0.01)


@pytest.fixture(autouse=True)
def _always_look(monkeypatch: pytest.MonkeyPatch) -> None:
    """At the log's size, after each batch."""
    monkeypatch.setattr(upkeep, "LOOK_EVERY_S", 0.0)


# The writer's task


async def test_the_log_is_taken_in_when_it_is_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "IDLE_S", FAR_AWAY_S)
    log = tmp_path / "p.db-wal"
    sizes = []
    with trio.fail_after(20):
        async with open_database(tmp_path / "p.db", wal_limit_bytes=LIMIT_BYTES) as database:
            await database.write(create_pages)
            for _ in range(150):
                await database.write(page)
                sizes.append(log.stat().st_size)
            assert database.statistics().wal_checkpoints >= 5
            assert database.statistics().upkeep_failures == 0
    # The file is written again from its beginning, grows by one commit each time, and is cut before it is
    # twice as long; what one commit adds may come on top.
    assert LIMIT_BYTES <= max(sizes) < 2 * LIMIT_BYTES + 50_000
    assert sum(after < before for before, after in itertools.pairwise(sizes)) <= 2


async def test_the_log_is_looked_at_now_and_then(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "IDLE_S", FAR_AWAY_S)
    monkeypatch.setattr(upkeep, "LOOK_EVERY_S", 0.02)
    with trio.fail_after(20):
        async with open_database(tmp_path / "p.db", wal_limit_bytes=LIMIT_BYTES) as database:
            await database.write(create_pages)
            while database.statistics().wal_checkpoints < 3:
                await database.write(page)
            assert database.statistics().writes >= 3 * LIMIT_BYTES // 20_000


async def test_a_log_under_the_limit_is_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upkeep, "IDLE_S", FAR_AWAY_S)
    with trio.fail_after(20):
        async with open_database(tmp_path / "p.db", wal_limit_bytes=64 * 1024 * 1024) as database:
            await database.write(create_pages)
            # More than the 1000 pages after which SQLite would do it in the middle of a commit.
            await database.write(lambda conn: [page(conn) for _ in range(1500)])
            await database.write(page)
            assert (tmp_path / "p.db-wal").stat().st_size > 1500 * 4096
            assert (tmp_path / "p.db").stat().st_size < 100 * 4096
            assert database.statistics().wal_checkpoints == 0


async def test_when_nobody_writes_the_file_alone_is_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "IDLE_S", 0.05)
    with trio.fail_after(20):
        async with open_database(tmp_path / "p.db") as database:
            await database.write(create)
            await until_checkpoints(database, 1)
            for n in range(3):
                await database.write(add(n))
                await until_checkpoints(database, n + 2)
                assert (tmp_path / "p.db-wal").stat().st_size == 0
                shutil.copy(tmp_path / "p.db", tmp_path / "copy.db")
                with contextlib.closing(sqlite3.connect(tmp_path / "copy.db")) as conn:
                    assert rows(conn) == list(range(n + 1))


async def test_a_long_reader_holds_up_neither_writes_nor_the_log_for_ever(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "IDLE_S", FAR_AWAY_S)
    monkeypatch.setattr(upkeep, "READER_WAIT_S", 0.001)
    gate = Gate()

    has_read = trio.Event()

    async def read_long(database: Database) -> None:
        await database.read(lambda conn: (conn.execute("SELECT count(*) FROM pages").fetchone(), gate(conn)))
        has_read.set()

    with trio.fail_after(40):
        async with (
            open_database(tmp_path / "p.db", wal_limit_bytes=LIMIT_BYTES, busy_timeout_s=30) as database,
            trio.open_nursery() as nursery,
        ):
            await database.write(create_pages)
            nursery.start_soon(read_long, database)
            await gate.entered.wait()
            for _ in range(100):
                await database.write(page)
            statistics = database.statistics()
            # Some 900 kB: not tried again after each write, but each time that so much has been added.
            assert 3 <= statistics.wal_checkpoints_put_off <= 20
            assert statistics.wal_checkpoints == 0
            gate.open()
            await has_read.wait()
            for _ in range(40):
                await database.write(page)
            assert database.statistics().wal_checkpoints >= 1
            sizes = []
            for _ in range(100):
                await database.write(page)
                sizes.append((tmp_path / "p.db-wal").stat().st_size)
            assert max(sizes[50:]) < 2 * LIMIT_BYTES + 50_000


async def test_a_checkpoint_that_fails_harms_no_write(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "IDLE_S", 0.02)
    refused: set[str] = {"wal_checkpoint"}

    def authorize(_action: int, name: str | None, *_: object) -> int:
        return sqlite3.SQLITE_DENY if name in refused else sqlite3.SQLITE_OK

    with trio.fail_after(20), structlog.testing.capture_logs() as logs:
        async with open_database(tmp_path / "p.db", wal_limit_bytes=LIMIT_BYTES) as database:
            await database.write(create)
            await database.write(lambda conn: conn.set_authorizer(authorize))
            await database.write(add(0))
            while database.statistics().upkeep_failures < 2:
                await trio.sleep(0.01)
            for n in range(1, 4):
                await database.write(add(n))
            before = database.statistics()
            refused.clear()
            await until_checkpoints(database, before.wal_checkpoints + 1)
            assert await database.read(rows) == [0, 1, 2, 3]
            assert database.statistics().replaced_connections == 0
    failures = [line for line in logs if line["event"] == "database_upkeep_failed"]
    assert len(failures) >= 2
    # Each pause is longer than the one before.
    assert failures[0]["retry_after_s"] < failures[1]["retry_after_s"]
    assert failures[0]["code"] == "SQLITE_AUTH"


async def test_closing_does_not_wait_for_who_reads_elsewhere(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        with trio.fail_after(20):
            async with open_database(path, busy_timeout_s=60) as database:
                await database.write(create)
                other.execute("BEGIN")
                assert rows(other) == []
                await database.write(add(1))
        assert rows(other) == []
    with trio.fail_after(20):
        async with open_database(path) as database:
            assert await database.read(rows) == [1]


async def test_a_call_that_comes_as_the_rest_ends_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "IDLE_S", 0.001)
    with trio.fail_after(40):
        async with open_database(tmp_path / "p.db") as database:
            await database.write(create)
            count = 0
            while count < 100 or database.statistics().wal_checkpoints < 10:
                # Before, at and after the moment in which the writer turns to the log.
                await trio.sleep(count % 10 * 0.001)
                await database.write(add(count))
                count += 1
            assert await database.read(rows) == list(range(count))


# What it does on a connection


@pytest.fixture
def conn(tmp_path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(tmp_path / "u.db", isolation_level=None, timeout=7)) as opened:
        opened.execute("PRAGMA journal_mode = WAL")
        opened.execute("PRAGMA wal_autocheckpoint = 0")
        create(opened)
        yield opened


@pytest.fixture
def kept(tmp_path: Path, conn: sqlite3.Connection) -> Upkeep:
    return Upkeep(tmp_path / "u.db-wal", LIMIT_BYTES)


def test_nothing_to_do_is_no_reason_to_wake(kept: Upkeep, conn: sqlite3.Connection) -> None:
    assert not kept.has_log
    kept.after_batch()
    assert (kept.has_log, kept.is_due, kept.batches) == (True, False, 1)
    kept.run(conn)
    assert (kept.has_log, kept.is_due, kept.checkpoints) == (False, False, 1)


def test_a_log_that_is_full_is_written_again_from_its_beginning(
    tmp_path: Path, kept: Upkeep, conn: sqlite3.Connection
) -> None:
    def size() -> int:
        return (tmp_path / "u.db-wal").stat().st_size

    create_pages(conn)
    while not kept.is_due:
        page(conn)
        kept.after_batch()
    full = size()
    assert full >= LIMIT_BYTES
    kept.run(conn)
    assert (size(), kept.checkpoints) == (full, 1)
    page(conn)
    kept.after_batch()
    assert (size(), kept.is_due, kept.has_log) == (full, False, True)
    while not kept.is_due:
        page(conn)
        kept.after_batch()
    assert full < size() < full + 50_000
    # When nobody writes it is cut.
    kept.is_due = False
    kept.run(conn)
    assert size() == 0


def test_pauses_double_while_a_reader_holds_on(
    tmp_path: Path, kept: Upkeep, conn: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "READER_WAIT_S", 0.001)
    with contextlib.closing(sqlite3.connect(tmp_path / "u.db", isolation_level=None)) as reader:
        reader.execute("BEGIN")
        rows(reader)
        add(1)(conn)
        pauses = []
        for _ in range(10):
            kept.run(conn)
            pauses.append(kept.pause_s)
    assert pauses[:3] == [2 * upkeep.IDLE_S, 4 * upkeep.IDLE_S, 8 * upkeep.IDLE_S]
    assert pauses[-1] == upkeep.MAX_PAUSE_S
    assert (kept.checkpoints, kept.put_off, kept.failures) == (0, 10, 0)
    kept.run(conn)
    assert (kept.checkpoints, kept.pause_s) == (1, upkeep.IDLE_S)


def test_a_write_waits_as_long_as_ever(kept: Upkeep, conn: sqlite3.Connection) -> None:
    def refuses(connection: sqlite3.Connection, work: Work) -> None:
        with pytest.raises(sqlite3.Error):
            work(connection)

    kept.begin(conn)
    kept.run(conn)
    conn.set_authorizer(lambda action, name, *_: name == "wal_checkpoint")
    refuses(conn, kept.run)  # type: ignore[arg-type]
    conn.set_authorizer(None)
    assert conn.execute("PRAGMA busy_timeout").fetchone() == (7000,)


def test_the_planners_statistics_are_kept(
    kept: Upkeep, conn: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    said: list[str] = []
    conn.set_trace_callback(said.append)

    def optimized() -> list[str]:
        found = [line for line in said if "optimize" in line]
        said.clear()
        return found

    kept.begin(conn)
    assert "PRAGMA analysis_limit = 400" in said
    assert optimized() == ["PRAGMA optimize = 65538"]
    kept.run(conn)
    assert optimized() == []
    monkeypatch.setattr(upkeep, "OPTIMIZE_EVERY_S", -1.0)
    kept.end(conn)
    assert optimized() == ["PRAGMA optimize"]
    kept.run(conn)
    assert optimized() == ["PRAGMA optimize"]
