"""The database as tasks see it: hand in a function of a connection, wait for what it returns.

One writer and a few readers, each a task with a connection of its own. Each takes everything that
waits, runs it as one transaction in one hop to a thread (`batch`), and wakes the callers. A call alone
waits for nobody; under load calls share the hop, the transaction and, for writes, the disk's
`fsync`, which is where the speed comes from: there is no pool of connections to wait for.

Rules:

* A write is answered after its commit. Its caller's error rolls back that write alone.
* Cancelling a caller is safe: a call that has not started is dropped; a write that has is committed or
  rolled back as a whole, with nobody told which.
* At most `max_queue` callers wait on each side; a further one waits `queue.MAX_ADMISSION_S` for a place,
  then gets `Overloaded`.
* Leaving `open_database` finishes what was accepted, even when the surrounding scope is cancelled,
  for at most `CLOSE_TIMEOUT_S`.
* Threads hold connections, so none is ever abandoned.
* What the file needs besides (`upkeep`) the writer does while nobody writes, or between two batches: a
  write waits for one `wal_checkpoint` at most.
"""

import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import ExitStack, asynccontextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast, final

import attrs
import trio

from persona.errors import MemoryFailure
from persona.groups import ungrouped
from persona.metrics import Distribution
from persona.storage.batch import FAILURE_KINDS, Lane, Reader, SharedReader, Writer
from persona.storage.connection import (
    MEMORY,
    ConnectionSettings,
    Synchronous,
    startup_errors,
    warn_of_wal_reset_bug,
)
from persona.storage.lock import exclusive
from persona.storage.queue import CallQueue
from persona.storage.upkeep import Upkeep

if TYPE_CHECKING:
    from outcome import Outcome

T = TypeVar("T")
Hop = Callable[[Callable[[], T]], Awaitable[T]]

CLOSE_TIMEOUT_S = 10.0
"""How long closing waits for accepted calls. Above `busy_timeout_s`, so that a lock held by another
program shows as what it is."""
SHIELDED_WRITE_TIMEOUT_S = 12.0
"""How long a write may hold up the cancellation of its caller: a stuck disk must not keep connections
from ending. Above twice `busy_timeout_s`, for the same reason: who comes while one batch waits for a lock
waits for it once more in the next."""


@attrs.frozen(kw_only=True)
class DatabaseStatistics:
    """Figures since the start, or of this moment."""

    write_queue_length: int
    read_queue_length: int
    writes: int
    """Calls that ran, whatever became of them; `reads` likewise."""
    reads: int
    writes_refused: int
    """Calls that found no place in time; `reads_refused` likewise."""
    reads_refused: int
    mean_batch_size: float
    write_batches: Distribution
    """Calls in a batch; `read_batches` likewise."""
    read_batches: Distribution
    write_waits: Distribution
    """Of each batch, how long its first call had waited when the writer took it, in seconds;
    `read_waits` likewise."""
    read_waits: Distribution
    commits: Distribution
    """How long each commit of the writer took, in seconds: mostly the disk's `fsync`."""
    readers_busy: int
    lock_waits: int
    """Transactions that began `batch.LOCK_WAIT_S` or more late, for another program held the lock."""
    lock_wait_s: float
    """How late these were in all."""
    replaced_connections: int
    failures: dict[str, int]
    """Failures of SQLite by kind, one of `batch.FAILURE_KINDS`."""
    wal_bytes: int
    """The size of the write-ahead log's file."""
    wal_checkpoints: int
    """How often the write-ahead log was taken in and emptied."""
    wal_checkpoints_put_off: int
    """How often a part of it stayed, since somebody still read from it."""
    upkeep_failures: int
    """Each was logged as `database_upkeep_failed`."""


