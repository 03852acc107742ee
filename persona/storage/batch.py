"""Calls, and how a batch of them runs on one connection.

This is the half of the pool that blocks: it runs in worker threads and knows nothing of tasks but
whether somebody still waits. `pool` is the other half.

Rules:

* A batch of writes is one `BEGIN IMMEDIATE` transaction. Where a call fails, all of it is rolled back and
  run once more with a savepoint for each call, so that the failure stays that call's own: savepoints cost a
  quarter of an append, and next to no write fails. No call is settled before the commit; when the
  transaction fails, every call in it fails.
* A batch of reads is one deferred transaction, so all of it sees one snapshot. It begins after its
  last call was made: whoever waited for a write reads it.
* A call whose caller has left is skipped if it has not started. A read under way is interrupted; a
  write goes on, since it shares its transaction with others.
* What went wrong in SQLite is logged here, with its real text, and reaches the caller as
  `MemoryFailure`. Any other exception is the caller's own and reaches it unchanged.
"""

import contextlib
import sqlite3
import time
import traceback
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from itertools import chain
from typing import Any, Generic, TypeVar, cast

import attrs
import structlog
import trio

from persona.errors import MemoryFailure
from persona.storage.failures import FailureLog
from persona.storage.upkeep import Upkeep

T = TypeVar("T")

MAX_BATCH_S = 0.02
"""When a batch starts no further call: what it has done is not held up by what still waits."""
PROGRESS_STEPS = 100_000
"""Virtual machine steps of a read (1 to 5 ms) between two looks at whether its caller still waits.
Each look takes the interpreter's lock, so not oftener."""

LOCK_WAIT_S = 0.001
"""A transaction that begins later than this has waited for the lock: SQLite first sleeps a millisecond when
it finds it taken, and says so to nobody. A processor that was elsewhere for so long counts as well."""

_KINDS = {
    sqlite3.SQLITE_BUSY: "busy",
    sqlite3.SQLITE_LOCKED: "busy",
    sqlite3.SQLITE_FULL: "full",
    sqlite3.SQLITE_IOERR: "io",
    sqlite3.SQLITE_CORRUPT: "corrupt",
    sqlite3.SQLITE_NOTADB: "corrupt",
    sqlite3.SQLITE_CANTOPEN: "cantopen",
    sqlite3.SQLITE_READONLY: "readonly",
    sqlite3.SQLITE_CONSTRAINT: "constraint",
}
FAILURE_KINDS = (*dict.fromkeys(_KINDS.values()), "other")
"""What failures are counted as."""

_BROKEN = {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CANTOPEN}
"""Codes after which nothing else that this connection says is believed."""
_USELESS = _BROKEN | {sqlite3.SQLITE_READONLY}
"""The same for a transaction that failed as a whole. A connection that was opened while its file could
not be written stays read-only for ever, so it is not kept for the time after."""

BUSY_RETRY_S = 1.0
"""What a caller is told to wait while another program holds the lock: that is mostly over at once."""
DISK_RETRY_S = 5.0
"""The same for a full or failing disk: somebody has to make room first."""

_log = structlog.get_logger()


@attrs.define(eq=False)
class Call(Generic[T]):
    """Somebody's function of a connection, and what came of it."""

    fn: Callable[[sqlite3.Connection], T]
    waiter: trio.lowlevel.Task | None
    """The task to wake; `None` once it has been woken or has left."""
    made_at: float = attrs.field(factory=time.perf_counter)
    """On `time.perf_counter`."""
    settled: bool = False
    """Whether nothing changes the outcome any more."""
    result: T | None = None
    error: BaseException | None = None

    def unwrap(self) -> T:
        """The result, or raise the error; once only."""
        error, self.error = self.error, None
        if error is None:
            return cast(T, self.result)
        try:
            raise error
        finally:
            # Its traceback holds this frame: break the cycle.
            del error, self


