"""The file that every side is given, and what is found out about it afterwards."""

import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from loadgen.storage.job import CONTENT, CONTENT_BYTES, INSERT, READ, READ_TURNS, Job, WrongResult, connect


@pytest.fixture
def path(job: Job, tmp_path: Path) -> Path:
    copied = tmp_path / "run.db"
    job.copy(copied)
    return copied


def append(path: Path, *rows: tuple[object, ...]) -> list[str]:
    with closing(connect(path, "WAL", "normal")) as conn:
        for row in rows:
            conn.execute(INSERT, row)
    return [str(row[4]) for row in rows]


def test_a_read_finds_the_last_turns_of_one_conversation_among_many(job: Job, path: Path) -> None:
    with closing(connect(path, "WAL", "full")) as conn:
        rows = conn.execute(READ, job.read_values).fetchall()
        (total,) = conn.execute("SELECT count(*) FROM turns").fetchone()
        (own,) = conn.execute("SELECT count(*) FROM turns WHERE conversation_id = 'c0'").fetchone()
    assert (total, own, len(rows)) == (4000, 40, READ_TURNS)
    assert tuple(row[CONTENT] for row in rows) == job.expected
    assert [row[0] for row in rows] == sorted((row[0] for row in rows), reverse=True)


def test_a_turn_is_as_long_as_is_said_and_like_no_other(job: Job) -> None:
    rows = [job.row(task, n) for task in range(101) for n in range(3)]
    assert {len(row[4].encode()) for row in rows} == {CONTENT_BYTES}
    assert len({row[4] for row in rows}) == len(rows)
    # Nobody appends to what is read.
    assert "c0" not in {row[0] for row in rows}


def test_what_was_acknowledged_is_found(job: Job, path: Path) -> None:
    acknowledged = append(path, job.row(1, 1), job.row(2, 1))
    job.verify(path, acknowledged)


def test_a_turn_that_is_not_there_is_found_out(job: Job, path: Path) -> None:
    acknowledged = append(path, job.row(1, 1))
    with pytest.raises(WrongResult, match="1 of 2 acknowledged"):
        job.verify(path, [*acknowledged, str(job.row(2, 1)[4])])


def test_a_turn_that_is_there_twice_is_found_out(job: Job, path: Path) -> None:
    acknowledged = append(path, job.row(1, 1), job.row(1, 1))
    with pytest.raises(WrongResult, match="4002 in all"):
        job.verify(path, acknowledged[:1])


def test_another_text_than_was_acknowledged_is_found_out(job: Job, path: Path) -> None:
    append(path, job.row(1, 1))
    with pytest.raises(WrongResult, match="0 of 1 acknowledged"):
        job.verify(path, [str(job.row(1, 2)[4])])


@pytest.mark.parametrize("harm", ["DELETE FROM turns", "UPDATE turns SET content = 'else'"])
def test_an_old_turn_that_is_gone_is_found_out(job: Job, path: Path, harm: str) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute(f"{harm} WHERE id = 7")
    with pytest.raises(WrongResult, match="3999 of 4000 old"):
        job.verify(path, [])


def test_a_copy_is_a_fresh_start(job: Job, path: Path) -> None:
    append(path, job.row(1, 1))
    path.with_name("run.db-wal").write_bytes(b"of the run before")
    job.copy(path)
    assert not path.with_name("run.db-wal").exists()
    job.verify(path, [])


@pytest.mark.parametrize(("synchronous", "level"), [("full", 2), ("normal", 1)])
def test_a_connection_is_set_as_is_said(path: Path, synchronous: str, level: int) -> None:
    with closing(connect(path, "DELETE", synchronous)) as conn:
        found = [conn.execute(f"PRAGMA {name}").fetchone()[0] for name in ("journal_mode", "synchronous")]
    assert found == ["delete", level]