@final
class Database:
    """Reads and writes of one database. Made by `open_database`; safe to use from many tasks."""

    def __init__(self, writes: CallQueue, reads: CallQueue, upkeep: Upkeep | None = None) -> None:
        self._writes = writes
        self._reads = reads
        self._upkeep = upkeep

    async def write(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run `fn` on the writer's connection; returns when what it did is on disk.

        `fn` runs in a thread, inside a transaction it must not end, and returns nothing tied to the
        connection. It may be run twice, with the first run undone, so it changes nothing else. What it
        raises rolls it back and is raised here; `sqlite3.Error` becomes `MemoryFailure`, and so does a
        failed commit. Also raises `Overloaded` and `ShuttingDown`.

        Cancelling is safe: `fn` is then done wholly or not at all.
        """
        return await self._writes.call(fn)

    async def read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Run `fn` on a reader's connection, where everything it reads is one snapshot that holds at
        least what was written before.

        The rules for `fn` and the errors are those of `write`. Cancelling is safe, and stops a long
        query.
        """
        return await self._reads.call(fn)

    async def release_memory(self) -> None:
        """Give back the pages that the writer and one reader keep; they are read again when they are needed.

        Raises as `write` and `read` do. Cancelling is safe.
        """
        await self.write(_shrink)
        # Which reader takes it cannot be said, and each has pages of its own: most are given back.
        await self.read(_shrink)

    def statistics(self) -> DatabaseStatistics:
        """Figures for the monitor. Cheap: the only I/O is one `stat`, which the kernel answers from
        memory for a file that is open."""
        writes, reads, upkeep = self._writes, self._reads, self._upkeep
        lanes = (*writes.lanes, *reads.lanes)
        return DatabaseStatistics(
            write_queue_length=len(writes),
            read_queue_length=len(reads),
            writes=int(writes.batches.total),
            reads=int(reads.batches.total),
            writes_refused=writes.refused,
            reads_refused=reads.refused,
            mean_batch_size=writes.batches.mean,
            write_batches=writes.batches.copy(),
            read_batches=reads.batches.copy(),
            write_waits=writes.waits.copy(),
            read_waits=reads.waits.copy(),
            commits=writes.commits.copy(),
            readers_busy=reads.busy,
            lock_waits=sum(lane.lock_waits for lane in lanes),
            lock_wait_s=sum(lane.lock_wait_s for lane in lanes),
            replaced_connections=sum(lane.replaced for lane in lanes),
            failures={kind: sum(lane.failures[kind] for lane in lanes) for kind in FAILURE_KINDS},
            wal_bytes=0 if upkeep is None else upkeep.wal_bytes(),
            wal_checkpoints=0 if upkeep is None else upkeep.checkpoints,
            wal_checkpoints_put_off=0 if upkeep is None else upkeep.put_off,
            upkeep_failures=0 if upkeep is None else upkeep.failures,
        )


def _shrink(conn: sqlite3.Connection) -> None:
    conn.execute("PRAGMA shrink_memory")


async def write_shielded(database: Database, fn: Callable[[sqlite3.Connection], T]) -> T:
    """`Database.write` for what must be known to have happened or not: its caller's cancellation
    waits for it.

    Raises `MemoryFailure` after `SHIELDED_WRITE_TIMEOUT_S`; then only the disk knows.
    """
    with trio.move_on_after(SHIELDED_WRITE_TIMEOUT_S, shield=True):
        return await database.write(fn)
    raise MemoryFailure("the database did not answer in time", retry_after_s=SHIELDED_WRITE_TIMEOUT_S)


@asynccontextmanager
async def open_database(
    path: Path | Literal[":memory:"],
    *,
    readers: int = 2,
    synchronous: Synchronous = "full",
    busy_timeout_s: float = 5,
    cache_pages: int = 10_000,
    wal_limit_bytes: int = 16 * 1024 * 1024,
    max_queue: int = 1024,
    threads: bool = True,
) -> AsyncIterator[Database]:
    """Open the database at `path`, creating or migrating it, until the block is left.

    `threads=False` goes with `":memory:"` and only with it: one connection, and batches that run in
    the event loop, so that everything is exact under `trio.testing.MockClock`.

    Raises `DatabaseError` when the file cannot be used, or another server has it open. The
    connections' tasks are this function's own affair: an exception of the block leaves it as it is,
    in no group.
    """
    if (str(path) == MEMORY) == threads:
        raise ValueError('":memory:" needs threads=False, and threads=False needs ":memory:"')
    settings = ConnectionSettings(
        path=Path(path).absolute(),
        synchronous=synchronous,
        busy_timeout_s=busy_timeout_s,
        cache_pages=cache_pages,
    )
    writes, reads = CallQueue(max_queue), CallQueue(max_queue)
    with ExitStack() as stack:
        if threads:
            hop: Hop[Any] = _in_thread
            warn_of_wal_reset_bug()
            with startup_errors(settings.path):
                settings.make_directory()
                stack.enter_context(exclusive(settings.path))
            upkeep = Upkeep(settings.wal_path, wal_limit_bytes)
            writer, reads.lanes = await hop(partial(_open_lanes, settings, readers, upkeep))
        else:
            hop = _stay
            conn = settings.open_memory()
            writer, reads.lanes = Writer(lambda: conn), [SharedReader(lambda: conn)]
            writer.open()
        writes.lanes = [writer]
        stack.enter_context(ungrouped())
        async with _serving(writer, writes, reads, hop):
            yield Database(writes, reads, writer.upkeep)


@asynccontextmanager
async def _serving(writer: Writer, writes: CallQueue, reads: CallQueue, hop: Hop[Any]) -> AsyncIterator[None]:
    """Run the lanes while the block runs, and until what it put in is done."""
    # The lanes are shielded for as long as the block runs, because those in it may still save something
    # while they are being cancelled; the end of the block bounds that.
    scope = trio.CancelScope(shield=True)
    drained = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_run_lanes, writer, writes, reads, hop, scope, drained)
        try:
            yield
        finally:
            writes.close()
            reads.close()
            with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                await drained.wait()
            writes.give_up()
            reads.give_up()
            scope.cancel()


