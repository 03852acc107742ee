"""Opening the database file: where it is, whether it is ours, and how each connection is set up.

Nothing is written to a file before it is known to be this program's and of a version it can read.
"""

import errno
import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Literal

import attrs
import structlog

from persona.errors import DatabaseError
from persona.storage import schema

Synchronous = Literal["full", "normal"]
MEMORY = ":memory:"

CACHED_STATEMENTS = 512
"""Prepared statements a connection keeps. There are some dozens in `store`; a migration or a tool must
not push them out."""
MAX_CHECKED_BYTES = 256 * 1024 * 1024
"""Up to which size a file is looked over at the start. That takes 1.3 s a gigabyte from memory, and from
a disk as long as reading it; a start should not wait for more than a moment."""

_log = structlog.get_logger()


@attrs.frozen(kw_only=True)
class ConnectionSettings:
    """What `connect` needs to open one more connection to the same file."""

    path: Path
    synchronous: Synchronous
    busy_timeout_s: float
    cache_pages: int

    def connect(self, *, query_only: bool = False) -> sqlite3.Connection:
        """Open a connection to the file, which must exist. Raises `sqlite3.Error`."""
        # mode=rw: a file that was moved away is an error and not a new, empty database.
        conn = _connect(self._uri("rw"), self.busy_timeout_s)
        try:
            self.configure(conn)
            if query_only:
                conn.execute("PRAGMA query_only = ON")
        except BaseException:
            conn.close()
            raise
        return conn

    def configure(self, conn: sqlite3.Connection) -> None:
        """Set what SQLite keeps per connection, and WAL mode, which it keeps in the file."""
        (mode,) = conn.execute("PRAGMA journal_mode = WAL").fetchone()
        if mode not in ("wal", "memory"):
            raise sqlite3.OperationalError(f"WAL mode is not available here, only {mode}")
        conn.execute(f"PRAGMA synchronous = {self.synchronous}")
        conn.execute(f"PRAGMA cache_size = {self.cache_pages:d}")
        conn.execute("PRAGMA foreign_keys = ON")
        # The writer's upkeep does it, and nobody else.
        conn.execute("PRAGMA wal_autocheckpoint = 0")

    @property
    def wal_path(self) -> Path:
        """The write-ahead log, where SQLite puts it."""
        return self.path.with_name(f"{self.path.name}-wal")

    def make_directory(self) -> None:
        """Make the directories that the file needs. Raises `DatabaseError` where it is one itself."""
        if self.path.is_dir():
            raise DatabaseError(f"{self.path}: a directory; name a file in it")
        parents = self.path.parents
        for directory in reversed([parent for parent in parents if not parent.exists()]):
            directory.mkdir(mode=0o700, exist_ok=True)

    def prepare(self) -> None:
        """Create or migrate the database.

        Raises `DatabaseError` when it is not this program's or too new, and what `startup_errors`
        makes one of. The file is then as it was.
        """
        if not self.path.exists():
            # Conversations are private. SQLite gives the files beside this one the same mode.
            os.close(os.open(self.path, os.O_CREAT | os.O_WRONLY, 0o600))
        # Looked at read-only first: even closing a connection that may write changes the file.
        with closing(_connect(self._uri("ro"), self.busy_timeout_s)) as conn:
            schema.check(conn, self.path)
            _look_over(conn, self.path)
        with closing(_connect(self._uri("rw"), self.busy_timeout_s)) as conn:
            schema.migrate(conn, self.path)
            # Closing does this too, but says nothing of a disk that fails. Nor may a log stay whose end
            # may never have reached the disk: see `batch.Writer`.
            conn.execute("PRAGMA wal_checkpoint(PASSIVE)").fetchall()

    def open_memory(self) -> sqlite3.Connection:
        """A new database in memory, with the seed personas."""
        conn = _connect(MEMORY, self.busy_timeout_s)
        schema.migrate(conn, self.path)
        self.configure(conn)
        return conn

    def _uri(self, mode: Literal["ro", "rw"]) -> str:
        return f"{self.path.as_uri()}?mode={mode}"


DAMAGED = "the database is damaged; restore a backup or name another file"
FULL = "the disk is full; make room or name a file on another one"
NOT_WRITABLE = "cannot be written; make the file and its directory writable or name another file"


