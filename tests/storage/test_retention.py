"""Which conversations are removed, and that it takes no look at the others."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from persona.model import Conversation
from persona.storage import schema, store
from persona.storage.retention import REMOVE_EMPTY, remove_empty_conversations
from persona.storage.turns import append_turns
from tests.storage.saved import say

VALUES = {"before": 0, "in_use": "[]", "limit": 1}


@pytest.fixture
def conn() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:", isolation_level=None)) as opened:
        schema.migrate(opened, Path("p.db"))
        opened.execute("PRAGMA foreign_keys = ON")
        yield opened


def start(conn: sqlite3.Connection, name: str, at: float) -> None:
    persona = store.list_personas(conn)[0]
    store.create_conversation(
        conn, Conversation(id=name, persona_id=persona.id, user="anonymous", created_at=at, updated_at=at)
    )


def left(conn: sqlite3.Connection) -> set[str]:
    return {name for (name,) in conn.execute("SELECT id FROM conversations")}


def test_old_empty_and_unused_ones_are_removed(conn: sqlite3.Connection) -> None:
    for name, at in (("old", 1), ("spoken", 1), ("in use", 1), ("just old enough", 9.9), ("young", 10)):
        start(conn, name, at)
    append_turns(conn, "spoken", [say(1)])
    removed = remove_empty_conversations(conn, before=10, in_use={"in use", "gone"}, limit=100)
    assert sorted(removed) == ["just old enough", "old"]
    assert left(conn) == {"spoken", "in use", "young"}


def test_the_oldest_are_first_and_no_more_than_asked(conn: sqlite3.Connection) -> None:
    for n in (3, 1, 4, 2):
        start(conn, f"c{n}", n)
    assert set(remove_empty_conversations(conn, before=10, in_use=(), limit=3)) == {"c1", "c2", "c3"}
    assert remove_empty_conversations(conn, before=10, in_use=(), limit=3) == ["c4"]
    assert remove_empty_conversations(conn, before=10, in_use=(), limit=3) == []


def test_a_wrong_count_costs_nobody_a_conversation(conn: sqlite3.Connection) -> None:
    start(conn, "spoken", 1)
    append_turns(conn, "spoken", [say(1)])
    conn.execute("UPDATE conversations SET turn_count = 0, updated_at = 1")
    assert remove_empty_conversations(conn, before=10, in_use=(), limit=100) == []


@pytest.mark.parametrize("analyzed", [False, True])
def test_only_empty_conversations_are_looked_at(conn: sqlite3.Connection, analyzed: bool) -> None:
    for n in range(500):
        start(conn, f"c{n}", n)
        append_turns(conn, f"c{n}", [say(1)])
    start(conn, "empty", 1)
    if analyzed:
        conn.execute("ANALYZE")
    steps = [row[3] for row in conn.execute(f"EXPLAIN QUERY PLAN {REMOVE_EMPTY}", VALUES)]
    assert any("USING INDEX conversations_empty (updated_at<?)" in step for step in steps)
    assert not any("TEMP B-TREE" in step for step in steps)
    assert [step for step in steps if step.startswith("SCAN") and "json_each" not in step] == []
