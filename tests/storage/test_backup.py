"""A backup is whole, private and checked, or it is not there; and the server goes on meanwhile."""

import contextlib
import itertools
import resource
import sqlite3
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from persona.errors import DatabaseError
from persona.storage import backup
from persona.storage.backup import back_up
from persona.storage.check import check
from persona.storage.connection import open_snapshot
from persona.storage.pool import Database, open_database
from tests.storage.lanes import add, create, rows
from tests.storage.saved import CONVERSATIONS, TURNS, save
from tests.storage.spoil import spoil_page, spoil_parent
from tests.storage.test_connection import unprivileged as unprivileged

PERSONA = (sys.executable, "-m", "persona")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save(tmp_path / "p.db")


@pytest.fixture
def target(tmp_path: Path) -> Path:
    """Where nothing else is."""
    (tmp_path / "saved").mkdir()
    return tmp_path / "saved" / "b.db"


def refusal(source: Path, target: Path, *, force: bool = False) -> str:
    """Why there is no backup. What is beside the target stays as it was."""
    folder = target.parent
    before = names(folder)
    with pytest.raises(DatabaseError) as caught:
        back_up(source, target, force=force)
    assert names(folder) == before
    assert caught.value.exit_code == 1
    text = str(caught.value)
    assert "\n" not in text
    return text


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir()) if folder.is_dir() else []


def content(path: Path) -> list[str]:
    with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as conn:
        return list(conn.iterdump())


def test_a_backup_is_the_whole_database_in_one_private_file(path: Path, target: Path) -> None:
    done = back_up(path, target)
    assert str(done) == (
        f"backed up {path} to {target}: 2 personas, {CONVERSATIONS} conversations, {TURNS} turns; "
        f"{target.stat().st_size / 1e6:.1f} MB, checked"
    )
    assert names(target.parent) == [target.name]
    assert stat.S_IMODE(target.stat().st_mode) == 0o600
    assert check(target).is_sound
    # It is read without a file beside it, so also where nothing can be written.
    assert names(target.parent) == [target.name]
    assert content(target) == content(path)


def test_what_a_killed_server_left_in_its_log_is_in_the_backup(path: Path, target: Path) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("PRAGMA wal_autocheckpoint = 0")
        conn.execute("DELETE FROM turns WHERE id > 10")
        assert back_up(path, target).rows["turns"] == 10


