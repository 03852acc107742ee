"""What every side is given: a file, statements, settings; and what has to be in the file afterwards."""

import os
import shutil
import sqlite3
from collections import Counter
from contextlib import closing
from pathlib import Path
from typing import Any, Protocol

import attrs

from persona.storage import schema, store, turns
from persona.storage.seed import ARIA_ID

Row = tuple[Any, ...]
Values = dict[str, Any]

CONVERSATIONS = 100
CONTENT_BYTES = 300
READ_TURNS = 20
INSERT = turns.INSERT_TURN
READ = """
    SELECT role, speaker_id, content FROM turns INDEXED BY turns_siblings
    WHERE conversation_id = :conversation ORDER BY parent_id DESC LIMIT :limit
"""
"""What a model is shown of a conversation's last turns, in the plainest way to them: where nothing has
branched, a turn's parent is the turn before. The server itself walks up a branch; what that costs is measured
apart ("with all the server does")."""
CONTENT = 2
"""The content's place in a row of `READ`."""
BUSY_TIMEOUT_S = 60.0
"""Beyond any wait that a crowd of writers makes for itself: no side may fail for it."""


_LAST_TURN_IS_CURRENT = """
    UPDATE conversations SET current_turn_id =
        (SELECT max(turns.id) FROM turns WHERE turns.conversation_id = conversations.id)
"""


class WrongResult(Exception):
    """A side lost a turn, invented one, or read what it should not have."""


class Session(Protocol):
    """An open database."""

    async def append(self, row: Row) -> None:
        """Insert one row with `INSERT`; returns when it is committed."""
        ...

    async def read(self, values: Values) -> list[str]:
        """Run `READ`; the contents of the rows, in their order."""
        ...


def pragmas(journal: str, synchronous: str) -> tuple[str, ...]:
    """What a connection is set to: as ours are, but for what makes a side what it is."""
    return (
        f"PRAGMA journal_mode = {journal}",
        f"PRAGMA synchronous = {synchronous}",
        "PRAGMA cache_size = 10000",
        "PRAGMA foreign_keys = ON",
    )


def connect(path: Path, journal: str, synchronous: str) -> sqlite3.Connection:
    """A connection of the standard library's, for a pool over threads. A statement alone is a transaction."""
    conn = sqlite3.connect(path, timeout=BUSY_TIMEOUT_S, isolation_level=None, check_same_thread=False)
    for statement in pragmas(journal, synchronous):
        conn.execute(statement).fetchall()
    return conn


@attrs.frozen
class Job:
    """A database of so many turns, and the conversation that is read."""

    template: Path
    turns: int
    expected: tuple[str, ...]
    """What a read must find, newest first."""

    @classmethod
    def prepare(cls, template: Path, size: int) -> "Job":
        """Make the file: our schema, and turns of all conversations taking turns, so that those of one
        are as far apart as in a server with many users."""
        with closing(sqlite3.connect(template, isolation_level=None)) as conn:
            schema.migrate(conn, template)
            conn.execute("BEGIN")
            conn.executemany(
                store.CREATE_CONVERSATION,
                [
                    {
                        "id": f"c{n}",
                        "persona_id": ARIA_ID,
                        "user": "anonymous",
                        "created_at": n,
                        "updated_at": n,
                        "turn_count": 0,
                    }
                    for n in range(CONVERSATIONS)
                ],
            )
            # A new file numbers its turns from 1 on.
            conn.executemany(
                INSERT,
                (
                    _row(
                        f"c{n % CONVERSATIONS}",
                        f"old {n}",
                        n + 1 - CONVERSATIONS if n >= CONVERSATIONS else None,
                    )
                    for n in range(size)
                ),
            )
            conn.execute(_LAST_TURN_IS_CURRENT)
            conn.execute("COMMIT")
        first = [_padded(f"old {n}") for n in range(0, size, CONVERSATIONS)]
        return cls(template, size, tuple(reversed(first[-READ_TURNS:])))

    @property
    def read_values(self) -> Values:
        """The values for `READ`. Nobody appends to this conversation, so the answer is always the same."""
        leaf = (self.turns - 1) // CONVERSATIONS * CONVERSATIONS + 1
        return {"conversation": "c0", "leaf": leaf, "limit": READ_TURNS}

    def row(self, task: int, n: int) -> Row:
        """The `n`-th turn that a task appends."""
        return _row(f"c{1 + task % (CONVERSATIONS - 1)}", f"new {task} {n}")

    def copy(self, path: Path) -> None:
        """A fresh file, on disk before anything is measured."""
        for other in path.parent.glob(f"{path.name}*"):
            other.unlink()
        shutil.copyfile(self.template, path)
        with path.open("rb+") as file:
            os.fsync(file.fileno())

    def verify(self, path: Path, acknowledged: list[str]) -> None:
        """Look whether the file holds what was there, and what was acknowledged, each once. Raises
        `WrongResult`."""
        with closing(sqlite3.connect(path)) as conn:
            (old,) = conn.execute("SELECT count(*) FROM turns WHERE content LIKE 'old %'").fetchone()
            new = Counter(
                content for (content,) in conn.execute("SELECT content FROM turns WHERE content LIKE 'new %'")
            )
            (total,) = conn.execute("SELECT count(*) FROM turns").fetchone()
        expected = Counter(acknowledged)
        if old != self.turns or new != expected or total != self.turns + len(acknowledged):
            raise WrongResult(
                f"{old} of {self.turns} old turns, {(new & expected).total()} of {len(acknowledged)} "
                f"acknowledged ones, {total} in all"
            )


def _padded(text: str) -> str:
    return text.ljust(CONTENT_BYTES, ".")


def _row(conversation_id: str, text: str, parent_id: int | None = None) -> Row:
    return (conversation_id, parent_id, "user", "anonymous", _padded(text), 1.0, 0, None, None, None, None)
