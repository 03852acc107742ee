"""Migrations, and what a fresh database holds."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlite_utils import Database
from sqlite_utils.db import ForeignKey

from persona.errors import DatabaseError
from persona.model import Conversation, NewTurn, Priority
from persona.storage import schema, store, turns

PATH = Path("p.db")


@pytest.fixture
def conn() -> Iterator[sqlite3.Connection]:
    opened = sqlite3.connect(":memory:", isolation_level=None)
    yield opened
    opened.close()


def dump(conn: sqlite3.Connection) -> list[str]:
    return [*conn.iterdump(), *(str(conn.execute(f"PRAGMA {name}").fetchone()) for name in ("user_version",))]


def add_moods(db: Database) -> None:
    db.table("personas").add_column("mood", str, not_null_default="calm")
    db.table("conversations").add_column("title", str)


def rebuild_conversations(db: Database) -> None:
    """What sqlite-utils calls a transform: a new table takes the place of one that others refer to. An index
    with a condition it leaves to us."""
    ((sql,),) = db.execute("SELECT sql FROM sqlite_schema WHERE name = 'conversations_empty'").fetchall()
    db.execute("DROP INDEX conversations_empty")
    db.table("conversations").transform(rename={"title": "subject"})
    db.execute(sql)


def fail(db: Database) -> None:
    db.table("personas").drop()
    raise ZeroDivisionError


def test_a_fresh_database_holds_aria_and_kira(conn: sqlite3.Connection) -> None:
    schema.migrate(conn, PATH)
    aria, kira = store.list_personas(conn)
    assert (aria.name, aria.charisma, aria.intelligence, aria.social_rank) == ("Aria", 18, 14, "performer")
    assert (aria.current_priority, aria.max_social_energy, aria.max_available_time_s) == (
        Priority.SOCIAL,
        150,
        600,
    )
    assert all(aria.topic_preferences[topic] >= 90 for topic in ("music", "stories", "travel"))
    assert (kira.name, kira.charisma, kira.intelligence, kira.social_rank) == ("Kira", 12, 18, "scholar")
    assert (kira.current_priority, kira.max_social_energy, kira.max_available_time_s) == (
        Priority.ACADEMIC,
        80,
        300,
    )
    assert all(kira.topic_preferences[topic] >= 90 for topic in ("research", "magic", "history"))
    assert kira.topic_preferences["gossip"] == 10
    assert all(persona.description and persona.backstory for persona in (aria, kira))
    assert not conn.in_transaction


def test_migrating_again_changes_nothing(conn: sqlite3.Connection) -> None:
    schema.migrate(conn, PATH)
    store.delete_persona(conn, store.list_personas(conn)[0].id)
    before = dump(conn)
    schema.migrate(conn, PATH)
    assert dump(conn) == before


def test_an_older_database_is_migrated_with_all_that_is_in_it(conn: sqlite3.Connection) -> None:
    schema.migrate(conn, PATH)
    aria, _ = store.list_personas(conn)
    store.create_conversation(
        conn, Conversation(id="c", persona_id=aria.id, user="u", created_at=1, updated_at=1)
    )
    turns.append_turns(conn, "c", [NewTurn(role="user", speaker_id="u", content="hello", created_at=1.0)])

    newer = (*schema.MIGRATIONS, add_moods, rebuild_conversations)
    schema.migrate(conn, PATH, migrations=newer)

    assert schema.check(conn, PATH, newest=len(newer)) == len(newer)
    assert conn.execute("SELECT DISTINCT mood FROM personas").fetchall() == [("calm",)]
    assert conn.execute("SELECT id, subject FROM conversations").fetchall() == [("c", None)]
    # Rebuilding the table did not cascade into the turns.
    assert conn.execute("SELECT content FROM turns").fetchall() == [("hello",)]
    assert len(store.list_personas(conn)) == 2
    with pytest.raises(DatabaseError, match="newer"):
        schema.check(conn, PATH)


# As version 1 wrote them: a line, then its answer; each follows the one before, and the id of the client's
# message is on the line. `again` was said twice: its first answer was cut.
VERSION_1 = """
    INSERT INTO turns
        (id, conversation_id, parent_id, role, speaker_id, content, created_at, tokens_used, finish_reason,
            client_msg_id)
    VALUES
        (1, 'a', NULL, 'user', 'u', 'hello', 1, 0, NULL, 'm1'),
        (2, 'b', NULL, 'user', 'u', 'hi', 1, 0, NULL, 'm1'),
        (3, 'a', 1, 'assistant', 'p', 'hello!', 2, 1, 'stop', NULL),
        (4, 'b', 2, 'assistant', 'p', 'hi!', 2, 1, 'stop', NULL),
        (5, 'a', 3, 'user', 'u', 'again', 3, 0, NULL, NULL),
        (6, 'a', 5, 'assistant', 'p', 'ag', 4, 1, 'cancelled', NULL),
        (7, 'a', 6, 'user', 'u', 'again', 5, 0, NULL, 'm2'),
        (8, 'a', 7, 'assistant', 'p', 'again!', 6, 1, 'stop', NULL),
        (9, 'a', 8, 'user', 'u', 'no id', 7, 0, NULL, NULL),
        (10, 'a', 9, 'assistant', 'p', 'none!', 8, 1, 'stop', NULL)