async def _run_lanes(
    writer: Writer,
    writes: CallQueue,
    reads: CallQueue,
    hop: Hop[Any],
    scope: trio.CancelScope,
    drained: trio.Event,
) -> None:
    """Run the lanes until their queues are closed and empty, then close the connections."""
    try:
        with scope:
            async with trio.open_nursery() as watchers:
                # Not for one lane, and neither under a mock clock, for a database in memory: their timers
                # would move the time.
                if len(reads.lanes) > 1:
                    watchers.start_soon(reads.watch)
                if writer.upkeep is not None:
                    watchers.start_soon(_nudge_when_idle, writes, writer.upkeep)
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_write, writes, writer, hop)
                    for lane in reads.lanes:
                        nursery.start_soon(_work, reads, lane, hop)
                watchers.cancel_scope.cancel()
    finally:
        # Nobody waits any more, unless a lane died of a bug: then nobody will come to who does.
        for queue in (writes, reads):
            queue.close()
            queue.give_up()
        drained.set()
        with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
            # The writer last: whoever closes last moves the log into the file.
            await hop(partial(_close_lanes, (*reads.lanes, writer)))


@trio.lowlevel.enable_ki_protection
async def _work(queue: CallQueue, lane: Lane, hop: Hop[None]) -> None:
    while await queue.take(lane):
        await hop(lane.run)
        queue.answer(lane)


async def _in_thread(fn: Callable[[], T]) -> T:
    """Run `fn` in a worker thread; cancellation waits for it.

    Not `trio.to_thread.run_sync`: its limiter costs a turn of the event loop even when nobody else wants
    a place, a tenth of what a lone read takes. Here there is nothing to limit, since each lane has one thread
    at a time, and nothing that runs in one asks for the caller's context.
    """
    token, task = trio.lowlevel.current_trio_token(), trio.lowlevel.current_task()

    def deliver(result: "Outcome[T]") -> None:
        # The loop cannot end before this task, unless trio itself has failed; then nobody waits.
        with suppress(trio.RunFinishedError):
            token.run_sync_soon(trio.lowlevel.reschedule, task, result)

    trio.lowlevel.start_thread_soon(fn, deliver, "persona database")
    return cast(T, await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED))


@trio.lowlevel.enable_ki_protection
async def _write(queue: CallQueue, writer: Writer, hop: Hop[None]) -> None:
    """As `_work`, with upkeep in between: callers have then been answered, and the next ones wait for no
    more than one step of it."""
    upkeep = writer.upkeep
    while await queue.take(writer):
        is_nudged = not writer.waiting
        if not is_nudged:
            await hop(writer.run)
            queue.answer(writer)
        if upkeep is not None and (is_nudged or upkeep.is_due):
            await hop(writer.tidy)


async def _nudge_when_idle(queue: CallQueue, upkeep: Upkeep) -> None:
    """Wake the writer when it has not run a batch for a while and has left something in the log.

    Not a deadline around each of the writer's rests: nobody needs it so exact, and each lone write would pay
    for it.
    """
    seen = upkeep.batches
    while True:
        await trio.sleep(upkeep.pause_s)
        if upkeep.has_log and seen == upkeep.batches:
            queue.nudge()
        seen = upkeep.batches


async def _stay(fn: Callable[[], T]) -> T:
    """A hop that leads nowhere: for a database in memory."""
    await trio.lowlevel.checkpoint()
    return fn()


def _open_lanes(settings: ConnectionSettings, readers: int, upkeep: Upkeep) -> tuple[Writer, list[Lane]]:
    writer = Writer(settings.connect, upkeep)
    others: list[Lane] = [Reader(partial(settings.connect, query_only=True)) for _ in range(readers)]
    lanes = [writer, *others]
    with startup_errors(settings.path):
        settings.prepare()
        try:
            writer.prepare()
            for lane in others:
                lane.open()
        except BaseException:
            _close_lanes(reversed(lanes))
            raise
    return writer, others


def _close_lanes(lanes: Iterable[Lane]) -> None:
    for lane in lanes:
        lane.close()