class Lane(ABC):
    """One connection, made by `connect`, and the batches that run on it, one at a time.

    A connection that breaks is closed, and the next batch makes another.
    """

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self.waiting: deque[Call[Any]] = deque()
        """The batch's calls that have not begun. The pool fills it, and may take calls back out of it
        at any time: `deque` methods are atomic."""
        self.begun: list[Call[Any]] = []
        """The batch's calls that have; all are settled when `run` returns. The pool empties it."""
        self.replaced = 0
        """Connections that broke."""
        self.failures = dict.fromkeys(FAILURE_KINDS, 0)
        """What went wrong in SQLite, by kind; each was logged."""
        self.lock_waits = 0
        """Transactions that waited for the write lock, and for how long in all."""
        self.lock_wait_s = 0.0
        self.commit_s: float | None = None
        """How long the last batch's commit took; `None` when it had none, or that failed."""
        self._connect = connect
        self._conn: sqlite3.Connection | None = None
        self._failures = FailureLog()

    def open(self) -> sqlite3.Connection:
        """The connection, made if there is none. Raises `sqlite3.Error`."""
        if self._conn is None:
            self._conn = self._connect()
        return self._conn

    def run(self) -> None:
        """Run what waits, until `MAX_BATCH_S` has passed. Raises nothing but bugs."""
        self.commit_s = None
        try:
            self._run(self.open())
            self._failures.transaction_ended(failed=False)
        except sqlite3.Error as exc:
            if not self.begun:
                self.begun.extend(iter(self._next, None))
            for call in self.begun:
                if not call.settled:
                    call.error, call.settled = _memory_failure(exc), True
            self._note(exc)
            self._failures.transaction_ended(failed=True)
            self._recover(exc)
        self._failures.report()

    def _note(self, exc: sqlite3.Error) -> None:
        self.failures[_KINDS.get(_primary_code(exc) or 0, "other")] += 1
        self._failures.add(exc)

    def close(self) -> None:
        """Close the connection."""
        if self._conn is not None:
            self._conn.close()
            self._conn = None

    @abstractmethod
    def _run(self, conn: sqlite3.Connection) -> None:
        """Run calls as one transaction.

        Raises `sqlite3.Error` when the transaction fails as a whole, leaving unsettled whom that
        concerns.
        """

    def _next(self) -> Call[Any] | None:
        """The next call that somebody still waits for, now begun."""
        # Not `while self.waiting`: the pool may take the last one out after that was asked.
        try:
            while (call := self.waiting.popleft()).waiter is None:
                pass
        except IndexError:
            return None
        self.begun.append(call)
        return call

    def _calls(self, ends_at: float) -> Iterator[Call[Any]]:
        """What waits, each as it begins: one at least, and none that would begin after `ends_at`."""
        while (call := self._next()) is not None:
            yield call
            if time.perf_counter() >= ends_at:
                break

    def _attempt(self, call: Call[Any], conn: sqlite3.Connection) -> bool:
        """Run one call; whether it succeeded. Raises `sqlite3.Error` when its failure is the whole
        transaction's."""
        try:
            call.result = call.fn(conn)
        except sqlite3.Error as exc:
            _drop_frames(exc)
            if self._is_everybodys(exc, conn):
                raise
            if call.waiter is not None:
                self._note(exc)
            call.error = _memory_failure(exc)
        except Exception as exc:  # noqa: BLE001 - it is raised again in the caller
            _drop_frames(exc)
            call.error = exc
        return call.error is None

    @staticmethod
    def _is_everybodys(exc: sqlite3.Error, conn: sqlite3.Connection) -> bool:
        """Whether a call's failure ends the transaction for all."""
        # On a full disk or an I/O error SQLite may have rolled everything back on its own.
        return _primary_code(exc) in _BROKEN or not conn.in_transaction

    def _recover(self, exc: sqlite3.Error) -> None:
        """End the failed transaction, and part with the connection where that is not enough."""
        # A cursor in one of them would keep the connection half open after it was closed.
        _drop_frames(exc)
        conn = self._conn
        if conn is None:
            return
        with contextlib.suppress(sqlite3.Error):
            if conn.in_transaction:
                conn.execute("ROLLBACK")
            if _primary_code(exc) not in _USELESS:
                return
        self._conn = None
        self.replaced += 1
        with contextlib.suppress(sqlite3.Error):
            conn.close()