"""


def test_conversations_of_one_branch_become_trees(conn: sqlite3.Connection) -> None:
    schema.migrate(conn, PATH, migrations=schema.MIGRATIONS[:1])
    aria, _ = store.list_personas(conn)
    for id_, count in (("a", 8), ("b", 2), ("silent", 0)):
        conn.execute("INSERT INTO conversations VALUES (?, ?, 'u', 1, 8, ?)", (id_, aria.id, count))
    conn.execute(VERSION_1)

    schema.migrate(conn, PATH)

    page = turns.recent_turns(conn, "a", 20)
    assert [turn.id for turn, _ in page.turns] == [1, 3, 5, 6, 7, 8, 9, 10]
    assert {siblings.count for _, siblings in page.turns} == {1}
    assert page.current_turn_id == 10
    assert [turn.content for turn, _ in turns.recent_turns(conn, "b", 20).turns] == ["hi", "hi!"]
    assert turns.recent_turns(conn, "silent", 20) == turns.Page(
        turns=[], has_more=False, current_turn_id=None
    )
    ids = [turn.client_msg_id for turn, _ in page.turns]
    assert ids == [None, "m1", None, None, None, "m2", None, None]
    found = [turns.answer_by_client_msg_id(conn, "a", "m2"), turns.answer_by_client_msg_id(conn, "b", "m1")]
    assert [pair and (pair[0].content, pair[1].content) for pair in found] == [
        ("again!", "again"),
        ("hi!", "hi"),
    ]
    # It goes on, and it branches off, as one that was begun in this version.
    conn.execute("PRAGMA foreign_keys = ON")
    new = NewTurn(role="user", speaker_id="u", content="more", created_at=9.0)
    (more,) = turns.append_turns(conn, "a", [new])
    assert more.parent_id == 10
    (other,) = turns.append_turns(conn, "a", [new], turns.Spot(parent_id=8, seen_leaf_id=more.id))
    page = turns.recent_turns(conn, "a", 2)
    assert [(turn.id, siblings.count) for turn, siblings in page.turns] == [(8, 1), (other.id, 2)]


def test_a_failed_migration_leaves_everything_as_it_was(conn: sqlite3.Connection) -> None:
    schema.migrate(conn, PATH)
    before = dump(conn)
    with pytest.raises(ZeroDivisionError):
        schema.migrate(conn, PATH, migrations=(*schema.MIGRATIONS, add_moods, fail))
    assert dump(conn) == before
    assert not conn.in_transaction


def test_a_failed_first_migration_leaves_an_empty_database(conn: sqlite3.Connection) -> None:
    with pytest.raises(ZeroDivisionError):
        schema.migrate(conn, PATH, migrations=(*schema.MIGRATIONS, fail))
    assert schema.check(conn, PATH) == 0
    assert conn.execute("SELECT count(*) FROM sqlite_schema").fetchone() == (0,)


def test_a_migration_that_breaks_references_is_refused(conn: sqlite3.Connection) -> None:
    def refer_to_nothing(db: Database) -> None:
        key = ForeignKey(table="tags", column="persona_id", other_table="personas", other_column="id")
        db.create_table("tags", {"persona_id": str}, foreign_keys=[key])
        db.execute("INSERT INTO tags VALUES ('nobody')")

    schema.migrate(conn, PATH)
    before = dump(conn)
    with pytest.raises(DatabaseError, match="tags"):
        schema.migrate(conn, PATH, migrations=(*schema.MIGRATIONS, refer_to_nothing))
    assert dump(conn) == before


def test_a_newer_database_is_refused(conn: sqlite3.Connection) -> None:
    schema.migrate(conn, PATH)
    conn.execute(f"PRAGMA user_version = {len(schema.MIGRATIONS) + 1}")
    before = dump(conn)
    with pytest.raises(DatabaseError, match=r"p\.db: written by a newer version"):
        schema.migrate(conn, PATH)
    assert dump(conn) == before
    assert not conn.in_transaction
