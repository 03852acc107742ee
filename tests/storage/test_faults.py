"""What a disk does to a database: an `fsync` that fails, and files that are damaged when it is opened."""

import contextlib
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import structlog.testing
import trio

from persona.errors import DatabaseError, MemoryFailure
from persona.model import Conversation, NewTurn
from persona.storage import connection, store
from persona.storage import turns as stored_turns
from persona.storage.pool import Database, open_database
from tests.disk import Injector, Unwritable, needs_fiu
from tests.storage.lanes import add, create, rows

PAGE_BYTES = 4096


@needs_fiu
async def test_a_commit_after_a_failed_fsync_survives_a_power_cut(tmp_path: Path) -> None:
    """After an `fsync` that failed, Linux takes the pages for clean: what they held may never reach the
    disk. The copies that `power_cut` makes show what such a disk holds after a power cut."""
    command = [*Injector(tmp_path / "fiu").command, sys.executable, "-m", "tests.storage.power_cut"]
    with trio.fail_after(30):
        done = await trio.run_process([*command, str(tmp_path / "p.db")], capture_stdout=True)
    # That which was not acknowledged may be there or not; it was, which makes this the hard case.
    assert done.stdout.decode().splitlines()[-1] == "[1, 3] [1, 2]"
    synced, written, log = ((tmp_path / name).read_bytes() for name in ("synced", "written", "final-wal"))
    assert written.startswith(synced)
    assert len(written) > len(synced)
    lost = range(len(synced), len(written))
    disk = tmp_path / "disk"
    disk.mkdir()
    shutil.copy(tmp_path / "final", disk / "p.db")
    # What was written over since is on the disk, by an `fsync` that did not fail.
    (disk / "p.db-wal").write_bytes(
        bytes(0 if n in lost and written[n] == byte else byte for n, byte in enumerate(log))
    )
    with contextlib.closing(sqlite3.connect(disk / "p.db")) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert set(rows(conn)) >= {1, 3}


def breaks(conn: sqlite3.Connection) -> None:
    half_read = conn.execute("SELECT n FROM log")
    half_read.fetchone()
    error = sqlite3.DatabaseError("database disk image is malformed")
    error.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
    raise error


async def test_a_program_that_reads_all_the_time_does_not_keep_the_writer_from_returning(
    tmp_path: Path,
) -> None:
    """As those do that copy the log to another machine."""
    with trio.fail_after(20):
        async with open_database(tmp_path / "p.db", readers=1, busy_timeout_s=0.05) as database:
            await database.write(create)
            await database.write(add(1))
            with contextlib.closing(sqlite3.connect(tmp_path / "p.db", isolation_level=None)) as other:
                other.execute("BEGIN")
                assert rows(other) == [1]
                with pytest.raises(MemoryFailure):
                    await database.write(breaks)
                await database.write(add(2))
                assert await database.read(rows) == [1, 2]
                assert rows(other) == [1]
            assert database.statistics().replaced_connections == 1


async def test_a_broken_connection_is_closed_even_while_its_error_is_kept(tmp_path: Path) -> None:
    """Whoever closes last clears the log away: that shows that nobody is left."""
    with trio.fail_after(20):
        async with open_database(tmp_path / "p.db", readers=1) as database:
            await database.write(create)
            await database.write(add(1))
            await database.write(add(2))
            with pytest.raises(MemoryFailure) as kept_by_writer:
                await database.write(breaks)
            assert (tmp_path / "p.db-wal").exists()
            with pytest.raises(MemoryFailure) as kept_by_reader:
                await database.read(breaks)
            assert not (tmp_path / "p.db-wal").exists()
            await database.write(add(3))
            assert await database.read(rows) == [1, 2, 3]
            assert kept_by_writer.value.retry_after_s == kept_by_reader.value.retry_after_s == 5.0


async def test_a_connection_made_while_the_file_is_read_only_is_not_kept(
    tmp_path: Path, unwritable: Unwritable
) -> None:
    path = tmp_path / "p.db"
    with trio.fail_after(20):
        async with open_database(path, readers=1) as database:
            await database.write(create)
            await database.write(add(1))
            with unwritable(path, tmp_path / "p.db-wal"):
                for message in ("could not be read or written", "cannot be written", "cannot be written"):
                    with pytest.raises(MemoryFailure, match=message) as caught:
                        await database.write(add(2))
                    assert caught.value.retry_after_s is not None
                    assert await database.read(rows) == [1]
            await database.write(add(3))
            assert await database.read(rows) == [1, 3]


# At the start.


async def write_turns(path: Path, *, last: int = 400) -> None:
    """A database with a conversation of many pages."""
    async with open_database(path, readers=1) as database:
        (persona, *_) = await database.read(store.list_personas)
        conversation = Conversation(
            id="c", persona_id=persona.id, user="anonymous", created_at=0.0, updated_at=0.0
        )
        await database.write(lambda conn: store.create_conversation(conn, conversation))
        await append_turns(database, last)


