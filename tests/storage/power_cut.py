"""A program for `test_faults`, run through `fiu-run`: a commit whose `fsync` fails is the last thing that
every connection saw, then one succeeds. It prints which rows were acknowledged.

Beside the database it leaves copies of the write-ahead log: `synced` before the fault, `written` with
the failed commit at its end.
"""

import contextlib
import ctypes
import errno
import sqlite3
import subprocess
import sys
from pathlib import Path

import trio

from persona.errors import MemoryFailure
from persona.storage.pool import Database, open_database
from tests.disk import SYNC
from tests.storage.lanes import add, create, rows

libfiu = ctypes.CDLL("libfiu.so.0")


def fail() -> None:
    assert libfiu.fiu_enable(SYNC.encode(), 1, ctypes.c_void_p(errno.EIO), 0) == 0


def heal() -> None:
    assert libfiu.fiu_disable(SYNC.encode()) == 0


def copy(file: Path, name: str) -> None:
    # In another process: to close a file here would let go of all of SQLite's locks on it.
    subprocess.run(["cp", file, file.with_name(name)], check=True)


async def break_connection(database: Database) -> None:
    with contextlib.suppress(MemoryFailure):
        await database.read(sqlite3.Connection.close)


async def main(path: Path) -> None:
    log = path.with_name(f"{path.name}-wal")
    acknowledged = []
    async with open_database(path, readers=1) as database:
        await database.write(create)
        await database.write(add(1))
        acknowledged.append(1)
        copy(log, "synced")
        fail()
        try:
            await database.write(add(2))
            acknowledged.append(2)
        except MemoryFailure:
            # The writer's connection is gone. With the reader's nobody is left to know where the log ends.
            await break_connection(database)
        copy(log, "written")
        heal()
        found = await database.read(rows)
        await database.write(add(3))
        acknowledged.append(3)
        copy(path, "final")
        copy(log, "final-wal")
    print(acknowledged, found)


if __name__ == "__main__":
    trio.run(main, Path(sys.argv[1]))
