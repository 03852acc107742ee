"""Migrations, and what a fresh database holds."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlite_utils import Database
from sqlite_utils.db import ForeignKey

from persona.errors import DatabaseError
from persona.model import Priority
from persona.storage import schema, store

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
    """What sqlite-utils calls a transform: a new table takes the place of one that others refer to."""
    db.table("conversations").transform(rename={"title": "subject"})


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
    conn.execute("INSERT INTO conversations VALUES ('c', ?, 'u', 1, 1, 0)", (aria.id,))
    conn.execute(store.INSERT_TURN, ("c", None, "user", "u", "hello", 1.0, 0, None, None, None))

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
    conn.execute("PRAGMA user_version = 2")
    before = dump(conn)
    with pytest.raises(DatabaseError, match=r"p\.db: written by a newer version"):
        schema.migrate(conn, PATH)
    assert dump(conn) == before
    assert not conn.in_transaction
