"""Real damage to a database file: bytes overwritten in one page of one table or index."""

import contextlib
import sqlite3
import struct
from collections.abc import Iterator
from pathlib import Path

PAGE_BYTES = 4096
_INTERIOR = (2, 5)
"""The type byte of a page that has others below it: of an index, of a table."""


def spoil_page(path: Path, name: str) -> None:
    """Overwrite the beginning of the last page of the table or index."""
    with contextlib.closing(sqlite3.connect(path)) as conn:
        (number,) = conn.execute("SELECT rootpage FROM sqlite_schema WHERE name = ?", (name,)).fetchone()
    content = bytearray(path.read_bytes())
    while content[(number - 1) * PAGE_BYTES] in _INTERIOR:
        # Its right-most child's number is in the page's header.
        (number,) = struct.unpack_from(">I", content, (number - 1) * PAGE_BYTES + 8)
    start = (number - 1) * PAGE_BYTES
    content[start : start + 200] = b"\xa5" * 200
    path.write_bytes(content)


def spoil_free_list(path: Path) -> None:
    """Say that there are more free pages than there are."""
    content = bytearray(path.read_bytes())
    content[36:40] = struct.pack(">I", 7)
    path.write_bytes(content)


def spoil_entry(path: Path) -> None:
    """Leave an entry of a row that is gone in the index by which the turns of a conversation are found."""
    with _redefined(path, "turns_siblings", "{} WHERE id <> 3"):
        # By that definition the row has no entry to be removed.
        _execute(path, "DELETE FROM turns WHERE id = 3")


def spoil_value(path: Path) -> None:
    """Leave a text out where there must be one."""
    with _redefined(path, "turns", "{}", ("content TEXT NOT NULL", "content TEXT")):
        _execute(path, "UPDATE turns SET content = NULL WHERE id = 3")


def spoil_parent(path: Path) -> None:
    """Remove the conversation of turn 3 and nothing else."""
    _execute(path, "DELETE FROM conversations WHERE id = (SELECT conversation_id FROM turns WHERE id = 3)")


@contextlib.contextmanager
def _redefined(path: Path, name: str, form: str, *replacements: tuple[str, str]) -> Iterator[None]:
    """Let SQLite believe for a while that the table or index was made in another way."""
    with contextlib.closing(sqlite3.connect(path)) as conn:
        (sql,) = conn.execute("SELECT sql FROM sqlite_schema WHERE name = ?", (name,)).fetchone()
    other = form.format(sql)
    for old, new in replacements:
        assert old in other
        other = other.replace(old, new)
    _define(path, name, other)
    yield
    _define(path, name, sql)


def _define(path: Path, name: str, sql: str) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        conn.execute("PRAGMA writable_schema = ON")
        conn.execute("UPDATE sqlite_schema SET sql = ? WHERE name = ?", (sql, name))


def _execute(path: Path, statement: str) -> None:
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as conn:
        assert conn.execute(statement).rowcount == 1
