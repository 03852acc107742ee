"""sqlite3 over `trio.to_thread`: what one writes first, with one connection or a pool of ten."""

import sqlite3
from collections import deque
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing
from pathlib import Path

import attrs
import trio

from loadgen.storage.job import CONTENT, INSERT, READ, Row, Session, Values, connect

POOL_SIZE = 10


@attrs.frozen
class Pool:
    """Connections, one for each thread there may be. An insert alone is its own transaction."""

    _idle: deque[sqlite3.Connection]
    _limiter: trio.CapacityLimiter

    async def append(self, row: Row) -> None:
        """See `Session`."""
        await trio.to_thread.run_sync(self._append, row, limiter=self._limiter)

    async def read(self, values: Values) -> list[str]:
        """See `Session`."""
        rows = await trio.to_thread.run_sync(self._read, values, limiter=self._limiter)
        return [row[CONTENT] for row in rows]

    def _append(self, row: Row) -> None:
        conn = self._idle.pop()
        try:
            conn.execute(INSERT, row)
        finally:
            self._idle.append(conn)

    def _read(self, values: Values) -> list[Row]:
        conn = self._idle.pop()
        try:
            return conn.execute(READ, values).fetchall()
        finally:
            self._idle.append(conn)


@asynccontextmanager
async def _opened(path: Path, journal: str, synchronous: str, size: int) -> AsyncIterator[Session]:
    with ExitStack() as stack:
        connections = [stack.enter_context(closing(connect(path, journal, synchronous))) for _ in range(size)]
        yield Pool(deque(connections), trio.CapacityLimiter(size))


@asynccontextmanager
async def default_journal(path: Path, synchronous: str) -> AsyncIterator[Session]:
    """One connection with a rollback journal: the limiter of one thread is its lock."""
    async with _opened(path, "DELETE", synchronous, 1) as session:
        yield session


@asynccontextmanager
async def one_in_wal(path: Path, synchronous: str) -> AsyncIterator[Session]:
    """One connection in WAL mode: with one task, a bare `to_thread.run_sync` of the statement."""
    async with _opened(path, "WAL", synchronous, 1) as session:
        yield session


@asynccontextmanager
async def pool_of_ten(path: Path, synchronous: str) -> AsyncIterator[Session]:
    """Ten connections in WAL mode."""
    async with _opened(path, "WAL", synchronous, POOL_SIZE) as session:
        yield session
