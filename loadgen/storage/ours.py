"""Ours: `open_database`, with the statement that all sides run, and with what the server runs."""

import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Literal, cast

import attrs

from loadgen.storage.job import CONTENT, INSERT, READ, Row, Session, Values
from persona.model import NewTurn
from persona.storage import turns
from persona.storage.pool import Database, open_database


@attrs.frozen
class Ours:
    """One statement a call, like everybody."""

    _database: Database

    async def append(self, row: Row) -> None:
        """See `Session`."""

        def insert(conn: sqlite3.Connection) -> None:
            conn.execute(INSERT, row)

        await self._database.write(insert)

    async def read(self, values: Values) -> list[str]:
        """See `Session`."""
        rows = await self._database.read(lambda conn: conn.execute(READ, values).fetchall())
        return [row[CONTENT] for row in rows]


@attrs.frozen
class AsServed:
    """What the server calls: an append also moves the conversation's time, counts its turns and finds the
    turn's parent; a read walks up a branch."""

    _database: Database

    async def append(self, row: Row) -> None:
        """See `Session`."""
        turn = NewTurn(role=row[2], speaker_id=row[3], content=row[4], created_at=row[5])
        await self._database.write(lambda conn: turns.append_turns(conn, row[0], [turn]))

    async def read(self, values: Values) -> list[str]:
        """See `Session`."""
        found = await self._database.read(lambda conn: turns.branch(conn, values["leaf"], values["limit"]))
        return [turn.content for turn in reversed(found)]


@asynccontextmanager
async def ours(path: Path, synchronous: str) -> AsyncIterator[Session]:
    """The database as the server opens it."""
    async with open_database(path, synchronous=cast(Literal["full", "normal"], synchronous)) as database:
        yield Ours(database)


@asynccontextmanager
async def as_served(path: Path, synchronous: str) -> AsyncIterator[Session]:
    """The same, with the store's functions."""
    async with open_database(path, synchronous=cast(Literal["full", "normal"], synchronous)) as database:
        yield AsServed(database)
