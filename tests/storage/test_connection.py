"""Opening: what is created, what is refused, and that what is refused is left alone."""

import contextlib
import os
import sqlite3
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import structlog
import trio

from persona.errors import DatabaseError, MemoryFailure
from persona.storage import store
from persona.storage.connection import warn_of_wal_reset_bug
from persona.storage.pool import open_database


async def refusal(path: Path, *, busy_timeout_s: float = 5) -> str:
    """Why the file is refused."""
    with trio.fail_after(10), pytest.raises(DatabaseError) as caught:
        async with open_database(path, busy_timeout_s=busy_timeout_s):
            pass
    text = str(caught.value)
    assert str(path) in text
    assert "\n" not in text
    return text


async def fresh(path: Path) -> None:
    with trio.fail_after(10):
        async with open_database(path):
            pass


@pytest.fixture
def unprivileged() -> Iterator[Path]:
    """A directory, and a process whom file modes concern. `tmp_path` is out of reach for it."""
    with tempfile.TemporaryDirectory() as directory:
        if os.geteuid() != 0:
            yield Path(directory)
            return
        os.chown(directory, 65534, 65534)
        os.seteuid(65534)
        try:
            yield Path(directory)
        finally:
            os.seteuid(0)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


async def test_a_new_database_and_its_directories_are_private(tmp_path: Path) -> None:
    path = tmp_path / "made" / "here" / "p.db"
    with trio.fail_after(10):
        async with open_database(path) as database:
            await database.write(lambda conn: conn.execute("CREATE TABLE t (x)").rowcount)
            assert {mode(entry) for entry in path.parent.iterdir()} == {0o600}
            assert len(list(path.parent.iterdir())) == 4
    assert mode(tmp_path / "made") == mode(path.parent) == 0o700


async def test_what_exists_is_opened_again(tmp_path: Path) -> None:
    path = tmp_path / "a name with ?, # and ü.db"
    await fresh(path)
    with trio.fail_after(10):
        async with open_database(path) as database:
            assert len(await database.read(store.list_personas)) == 2
            await database.write(lambda conn: conn.execute("DELETE FROM personas").rowcount)
        async with open_database(path) as database:
            assert await database.read(store.list_personas) == []
    assert [entry.name for entry in tmp_path.iterdir()] == [path.name]


async def test_an_empty_file_is_a_new_database(tmp_path: Path) -> None:
    (tmp_path / "p.db").touch()
    await fresh(tmp_path / "p.db")


async def test_a_directory_is_refused(tmp_path: Path) -> None:
    assert "directory" in await refusal(tmp_path)


async def test_a_file_where_a_directory_should_be_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    await refusal(tmp_path / "file" / "p.db")
    assert (tmp_path / "file").read_text() == "mine"


def _garbage(_: bytes) -> bytes:
    return b"Dear diary, today I learned about databases.\n" * 500


def _header_only(good: bytes) -> bytes:
    return good[:100] + bytes(range(256)) * ((len(good) - 100) // 256)


def _truncated(good: bytes) -> bytes:
    return good[: len(good) // 2 // 4096 * 4096]


@pytest.mark.parametrize(
    ("spoil", "reason"), [(_garbage, "not a database"), (_header_only, "damaged"), (_truncated, "damaged")]
)
async def test_a_corrupt_file_is_refused_and_left_alone(tmp_path: Path, spoil: object, reason: str) -> None:
    path = tmp_path / "p.db"
    await fresh(path)
    assert callable(spoil)
    spoiled = spoil(path.read_bytes())
    path.write_bytes(spoiled)
    assert reason in await refusal(path)
    assert path.read_bytes() == spoiled


@pytest.mark.parametrize("in_log", [False, True])
async def test_a_newer_database_is_refused_and_left_alone(tmp_path: Path, in_log: bool) -> None:
    path = tmp_path / "p.db"
    await fresh(path)
    with contextlib.closing(sqlite3.connect(path)) as conn:
        if in_log:
            # As a program that was killed leaves it: the last changes are in the log alone.
            reader = sqlite3.connect(path)
            reader.execute("SELECT count(*) FROM personas").fetchall()
        conn.execute("PRAGMA user_version = 99")
        if in_log:
            log = (tmp_path / "p.db-wal").read_bytes()
            before = path.read_bytes()
            reader.close()
    if in_log:
        path.write_bytes(before)
        (tmp_path / "p.db-wal").write_bytes(log)
    before = path.read_bytes()
    text = await refusal(path)
    assert "newer" in text
    assert "99" in text
    assert path.read_bytes() == before


@pytest.mark.parametrize("application_id", [0, 1234])
async def test_another_programs_database_is_refused_and_left_alone(
    tmp_path: Path, application_id: int
) -> None:
    path = tmp_path / "p.db"
    with contextlib.closing(sqlite3.connect(path)) as conn:
        conn.execute(f"PRAGMA application_id = {application_id}")
        conn.execute("CREATE TABLE bookmarks (url)")
    before = path.read_bytes()
    assert "another program" in await refusal(path)
    assert path.read_bytes() == before


async def test_a_read_only_file_is_refused(unprivileged: Path) -> None:
    path = unprivileged / "p.db"
    await fresh(path)
    path.chmod(0o400)
    before = path.read_bytes()
    assert "writ" in await refusal(path)
    assert path.read_bytes() == before


async def test_a_read_only_directory_is_refused(unprivileged: Path) -> None:
    await fresh(unprivileged / "p.db")
    unprivileged.chmod(0o500)
    try:
        assert "writ" in await refusal(unprivileged / "p.db")
        assert "cannot be written" in await refusal(unprivileged / "other.db")
        assert "cannot be written" in await refusal(unprivileged / "more" / "p.db")
    finally:
        unprivileged.chmod(0o700)
    await fresh(unprivileged / "p.db")


async def test_a_database_that_is_locked_at_the_start_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    await fresh(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        assert "in use" in await refusal(path, busy_timeout_s=0.05)
    await fresh(path)


async def test_a_file_that_vanishes_is_not_created_anew(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    with trio.fail_after(10):
        async with open_database(path, readers=1) as database:
            with contextlib.suppress(MemoryFailure):
                await database.read(lambda conn: conn.close())
            path.rename(tmp_path / "moved.db")
            with pytest.raises(MemoryFailure):
                await database.read(store.list_personas)
            assert not path.exists()
            (tmp_path / "moved.db").rename(path)
            assert len(await database.read(store.list_personas)) == 2


@pytest.mark.parametrize(
    ("version", "affected"),
    [
        ((3, 6, 23), False),
        ((3, 7, 0), True),
        ((3, 40, 1), True),
        ((3, 51, 2), True),
        ((3, 51, 3), False),
        ((3, 53, 0), False),
    ],
)
def test_the_wal_reset_bug_is_warned_of(version: tuple[int, ...], affected: bool) -> None:
    with structlog.testing.capture_logs() as logs:
        assert warn_of_wal_reset_bug(version) is affected
    assert [line["event"] for line in logs] == ["sqlite_wal_reset_bug"] * affected


async def test_the_start_warns_of_the_wal_reset_bug(tmp_path: Path) -> None:
    with structlog.testing.capture_logs() as logs:
        await fresh(tmp_path / "p.db")
    events = [line["event"] for line in logs]
    assert events == ["sqlite_wal_reset_bug"] * ((3, 7, 0) <= sqlite3.sqlite_version_info <= (3, 51, 2))
