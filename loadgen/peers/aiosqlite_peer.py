"""aiosqlite: one connection with a thread of its own."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import cast

import aiosqlite
import attrs

from loadgen.storage.job import BUSY_TIMEOUT_S, CONTENT, INSERT, READ, Row, Session, Values, pragmas


@attrs.frozen
class Connection:
    """Without a lock: a commit takes with it what other tasks have inserted meanwhile, and theirs then find
    nothing left to do. That is its fastest way; an error would roll back everybody's."""

    _conn: aiosqlite.Connection

    async def append(self, row: Row) -> None:
        """See `Session`."""
        # The cursor is left to the garbage collector: to close it would take a third hop.
        await self._conn.execute(INSERT, row)
        await self._conn.commit()

    async def read(self, values: Values) -> list[str]:
        """See `Session`."""
        rows = cast(list[Row], await self._conn.execute_fetchall(READ, values))
        return [row[CONTENT] for row in rows]


@attrs.frozen
class ConnectionWithCursors(Connection):
    """With cursors as in its documentation: a hop for each step instead of one for all."""

    async def read(self, values: Values) -> list[str]:
        """See `Session`."""
        async with self._conn.execute(READ, values) as cursor:
            rows = cast(list[Row], await cursor.fetchall())
        return [row[CONTENT] for row in rows]


async def configure(conn: aiosqlite.Connection, synchronous: str) -> None:
    """Set the connection like everybody's."""
    for statement in pragmas("WAL", synchronous):
        await conn.execute_fetchall(statement)


@asynccontextmanager
async def one_connection(path: Path, synchronous: str) -> AsyncIterator[Session]:
    """The one connection that all tasks share."""
    async with aiosqlite.connect(path, timeout=BUSY_TIMEOUT_S) as conn:
        await configure(conn, synchronous)
        yield Connection(conn)


@asynccontextmanager
async def one_connection_with_cursors(path: Path, synchronous: str) -> AsyncIterator[Session]:
    """The same, with cursors."""
    async with aiosqlite.connect(path, timeout=BUSY_TIMEOUT_S) as conn:
        await configure(conn, synchronous)
        yield ConnectionWithCursors(conn)