async def test_a_backup_in_a_write_loop_has_all_that_was_acknowledged(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    acknowledged: list[int] = []

    async def write(database: Database, numbers: "itertools.count[int]") -> None:
        while True:
            acknowledged.append(await database.write(add(next(numbers))))

    with trio.fail_after(60):
        async with open_database(path, wal_limit_bytes=128 * 1024) as database:
            await database.write(create)
            async with trio.open_nursery() as nursery:
                numbers = itertools.count()
                for _ in range(10):
                    nursery.start_soon(write, database, numbers)
                for round_ in range(3):
                    while len(acknowledged) < 200 * (round_ + 1):
                        await trio.sleep(0.01)
                    before = set(acknowledged)
                    target = tmp_path / f"{round_}.db"
                    # A process of its own, as SQLite's locks are then others.
                    await trio.run_process(
                        [*PERSONA, "backup", str(target), "--db", str(path)], capture_stdout=True
                    )
                    assert len(acknowledged) > len(before)
                    assert check(target).is_sound
                    with contextlib.closing(sqlite3.connect(target)) as conn:
                        found = rows(conn)
                    assert before <= set(found)
                nursery.cancel_scope.cancel()
            assert database.statistics().upkeep_failures == 0
            assert set(acknowledged) <= set(await database.read(rows))


async def test_writes_and_reads_go_on_while_it_copies(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    with trio.fail_after(20):
        async with open_database(path, busy_timeout_s=0.05) as database:
            await database.write(create)
            with open_snapshot(path) as conn:
                for n in range(10):
                    await database.write(add(n))
                assert await database.read(rows) == list(range(10))
                assert rows(conn) == []


async def test_a_restored_backup_serves(path: Path, target: Path) -> None:
    back_up(path, target)
    with trio.fail_after(20):
        async with open_database(target) as database:
            assert await database.read(lambda conn: conn.execute("PRAGMA journal_mode").fetchone()) == (
                "wal",
            )
            await database.write(create)
            await database.write(add(1))
    assert names(target.parent) == [target.name]


# What is there is kept


def test_a_file_that_is_there_is_kept_unless_forced(path: Path, target: Path) -> None:
    target.write_text("mine")
    assert "exists already" in refusal(path, target)
    assert target.read_text() == "mine"
    with target.open() as old:
        back_up(path, target, force=True)
        # Whoever has it open has the whole old one.
        assert old.read() == "mine"
    assert content(target) == content(path)
    assert stat.S_IMODE(target.stat().st_mode) == 0o600


def test_the_last_backup_is_kept_when_there_is_no_good_one(path: Path, target: Path) -> None:
    back_up(path, target)
    good = target.read_bytes()
    spoil_page(path, "turns")
    assert refusal(path, target, force=True).startswith(f"{path}: damaged, not backed up: turns: only ")
    assert target.read_bytes() == good


def test_orphans_are_no_reason_to_have_no_backup(path: Path, target: Path) -> None:
    spoil_parent(path)
    assert back_up(path, target).rows["turns"] == TURNS
    assert not check(target).is_sound


def test_half_a_file_is_not_backed_up(path: Path, target: Path) -> None:
    path.write_bytes(path.read_bytes()[: 4096 * 20])
    assert f"{path}: cannot be copied" in refusal(path, target)


def test_the_database_itself_is_no_target(path: Path, tmp_path: Path) -> None:
    before = path.read_bytes()
    (tmp_path / "link.db").symlink_to(path)
    for same in (path, tmp_path / "link.db"):
        assert "the database itself" in refusal(path, same, force=True)
    assert path.read_bytes() == before


async def test_a_database_that_is_served_is_no_target(path: Path, target: Path) -> None:
    with trio.fail_after(20):
        async with open_database(target):
            # An empty log, such as a server has that rests, is not what stops it.
            assert "in use by another persona server" in refusal(path, target, force=True)


def test_a_log_that_is_left_is_not_taken_for_the_backups_own(path: Path, target: Path) -> None:
    log = target.with_name("b.db-wal")
    log.write_bytes(b"frames")
    assert refusal(path, target).startswith(f"{log}: left by another database")
    log.write_bytes(b"")
    back_up(path, target)


def test_an_interrupt_leaves_nothing(path: Path, target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(conn: sqlite3.Connection) -> dict[str, int]:
        assert len(names(target.parent)) == 2, "the copy, and the lock"
        raise KeyboardInterrupt

    monkeypatch.setattr(backup, "count_rows", interrupted)
    with pytest.raises(KeyboardInterrupt):
        back_up(path, target)
    assert names(target.parent) == []


# What cannot be


def test_where_nothing_can_be_put(path: Path, tmp_path: Path) -> None:
    assert "a directory" in refusal(path, tmp_path, force=True)
    assert "there is no such directory" in refusal(path, tmp_path / "gone" / "b.db")
    assert "there is no such directory" in refusal(path, path / "b.db")


def test_what_is_not_there_cannot_be_backed_up(tmp_path: Path, target: Path) -> None:
    assert "No such file" in refusal(tmp_path / "gone.db", target)


def test_a_directory_that_cannot_be_written(unprivileged: Path) -> None:
    source = save(unprivileged / "p.db")
    folder = unprivileged / "sealed"
    folder.mkdir()
    folder.chmod(0o500)
    try:
        assert "cannot be written" in refusal(source, folder / "b.db")
    finally:
        folder.chmod(0o700)


def test_a_source_that_cannot_be_read(unprivileged: Path) -> None:
    source = save(unprivileged / "p.db")
    source.chmod(0o000)
    assert f"{source}: cannot be read; make the file readable" in refusal(source, unprivileged / "b.db")


def test_a_disk_that_takes_no_more(path: Path, target: Path) -> None:
    """Here as a limit to a file's size, which SQLite meets as it would a failing disk."""
    target.write_text("mine")
    limit = path.stat().st_size // 2
    done = subprocess.run(
        [*PERSONA, "backup", str(target), "--force", "--db", str(path)],
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit)),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"persona: error: {target}: ")
    assert "disk" in done.stderr
    assert done.stderr.count("\n") == 1
    assert names(target.parent) == [target.name]
    assert target.read_text() == "mine"
