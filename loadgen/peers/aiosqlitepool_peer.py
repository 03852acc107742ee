"""aiosqlitepool: a pool of aiosqlite's connections."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import cast

import aiosqlite
import attrs
from aiosqlitepool import SQLiteConnectionPool

from loadgen.peers.aiosqlite_peer import configure
from loadgen.storage.job import BUSY_TIMEOUT_S, CONTENT, INSERT, READ, Row, Session, Values

POOL_SIZE = 10


@attrs.frozen
class Pool:
    """A connection for each call, and a commit for each append."""

    _pool: SQLiteConnectionPool

    async def append(self, row: Row) -> None:
        """See `Session`."""
        async with self._pool.connection() as conn:
            await conn.execute(INSERT, row)
            await conn.commit()

    async def read(self, values: Values) -> list[str]:
        """See `Session`."""
        async with self._pool.connection() as conn:
            rows = cast(list[Row], await conn.execute_fetchall(READ, values))
        return [row[CONTENT] for row in rows]


async def _connect(path: Path, synchronous: str) -> aiosqlite.Connection:
    conn = await aiosqlite.connect(path, timeout=BUSY_TIMEOUT_S)
    await configure(conn, synchronous)
    return conn


@asynccontextmanager
async def pool(path: Path, synchronous: str) -> AsyncIterator[Session]:
    """A pool of ten."""
    async with SQLiteConnectionPool(
        partial(_connect, path, synchronous),
        pool_size=POOL_SIZE,
        acquisition_timeout=int(BUSY_TIMEOUT_S),
        operation_timeout=int(BUSY_TIMEOUT_S),
    ) as opened:
        yield Pool(opened)