@contextmanager
def startup_errors(path: Path) -> Iterator[None]:
    """Turn what the system and SQLite say of a file that cannot be opened into `DatabaseError`."""
    try:
        yield
    except PermissionError as exc:
        raise DatabaseError(f"{path}: {NOT_WRITABLE}") from exc
    except OSError as exc:
        said = {errno.EROFS: NOT_WRITABLE, errno.ENOSPC: FULL}.get(
            exc.errno or 0, f"{exc.strerror}; name another file"
        )
        raise DatabaseError(f"{path}: {said}") from exc
    except sqlite3.Error as exc:
        raise DatabaseError(f"{path}: {_advice(exc)}") from exc


READ_TIMEOUT_S = 5.0
"""How long `open_snapshot` waits for a lock; only another program's clean-up after a crash takes one."""


@contextmanager
def open_snapshot(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that reads one state of our database at `path`: all that was committed so far.

    Safe beside a running server: it writes neither file nor log, and takes nothing of the log in, not even
    when it closes last. It may leave a `-shm` file and an empty `-wal` file, as every reader does.

    Raises `DatabaseError` when the file is not there, not to be read, another program's or too new, and
    `sqlite3.Error` when it is damaged; the block's errors leave it as they are.
    """
    path = path.absolute()
    with _reading_errors(path):
        if path.is_dir():
            raise DatabaseError(f"{path}: a directory; name a file in it")
        path.stat()
        conn = _connect(f"{path.as_uri()}?mode=ro", READ_TIMEOUT_S)
    with closing(conn):
        with _reading_errors(path):
            conn.execute("BEGIN")
            if not schema.check(conn, path):
                raise DatabaseError(f"{path}: empty; name another file")
        yield conn


@contextmanager
def _reading_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as exc:
        raise DatabaseError(f"{path}: cannot be read: {exc.strerror}") from exc
    except sqlite3.Error as exc:
        match getattr(exc, "sqlite_errorcode", 0) & 0xFF:
            case sqlite3.SQLITE_CORRUPT:
                raise
            case sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_READONLY | sqlite3.SQLITE_PERM:
                said = "cannot be read; make the file readable, and its directory writable for SQLite's -shm"
            case _:
                said = _advice(exc)
        raise DatabaseError(f"{path}: {said}") from exc


def warn_of_wal_reset_bug(version: tuple[int, ...] = sqlite3.sqlite_version_info) -> bool:
    """Log a warning when this SQLite has the bug; whether it has."""
    if not (3, 7, 0) <= version <= (3, 51, 2):
        return False
    _log.warning(
        "sqlite_wal_reset_bug",
        sqlite=".".join(map(str, version)),
        meaning="another program that writes to the database while the server runs may corrupt it",
        remedy="SQLite 3.51.3 or later, or no other writers",
    )
    return True


def _look_over(conn: sqlite3.Connection, path: Path) -> None:
    """Raises `DatabaseError` when a page is damaged in a way that shows without reading indexes against
    tables."""
    size_bytes = path.stat().st_size
    if size_bytes > MAX_CHECKED_BYTES:
        _log.info("database_not_checked", size_bytes=size_bytes, max_bytes=MAX_CHECKED_BYTES)
        return
    (found,) = conn.execute("PRAGMA quick_check(1)").fetchone()
    if found != "ok":
        raise DatabaseError(f"{path}: {DAMAGED}")


def _connect(target: str, busy_timeout_s: float) -> sqlite3.Connection:
    # A lane's batches run in whatever thread is free, one at a time. Transactions are begun by us.
    return sqlite3.connect(
        target,
        uri=target != MEMORY,
        timeout=busy_timeout_s,
        isolation_level=None,
        check_same_thread=False,
        cached_statements=CACHED_STATEMENTS,
    )


def _advice(exc: sqlite3.Error) -> str:
    match getattr(exc, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_NOTADB:
            return "not a database; name another file"
        case sqlite3.SQLITE_CORRUPT:
            return DAMAGED
        case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
            return NOT_WRITABLE
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return "in use by another program; stop that one or name another file"
        case sqlite3.SQLITE_FULL:
            return FULL
        case _:
            return f"{exc}; name another file"
