"""A copy of the database, whole and checked, taken while a server may be writing to it.

The copy is made by SQLite's backup interface from one snapshot: it holds every write that was acknowledged
before it began, and none by half. The server goes on reading and writing meanwhile; only its write-ahead log
cannot be emptied until the copy is made.

In its own process, and not by the running server: so it works with and without one, and a slow disk or a
full one is not the server's trouble. That is safe also with the SQLites whose log two writers can damage
(`connection.warn_of_wal_reset_bug`), since this only reads.

The copy appears under its name when it is whole, checked and on disk, and not before.
"""

import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import attrs

from persona.errors import DatabaseError
from persona.storage.check import broken_pages, count_rows, in_words
from persona.storage.connection import NOT_WRITABLE, open_snapshot
from persona.storage.lock import exclusive

PAGES_PER_STEP = 1000
"""Pages of 4 KiB that are copied before an interrupt from the keyboard is heard."""

_LOGS = ("-wal", "-journal")
_OF_THE_SOURCE = {sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_IOERR_READ, sqlite3.SQLITE_IOERR_SHORT_READ}


@attrs.frozen
class Backup:
    """What was done. `rows` is of each table."""

    source: Path
    target: Path
    rows: dict[str, int]
    size_bytes: int

    def __str__(self) -> str:
        size = f"{self.size_bytes / 1e6:.1f} MB"
        return f"backed up {self.source} to {self.target}: {in_words(self.rows)}; {size}, checked"


def back_up(source: Path, target: Path, *, force: bool = False) -> Backup:
    """Copy the database at `source` to a new private file at `target`; with `force`, over one that is
    there.

    Raises `DatabaseError` when either cannot be used, when the copy is damaged, and when another server
    has `target` open; `target` is then as it was.
    """
    source, target = source.absolute(), target.absolute()
    _check_target(source, target, force=force)
    with _writing_errors(target), exclusive(target), _temporary(target) as made:
        _check_target(source, target, force=force)
        with _copying_errors(source, target), open_snapshot(source) as conn:
            _copy(conn, made)
        rows = _check_copy(made, source)
        _flush(made)
        size_bytes = made.stat().st_size
        made.replace(target)
        _flush(target.parent)
    return Backup(source, target, rows, size_bytes)


def _check_target(source: Path, target: Path, *, force: bool) -> None:
    if target.is_dir():
        raise DatabaseError(f"{target}: a directory; name a file in it")
    if not target.parent.is_dir():
        raise DatabaseError(f"{target}: there is no such directory")
    if target.exists() and source.exists() and target.samefile(source):
        raise DatabaseError(f"{target}: the database itself; name another file")
    if os.path.lexists(target) and not force:
        raise DatabaseError(f"{target}: exists already; name another file or use --force")
    for suffix in _LOGS:
        # SQLite would take it for the copy's own when that is opened.
        log = target.with_name(f"{target.name}{suffix}")
        if log.exists() and log.stat().st_size:
            raise DatabaseError(f"{log}: left by another database; remove it or name another file")


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    """A private file beside `target`, on the same disk; gone at the end unless it was renamed."""
    fd, name = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".tmp", dir=target.parent)
    os.close(fd)
    made = Path(name)
    try:
        yield made
    finally:
        made.unlink(missing_ok=True)


def _copy(conn: sqlite3.Connection, made: Path) -> None:
    with closing(sqlite3.connect(made, isolation_level=None)) as copy:
        # A journal would be of no use: if this fails, the file is removed.
        copy.execute("PRAGMA journal_mode = OFF")
        copy.execute("PRAGMA synchronous = OFF")
        conn.backup(copy, pages=PAGES_PER_STEP, progress=lambda *_: None)
    with closing(sqlite3.connect(made, isolation_level=None)) as copy:
        # The copy says of itself that it has a log. Without, it is one file, which can be read where nothing
        # can be written; a server that opens it puts that back.
        copy.execute("PRAGMA locking_mode = EXCLUSIVE")
        copy.execute("PRAGMA journal_mode = DELETE").fetchall()


def _check_copy(made: Path, source: Path) -> dict[str, int]:
    with closing(sqlite3.connect(f"{made.as_uri()}?mode=ro", uri=True)) as copy:
        try:
            finding = next(broken_pages(copy, source), None)
            if finding is None:
                return count_rows(copy)
            said = str(finding)
        except sqlite3.Error as exc:
            said = str(exc)
    raise DatabaseError(f"{source}: damaged, not backed up: {said}; see what `persona check` says")


def _flush(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def _writing_errors(target: Path) -> Iterator[None]:
    try:
        yield
    except PermissionError as exc:
        raise DatabaseError(f"{target}: {NOT_WRITABLE}") from exc
    except OSError as exc:
        raise DatabaseError(f"{target}: cannot be written: {exc.strerror}") from exc


@contextmanager
def _copying_errors(source: Path, target: Path) -> Iterator[None]:
    try:
        yield
    except sqlite3.Error as exc:
        code = getattr(exc, "sqlite_errorcode", 0)
        if code in _OF_THE_SOURCE:
            said = f"{source}: cannot be copied: {exc}; see what `persona check` says"
        elif code == sqlite3.SQLITE_FULL:
            said = f"{target}: the disk is full; make room or name a file on another one"
        else:
            said = f"{target}: cannot be written: {exc}"
        raise DatabaseError(said) from exc