async def append_turns(database: Database, count: int) -> None:
    turns = [
        NewTurn(role="user", speaker_id="", content=f"{n} {'.' * 300}", created_at=0.0) for n in range(count)
    ]
    await database.write(lambda conn: stored_turns.append_turns(conn, "c", turns))


def contents(folder: Path) -> dict[str, bytes]:
    """All files, but the index of the log, which SQLite makes anew whenever it looks at a database."""
    return {file.name: file.read_bytes() for file in folder.iterdir() if not file.name.endswith("-shm")}


def _header(good: bytes) -> bytes:
    return b"\xff" * 100 + good[100:]


def _page_in_the_middle(good: bytes) -> bytes:
    middle = len(good) // PAGE_BYTES // 2 * PAGE_BYTES
    return good[:middle] + b"\xff" * PAGE_BYTES + good[middle + PAGE_BYTES :]


def _truncated(good: bytes) -> bytes:
    return good[: len(good) // 2]


DAMAGES: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "header": (_header, "not a database"),
    "page_in_the_middle": (_page_in_the_middle, "damaged; restore a backup"),
    "truncated": (_truncated, "damaged; restore a backup"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("has_log", [False, True], ids=["stopped", "killed"])
async def test_a_damaged_file_is_refused_and_nothing_overwritten(
    tmp_path: Path, damage: str, has_log: bool
) -> None:
    spoil, reason = DAMAGES[damage]
    made, found = tmp_path / "made", tmp_path / "found"
    made.mkdir()
    found.mkdir()
    await write_turns(made / "p.db")
    with contextlib.ExitStack() as stack:
        if has_log:
            # As a program that was killed leaves it: some changes are in the log alone.
            conn = stack.enter_context(contextlib.closing(sqlite3.connect(made / "p.db")))
            conn.execute("UPDATE personas SET description = 'changed'")
            conn.commit()
            shutil.copy(made / "p.db-wal", found / "p.db-wal")
        (found / "p.db").write_bytes(spoil((made / "p.db").read_bytes()))
    before = contents(found)
    with trio.fail_after(10), pytest.raises(DatabaseError, match=reason) as caught:
        async with open_database(found / "p.db"):
            pass
    assert str(found / "p.db") in str(caught.value)
    assert "\n" not in str(caught.value)
    after = contents(found)
    assert {name: after.pop(name) for name in before} == before
    # Looking at a database may leave an empty log.
    assert set(after.values()) <= {b""}


async def test_a_log_of_garbage_is_passed_over(tmp_path: Path) -> None:
    """It holds no transaction that was ever committed, so there is nothing in it to lose."""
    path = tmp_path / "p.db"
    await write_turns(path)
    (tmp_path / "p.db-wal").write_bytes(bytes(range(256)) * 200)
    with trio.fail_after(10):
        async with open_database(path) as database:
            page = await database.read(lambda conn: stored_turns.recent_turns(conn, "c", 1000))
            turns = [t for t, _ in page.turns]
            assert len(turns) == 400
            await append_turns(database, 1)


async def test_a_log_with_a_torn_end_loses_no_whole_transaction(tmp_path: Path) -> None:
    path, found = tmp_path / "p.db", tmp_path / "found"
    found.mkdir()
    with trio.fail_after(10):
        async with open_database(path, readers=1) as database:
            await database.write(create)
            await database.write(add(1))
            whole = (tmp_path / "p.db-wal").stat().st_size
            await database.write(add(2))
            with trio.CancelScope(shield=True):
                for name in ("p.db", "p.db-wal"):
                    # Not here: to close a file lets go of all of SQLite's locks on it.
                    await trio.run_process(["cp", str(tmp_path / name), str(found / name)])
        with (found / "p.db-wal").open("r+b") as log:
            log.truncate(whole + 1000)
        async with open_database(found / "p.db", readers=1) as database:
            assert await database.read(rows) == [1]


async def test_a_large_file_is_not_looked_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "p.db"
    await write_turns(path)
    path.write_bytes(_page_in_the_middle(path.read_bytes()))
    for limit, is_refused in ((path.stat().st_size, True), (path.stat().st_size - 1, False)):
        monkeypatch.setattr(connection, "MAX_CHECKED_BYTES", limit)
        with (
            structlog.testing.capture_logs() as logs,
            trio.fail_after(10),
            pytest.raises(DatabaseError, match="damaged") if is_refused else contextlib.nullcontext(),
        ):
            async with open_database(path) as database:
                assert await database.read(store.list_personas)
        events = [entry["event"] for entry in logs]
        assert ("database_not_checked" in events) is not is_refused
