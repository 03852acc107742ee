"""Whether a database is sound, in words: what is wrong, in which table, and what to do about it.

SQLite finds what is wrong (`integrity_check`, `foreign_key_check`) and says it in terms of pages. What an
operator wants to know is whether rows are lost: so each table with something wrong is also read from its
first row to its last.

SQLite does not look at CHECK constraints where it must not write. NOT NULL, types and keys it does look at.
"""

import re
import shlex
import sqlite3
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import attrs

from persona.errors import DatabaseError, DatabaseUnreadable
from persona.storage.connection import open_snapshot

MAX_REMARKS = 100
"""Of SQLite, for each table; a table with one damaged page has dozens, which say no more."""

RESTORE = (
    "stop the server, set the file aside together with its -wal file, and restore the last backup; without a "
    "backup, `sqlite3 {path} .dump` prints the rows that can still be read"
)
REINDEX = "stop the server, run `sqlite3 {path} REINDEX`, by which no row is lost, and check again"
VACUUM = "stop the server, run `sqlite3 {path} VACUUM`, by which no row is lost, and check again"
AMEND = "restore the last backup, or stop the server and correct these rows"
DELETE = (
    "restore the last backup, or stop the server and run `sqlite3 {path} "
    '"DELETE FROM {table} WHERE {column} NOT IN (SELECT {parent_column} FROM {parent})"`'
)

_OF_A_VALUE = re.compile(r" value in \S+$")
_OF_AN_ENTRY = re.compile(
    r"^row \d+ missing from index |^wrong # of entries in index |^non-unique entry in index "
)


@attrs.frozen
class Finding:
    """Something wrong: in which table (`None`: in the file itself), what, and what to do."""

    table: str | None
    text: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.table or 'the file itself'}: {self.text}"


@attrs.frozen
class Report:
    """What `check` found. `rows` is of each table, in a sound database."""

    path: Path
    findings: tuple[Finding, ...]
    rows: dict[str, int]

    @property
    def is_sound(self) -> bool:
        """Whether nothing is wrong."""
        return not self.findings

    def lines(self) -> Iterator[str]:
        """The report for people."""
        if self.is_sound:
            yield f"{self.path}: sound; {in_words(self.rows)}"
            return
        yield f"{self.path}: damaged"
        for finding in self.findings:
            yield f"  {finding}"
        yield "What to do:"
        for remedy in dict.fromkeys(finding.remedy for finding in self.findings):
            yield f"  {remedy}"


def check(path: Path) -> Report:
    """Look at the whole database. Reads only; safe beside a running server, whose write-ahead log grows
    meanwhile.

    Raises `DatabaseUnreadable` when it cannot be looked at.
    """
    path = path.absolute()
    try:
        with open_snapshot(path) as conn:
            findings = (*broken_pages(conn, path), *missing_parents(conn, path))
            return Report(path, findings, {} if findings else count_rows(conn))
    except DatabaseError as exc:
        raise DatabaseUnreadable(str(exc)) from exc
    except sqlite3.Error as exc:
        if not _is_damage(exc):
            raise DatabaseUnreadable(f"{path}: cannot be read: {exc}") from exc
        return Report(path, (Finding(None, str(exc), _remedy(RESTORE, path)),), {})


def broken_pages(conn: sqlite3.Connection, path: Path) -> Iterator[Finding]:
    """What is wrong with how the database that `conn` reads is stored; `path` is for the advice.

    Raises `sqlite3.Error` when it cannot be read, or its tables are not even known.
    """
    of_all = _remarks(conn, None)
    if not of_all:
        return
    is_found = False
    for table in _tables(conn):
        remarks = _remarks(conn, table)
        if remarks:
            is_found = True
            yield _finding(conn, path, table, remarks)
    if not is_found:
        yield Finding(None, f"pages that no table has are damaged ({_first(of_all)})", _remedy(VACUUM, path))