class Writer(Lane):
    """The one connection that writes, and the only one that ever runs a `wal_checkpoint`. A database in
    memory has no upkeep."""

    def __init__(self, connect: Callable[[], sqlite3.Connection], upkeep: Upkeep | None = None) -> None:
        super().__init__(lambda: self._on_firm_ground(connect()))
        self.upkeep = upkeep

    def run(self) -> None:
        """See `Lane.run`; then the upkeep learns what that made of the log."""
        super().run()
        if self.upkeep is not None:
            self.upkeep.after_batch()

    def prepare(self) -> None:
        """Open the connection. Raises `sqlite3.Error` when that is not possible; the upkeep's own
        troubles are no reason not to start."""
        self.open()
        self._keep_up(Upkeep.begin)

    def tidy(self) -> None:
        """Do the upkeep that is due. Raises nothing but bugs."""
        self._keep_up(Upkeep.run)

    def close(self) -> None:
        """Move the write-ahead log into the database file, then close."""
        if self._conn is not None:
            # Where it fails nothing is lost: the next start finds it all in the log.
            self._keep_up(Upkeep.end)
        super().close()

    def _keep_up(self, work: Callable[[Upkeep, sqlite3.Connection], None]) -> None:
        if self.upkeep is None:
            return
        try:
            work(self.upkeep, self.open())
        except sqlite3.Error as exc:
            self.upkeep.failed(exc)
            self._recover(exc)

    def _run(self, conn: sqlite3.Connection) -> None:
        execute = conn.cursor().execute
        began_at = time.perf_counter()
        execute("BEGIN IMMEDIATE")
        now = time.perf_counter()
        if now - began_at >= LOCK_WAIT_S:
            self.lock_waits += 1
            self.lock_wait_s += now - began_at
        ends_at = now + MAX_BATCH_S
        if not self._run_together(conn, ends_at):
            execute("ROLLBACK")
            execute("BEGIN IMMEDIATE")
            self._run_apart(conn, ends_at)
        began_at = time.perf_counter()
        execute("COMMIT")
        self.commit_s = time.perf_counter() - began_at
        for call in self.begun:
            call.settled = True

    def _run_together(self, conn: sqlite3.Connection, ends_at: float) -> bool:
        """Run what waits, until then; whether all of it succeeded. What failed is not told: it will be run
        again. Raises `sqlite3.Error` when a failure is the whole transaction's."""
        for call in self._calls(ends_at):
            try:
                call.result = call.fn(conn)
            except Exception as exc:
                _drop_frames(exc)
                if isinstance(exc, sqlite3.Error) and self._is_everybodys(exc, conn):
                    raise
                return False  # it happens again where it is told
        return True

    def _run_apart(self, conn: sqlite3.Connection, ends_at: float) -> None:
        """Run what has begun once more, then what waits, each in a savepoint. Raises `sqlite3.Error` as
        `_attempt` does."""
        for call in chain(tuple(self.begun), self._calls(ends_at)):
            conn.execute("SAVEPOINT call")
            if not self._attempt(call, conn):
                conn.execute("ROLLBACK TO call")
            conn.execute("RELEASE call")

    def _on_firm_ground(self, conn: sqlite3.Connection) -> sqlite3.Connection:
        """The connection; one that stands in for a broken one only once the log before it is in the
        database file. Raises `sqlite3.Error`.

        After an `fsync` that failed, Linux takes the pages for written. When no other connection is left
        to know better, the log is read anew, from memory, with the failed commit at its end; the next
        commit would be put behind it and acknowledged, and a power cut would find a hole before it. A
        `wal_checkpoint` writes it all once more, and what comes then begins a new log.
        """
        if self.replaced:
            try:
                # It may say that somebody goes on reading in the log. That is no reason to refuse writes
                # until they end, for with them the log's index is still there, and knows where it ends.
                conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            except BaseException:
                conn.close()
                raise
        return conn


class Reader(Lane):
    """A connection that only reads."""

    def __init__(self, connect: Callable[[], sqlite3.Connection]) -> None:
        self._current: Call[Any] | None = None
        super().__init__(lambda: self._watched(connect()))

    def _run(self, conn: sqlite3.Connection) -> None:
        conn.execute("BEGIN")
        for call in self._calls(time.perf_counter() + MAX_BATCH_S):
            self._current = call
            self._attempt(call, conn)
            call.settled = True
        self._current = None
        conn.execute("COMMIT")

    def _watched(self, conn: sqlite3.Connection) -> sqlite3.Connection:
        # Not Connection.interrupt(): by the time it strikes, the thread may be at the next call.
        conn.set_progress_handler(self._is_abandoned, PROGRESS_STEPS)
        return conn

    def _is_abandoned(self) -> bool:
        return self._current is not None and self._current.waiter is None


class SharedReader(Reader):
    """A reader over the writer's own connection, for a database in memory: there is no second
    connection to it. Runs only where batches never overlap."""

    def close(self) -> None:
        """Nothing: the connection is the writer's to close."""

    def _run(self, conn: sqlite3.Connection) -> None:
        conn.execute("PRAGMA query_only = ON")
        try:
            super()._run(conn)
        finally:
            conn.execute("PRAGMA query_only = OFF")


def _drop_frames(exc: BaseException) -> None:
    """Empty the frames the traceback holds: a half-read cursor in one of them would keep this
    connection's snapshot alive for as long as somebody looks at the exception."""
    traceback.clear_frames(exc.__traceback__)


def _memory_failure(exc: sqlite3.Error) -> MemoryFailure:
    """What a caller is told; the cause is for the log."""
    code = _primary_code(exc)
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        failure = MemoryFailure("the database is busy", retry_after_s=BUSY_RETRY_S)
    elif code == sqlite3.SQLITE_FULL:
        failure = MemoryFailure("the database's disk is full", retry_after_s=DISK_RETRY_S)
    elif code == sqlite3.SQLITE_READONLY:
        failure = MemoryFailure("the database cannot be written", retry_after_s=DISK_RETRY_S)
    else:
        failure = MemoryFailure("the database could not be read or written", retry_after_s=DISK_RETRY_S)
    failure.__cause__ = exc
    return failure


def _primary_code(exc: sqlite3.Error) -> int | None:
    # Errors that the sqlite3 module raises by itself (a closed connection) have none.
    code: int | None = getattr(exc, "sqlite_errorcode", None)
    return None if code is None else code & 0xFF
