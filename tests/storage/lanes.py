"""Calls for the database whose moment the test decides."""

import contextlib
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable

import trio
import trio.testing

from persona.storage.pool import Database

Work = Callable[[sqlite3.Connection], object]
ENDLESS = "WITH RECURSIVE n (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM n) SELECT count(*) FROM n"


def create(conn: sqlite3.Connection) -> None:
    conn.execute("CREATE TABLE log (n INTEGER PRIMARY KEY, parent INTEGER REFERENCES log (n))")


def add(n: int) -> Callable[[sqlite3.Connection], int]:
    def insert(conn: sqlite3.Connection) -> int:
        conn.execute("INSERT INTO log (n) VALUES (?)", (n,))
        return n

    return insert


def rows(conn: sqlite3.Connection) -> list[int]:
    return [n for (n,) in conn.execute("SELECT n FROM log ORDER BY n")]


def batches(database: Database) -> tuple[int, int]:
    """The writer's transactions since it was opened, and the calls in them."""
    sizes = database.statistics().write_batches
    return sizes.count, int(sizes.total)


class Gate:
    """A call that holds its lane until the gate is opened."""

    def __init__(self) -> None:
        self.entered = trio.Event()
        self._opened = threading.Event()
        self._token = trio.lowlevel.current_trio_token()

    def __call__(self, conn: sqlite3.Connection) -> None:
        self._token.run_sync_soon(self.entered.set)
        assert self._opened.wait(10), "nobody opened the gate"

    def open(self) -> None:
        self._opened.set()


@contextlib.asynccontextmanager
async def held(submit: Callable[[Work], object]) -> AsyncIterator[tuple[Gate, trio.Nursery]]:
    """One lane is held; calls started in the nursery queue up behind it. Opens the gate at the end."""
    gate = Gate()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(submit, gate)  # type: ignore[arg-type]
            await gate.entered.wait()
            yield gate, nursery
            await trio.testing.wait_all_tasks_blocked()
            gate.open()
    finally:
        gate.open()
