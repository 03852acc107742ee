"""Damage is found, told in words, and the advice helps; nothing is changed by looking."""

import contextlib
import re
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from persona.errors import DatabaseUnreadable
from persona.storage.check import check
from persona.storage.pool import open_database
from persona.storage.turns import append_turns
from tests.storage.lanes import Gate
from tests.storage.saved import CONVERSATIONS, TURNS, save, say, talk
from tests.storage.spoil import spoil_entry, spoil_free_list, spoil_page, spoil_parent, spoil_value

SOUND = f"sound; 2 personas, {CONVERSATIONS} conversations, {TURNS} turns"
RESTORE = "restore the last backup"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save(tmp_path / "p.db")


def advised(path: Path) -> None:
    """Do what the report advises."""
    (finding,) = check(path).findings
    found = re.search(r"`sqlite3 (\S+) (.*?)`", finding.remedy)
    assert found is not None
    assert found[1] == str(path)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute(found[2].strip('"'))


def test_a_sound_database(path: Path) -> None:
    content = path.read_bytes()
    report = check(path)
    assert report.is_sound
    assert list(report.lines()) == [f"{path}: {SOUND}"]
    assert path.read_bytes() == content


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("turns", r"turns: only \d+ rows of it can be read"),
        ("turns_siblings", rf"turns: an index of it is damaged; all its {TURNS} rows can be read"),
        ("conversations", r"conversations: only 0 rows of it can be read"),
        ("conversations_user", rf"conversations: an index .*all its {CONVERSATIONS} rows can be read"),
    ],
)
def test_an_overwritten_page(path: Path, name: str, says: str) -> None:
    spoil_page(path, name)
    content = path.read_bytes()
    report = check(path)
    (finding,) = report.findings
    assert re.match(says, str(finding))
    assert RESTORE in finding.remedy
    lines = list(report.lines())
    assert lines == [f"{path}: damaged", f"  {finding}", "What to do:", f"  {finding.remedy}"]
    assert path.read_bytes() == content


def test_the_rows_that_can_be_read_are_counted(path: Path) -> None:
    spoil_page(path, "turns")
    (finding,) = check(path).findings
    found = re.search(r"only (\d+) rows", finding.text)
    assert found is not None
    assert TURNS - 20 <= int(found[1]) < TURNS


@pytest.mark.parametrize(
    ("spoil", "says", "turns"),
    [
        (spoil_entry, "turns: an index of it does not agree with it", TURNS - 1),
        (spoil_free_list, "the file itself: pages that no table has are damaged", TURNS),
        (
            spoil_parent,
            f"turns: {TURNS // CONVERSATIONS} rows refer by conversation_id to rows of conversations",
            TURNS - TURNS // CONVERSATIONS,
        ),
    ],
)
def test_the_advice_helps(path: Path, spoil: Callable[[Path], None], says: str, turns: int) -> None:
    spoil(path)
    (finding,) = check(path).findings
    assert str(finding).startswith(says)
    advised(path)
    report = check(path)
    assert report.is_sound
    assert report.rows["turns"] == turns


def test_a_row_that_holds_what_it_must_not(path: Path) -> None:
    spoil_value(path)
    (finding,) = check(path).findings
    assert str(finding) == "turns: a row of it holds what it must not (NULL value in turns.content)"
    assert "correct these rows" in finding.remedy


def test_everything_that_is_wrong_is_told_and_each_advice_once(path: Path) -> None:
    spoil_parent(path)
    spoil_page(path, "interaction_states")
    spoil_page(path, "personas_name_key")
    report = check(path)
    assert [finding.table for finding in report.findings] == ["personas", "interaction_states", "turns"]
    lines = list(report.lines())
    assert len(lines) == 1 + 3 + 1 + 2
    assert lines[4] == "What to do:"


def test_half_a_file_is_damaged(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2 // 4096 * 4096])
    (finding,) = check(path).findings
    assert str(finding) == "the file itself: database disk image is malformed"
    assert RESTORE in finding.remedy


def _newer(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as conn:
        conn.execute("PRAGMA user_version = 99")


def _foreign(path: Path) -> None:
    with contextlib.closing(sqlite3.connect(path)) as conn:
        conn.execute("PRAGMA application_id = 7")


@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (Path.unlink, "No such file"),
        (lambda path: path.write_text("Dear diary, " * 1000), "not a database"),
        (lambda path: path.write_bytes(b""), "empty"),
        (_newer, "newer version"),
        (_foreign, "another program's"),
    ],
)
def test_what_cannot_be_looked_at(path: Path, spoil: Callable[[Path], object], says: str) -> None:
    spoil(path)
    existed = path.exists()
    with pytest.raises(DatabaseUnreadable, match=says) as caught:
        check(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert caught.value.exit_code == 2
    assert path.exists() == existed


def test_a_directory_cannot_be_looked_at(tmp_path: Path) -> None:
    with pytest.raises(DatabaseUnreadable, match="a directory"):
        check(tmp_path)


def test_the_log_of_a_killed_server_is_read_and_left(path: Path, tmp_path: Path) -> None:
    killed = tmp_path / "killed"
    killed.mkdir()
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("PRAGMA wal_autocheckpoint = 0")
        conn.execute("DELETE FROM turns WHERE id = 1")
        for name in ("p.db", "p.db-wal"):
            shutil.copy(tmp_path / name, killed / name)
    before = [(killed / name).read_bytes() for name in ("p.db", "p.db-wal")]
    assert len(before[1]) > 0
    report = check(killed / "p.db")
    assert report.rows["turns"] == TURNS - 1
    assert [(killed / name).read_bytes() for name in ("p.db", "p.db-wal")] == before


async def test_beside_a_server_that_writes(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    with trio.fail_after(20):
        async with open_database(path) as database:
            await database.write(talk)
            async with trio.open_nursery() as nursery:
                gate = Gate()
                # In the middle of a transaction.
                nursery.start_soon(database.write, lambda conn: (say_one(conn), gate(conn)))
                await gate.entered.wait()
                report = await trio.to_thread.run_sync(check, path)
                gate.open()
            assert list(report.lines()) == [f"{path}: {SOUND}"]
            assert (await trio.to_thread.run_sync(check, path)).rows["turns"] == TURNS + 1


def say_one(conn: sqlite3.Connection) -> None:
    append_turns(conn, "c0", [say(0)])
