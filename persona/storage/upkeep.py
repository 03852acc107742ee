"""What the writer does for the file between writes: it takes the write-ahead log in, and keeps the
planner's statistics.

SQLite would take the log in by itself (`wal_autocheckpoint`), inside some caller's commit. Here one
connection does it, after its callers have been answered:

* When the log has grown to `wal_limit_bytes`, between two batches. Its file keeps its size and is written
  again from its beginning, since a commit that makes a file longer is slower. When the file grows, the log
  has come to its end again. At twice the limit the file is cut.
* When nobody has written for `IDLE_S` and the log is not empty. The file is cut, and the database alone is
  then whole; a start after a crash has nothing to go through.
* Nobody is waited for longer than `READER_WAIT_S`. What a longer reader still needs of the log stays in it,
  and is tried again: after pauses that double up to `MAX_PAUSE_S`, or when the log has grown by as much
  again.
* A failure is logged and counted, and harms no write: what was committed is in the log.
* `PRAGMA optimize` runs at the start, every `OPTIMIZE_EVERY_S` and at the end, as SQLite's documentation
  advises for connections that live long.

All of it blocks, and runs in the writer's thread; `pool` says when.
"""

import math
import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Literal, final

import structlog

IDLE_S = 3.0
"""How long nobody must have written; up to twice as long, since it is only looked at so often, which costs a
write nothing. With less, the next line of somebody who types would now and then wait for a checkpoint; more
only lets the log lie."""
LOOK_EVERY_S = 0.02
"""How often, while clients write, the log's size is looked at: a look after each commit made a lone write a
tenth slower."""
MAX_PAUSE_S = 300.0
"""The longest pause between two attempts while a reader holds on or the disk fails."""
READER_WAIT_S = 0.05
"""How long a checkpoint waits for those who read from the log: more than a batch of reads takes
(`batch.MAX_BATCH_S`), so that readers who are never idle do not make the log grow; and little, because
writes wait meanwhile."""
OPTIMIZE_EVERY_S = 3600.0
"""The documentation says once an hour or a day; mostly it finds nothing to do."""
ANALYSIS_LIMIT = 400
"""Rows of an index looked at for a statistic, as the documentation recommends: milliseconds, however large
the table. SQLite 3.46 has such a limit of its own."""

_ALL_TABLES = 0x10002
"""At the start: what the connection has asked so far says nothing of what it will ask."""

_log = structlog.get_logger()


@final
class Upkeep:
    """Of one database file. Its counts are since the start."""

    def __init__(self, wal_path: Path, wal_limit_bytes: int) -> None:
        self.is_due = False
        """Whether `run` should not wait until nobody writes."""
        self.has_log = False
        """Whether there is something for `run` to do when nobody writes."""
        self.pause_s = IDLE_S
        """How long nobody must have written before."""
        self.batches = 0
        """Of the writer; while this stays, nobody has written."""
        self.checkpoints = 0
        """How often the log was taken in."""
        self.put_off = 0
        """How often a part of it stayed, since somebody still read from it."""
        self.failures = 0
        # Text, because a look at a `Path` takes longer than the look itself.
        self._wal_path = str(wal_path)
        self._limit_bytes = self._try_at_bytes = wal_limit_bytes
        self._look_at = -math.inf
        self._optimize_at = math.inf

    def begin(self, conn: sqlite3.Connection) -> None:
        """Before the first write. Raises `sqlite3.Error`."""
        with _little_patience(conn):
            self._optimize(conn, f"PRAGMA optimize = {_ALL_TABLES}")
        self.after_batch()

    def after_batch(self) -> None:
        """The log may have grown."""
        self.batches += 1
        self.has_log = True
        now = time.monotonic()
        if now >= self._look_at:
            self._look_at = now + LOOK_EVERY_S
            self.is_due = self.wal_bytes() >= self._try_at_bytes

    def run(self, conn: sqlite3.Connection) -> None:
        """Do what there is to do, at most one checkpoint. Raises `sqlite3.Error`."""
        is_between_writes = self.is_due and self.wal_bytes() < 2 * self._limit_bytes
        with _little_patience(conn):
            if time.monotonic() >= self._optimize_at:
                self._optimize(conn)
            self._checkpoint(conn, "RESTART" if is_between_writes else "TRUNCATE")

    def end(self, conn: sqlite3.Connection) -> None:
        """After the last write. Raises `sqlite3.Error`."""
        with _little_patience(conn):
            self._optimize(conn)
            self._checkpoint(conn, "TRUNCATE")

    def failed(self, exc: sqlite3.Error) -> None:
        """Log and count what a method raised, and try again later."""
        self.failures += 1
        self._pause()
        code = getattr(exc, "sqlite_errorname", type(exc).__name__)
        _log.warning("database_upkeep_failed", code=code, error=str(exc), retry_after_s=self.pause_s)

    def _checkpoint(self, conn: sqlite3.Connection, mode: Literal["RESTART", "TRUNCATE"]) -> None:
        # Either does what it can of the work also when it does not succeed.
        (is_busy, _, _) = conn.execute(f"PRAGMA wal_checkpoint({mode})").fetchone()
        if is_busy:
            self.put_off += 1
            self._pause()
            return
        self.checkpoints += 1
        size = self.wal_bytes()
        self.is_due, self.has_log = False, size > 0
        self._try_at_bytes = max(size + 1, self._limit_bytes)
        self.pause_s = IDLE_S

    def _pause(self) -> None:
        self.is_due = False
        self._try_at_bytes = self.wal_bytes() + self._limit_bytes
        self.pause_s = min(2 * self.pause_s, MAX_PAUSE_S)

    def _optimize(self, conn: sqlite3.Connection, statement: str = "PRAGMA optimize") -> None:
        self._optimize_at = time.monotonic() + OPTIMIZE_EVERY_S
        conn.execute(f"PRAGMA analysis_limit = {ANALYSIS_LIMIT}").fetchall()
        conn.execute(statement).fetchall()

    def wal_bytes(self) -> int:
        """The size of the log's file. The kernel knows it of a file that is open."""
        try:
            return os.stat(self._wal_path).st_size  # noqa: PTH116 - see above
        except OSError:
            return 0


@contextmanager
def _little_patience(conn: sqlite3.Connection) -> Iterator[None]:
    """Wait `READER_WAIT_S` where the block finds something locked, not as long as a write would."""
    (write_timeout_ms,) = conn.execute("PRAGMA busy_timeout").fetchone()
    conn.execute(f"PRAGMA busy_timeout = {READER_WAIT_S * 1000:.0f}").fetchall()
    try:
        yield
    finally:
        conn.execute(f"PRAGMA busy_timeout = {write_timeout_ms:d}").fetchall()