def missing_parents(conn: sqlite3.Connection, path: Path) -> Iterator[Finding]:
    """Rows that refer to rows which are not there. Raises `sqlite3.Error` when it cannot be read."""
    broken: Counter[tuple[str, int]] = Counter()
    for table in _tables(conn):
        try:
            for (key,) in conn.execute("SELECT fkid FROM pragma_foreign_key_check(?)", (table,)):
                broken[table, key] += 1
        except sqlite3.Error as exc:
            # `broken_pages` tells what this met.
            if not _is_damage(exc):
                raise
    keys = 'SELECT "table", "from", "to" FROM pragma_foreign_key_list(?) WHERE id = ?'
    for (table, key), count in broken.items():
        for parent, column, parent_column in conn.execute(keys, (table, key)).fetchall():
            rows = "1 row refers" if count == 1 else f"{count:,} rows refer"
            yield Finding(
                table,
                f"{rows} by {column} to rows of {parent} that are missing",
                _remedy(DELETE, path, table=table, column=column, parent=parent, parent_column=parent_column),
            )


def count_rows(conn: sqlite3.Connection) -> dict[str, int]:
    """Rows of the tables that people know of."""
    return {table: _count(conn, table) for table in ("personas", "conversations", "turns")}


def in_words(rows: dict[str, int]) -> str:
    """As `2 personas, 1 conversation`."""
    return ", ".join(
        f"{count:,} {name.removesuffix('s') if count == 1 else name}" for name, count in rows.items()
    )


def _tables(conn: sqlite3.Connection) -> list[str]:
    return [name for (name,) in conn.execute("SELECT name FROM sqlite_schema WHERE type = 'table'")]


def _finding(conn: sqlite3.Connection, path: Path, table: str, remarks: list[str]) -> Finding:
    count, is_whole = _read_through(conn, table)
    if all(map(_OF_A_VALUE.search, remarks)):
        text, remedy = "a row of it holds what it must not", AMEND
    elif all(map(_OF_AN_ENTRY.search, remarks)):
        text, remedy = "an index of it does not agree with it", REINDEX
    elif is_whole:
        # REINDEX would have to read the damaged page.
        text, remedy = f"an index of it is damaged; all its {count:,} rows can be read", RESTORE
    else:
        text, remedy = f"only {count:,} rows of it can be read", RESTORE
    return Finding(table, f"{text} ({_first(remarks)})", _remedy(remedy, path))


def _remarks(conn: sqlite3.Connection, table: str | None) -> list[str]:
    """What SQLite has to say of the table, or of all of the file; nothing when all is well."""
    query, values = "SELECT * FROM pragma_integrity_check", [MAX_REMARKS] if table is None else [table]
    try:
        remarks = [str(remark) for (remark,) in conn.execute(f"{query}(?)", values)]
    except sqlite3.Error as exc:
        if not _is_damage(exc):
            raise
        return [str(exc)]
    return [] if remarks == ["ok"] else remarks


def _first(remarks: list[str]) -> str:
    return remarks[0].removeprefix("*** in database main ***").strip().partition("\n")[0]


def _read_through(conn: sqlite3.Connection, table: str) -> tuple[int, bool]:
    """How many rows can be read from the first on, and whether these are all."""
    count = 0
    try:
        for _ in conn.execute(f"SELECT * FROM {_quoted(table)} NOT INDEXED"):  # noqa: S608
            count += 1
    except sqlite3.Error as exc:
        if not _is_damage(exc):
            raise
        return count, False
    return count, True


def _count(conn: sqlite3.Connection, table: str) -> int:
    (count,) = conn.execute(f"SELECT count(*) FROM {_quoted(table)}").fetchone()  # noqa: S608
    return int(count)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _is_damage(exc: sqlite3.Error) -> bool:
    return getattr(exc, "sqlite_errorcode", 0) & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)


def _remedy(text: str, path: Path, **values: str) -> str:
    return text.format(path=shlex.quote(str(path)), **values)
