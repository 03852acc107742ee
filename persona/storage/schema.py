"""Tables, and how an older database becomes one of this version.

The version is `PRAGMA user_version`: how many of `MIGRATIONS` have been run. A migration is never
changed once released; a new one is added at the end.
"""

import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from persona.errors import DatabaseError
from persona.storage import seed, store

if TYPE_CHECKING:
    from sqlite_utils import Database
    from sqlite_utils.db import ForeignKey

Migration = Callable[["Database"], None]

APPLICATION_ID = 0x50455253
"""`PERS`, in the file's header: tells our databases from other programs'."""

# Raw SQL where sqlite-utils has no word for it: AUTOINCREMENT (an id is never given twice, so a client's
# place in a history stays right after turns are deleted), CHECK, and the partial index below.
_TURNS = """
    CREATE TABLE turns (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        conversation_id TEXT NOT NULL REFERENCES conversations (id) ON DELETE CASCADE,
        parent_id INTEGER,
        role TEXT NOT NULL CHECK (role IN ('user', 'assistant')),
        speaker_id TEXT NOT NULL,
        content TEXT NOT NULL,
        created_at REAL NOT NULL,
        tokens_used INTEGER NOT NULL,
        finish_reason TEXT,
        client_msg_id TEXT,
        details TEXT
    ) STRICT
"""
_TURNS_BY_CLIENT_MSG_ID = """
    CREATE UNIQUE INDEX turns_client_msg_id ON turns (conversation_id, client_msg_id)
    WHERE client_msg_id IS NOT NULL
"""
_EMPTY_CONVERSATIONS = """
    CREATE INDEX conversations_empty ON conversations (updated_at) WHERE turn_count = 0
"""


def _create_tables(db: "Database") -> None:
    personas = {
        "id": str,
        "name": str,
        "name_key": str,
        "description": str,
        "personality_traits": str,
        "topic_preferences": str,
        "charisma": int,
        "intelligence": int,
        "social_rank": str,
        "backstory": str,
        "current_priority": str,
        "max_social_energy": float,
        "max_available_time_s": float,
        "version": int,
        "created_at": float,
        "updated_at": float,
    }
    db.create_table("personas", personas, pk="id", not_null=personas, strict=True).create_index(
        ["name_key"], index_name="personas_name_key", unique=True
    )
    states = {
        "persona_id": str,
        "as_of": float,
        "social_energy": float,
        "available_time_s": float,
        "interaction_fatigue": float,
        "interest_level": float,
        "cooldown_until": float,
    }
    db.create_table(
        "interaction_states",
        states,
        pk="persona_id",
        foreign_keys=[_persona_of("interaction_states")],
        not_null=states.keys() - {"cooldown_until"},
        strict=True,
    )
    conversations = {
        "id": str,
        "persona_id": str,
        "user": str,
        "created_at": float,
        "updated_at": float,
        "turn_count": int,
    }
    table = db.create_table(
        "conversations",
        conversations,
        pk="id",
        foreign_keys=[_persona_of("conversations")],
        not_null=conversations,
        strict=True,
    )
    # Newest first is the order of every list: SQLite walks these backwards.
    table.create_index(["user", "updated_at", "id"], index_name="conversations_user")
    table.create_index(["user", "persona_id", "updated_at", "id"], index_name="conversations_user_persona")
    table.create_index(["persona_id"], index_name="conversations_persona")
    table.create_index(["updated_at"], index_name="conversations_updated_at")
    db.execute(_TURNS)
    db.table("turns").create_index(["conversation_id", "id"], index_name="turns_conversation")
    db.execute(_TURNS_BY_CLIENT_MSG_ID)


def _persona_of(table: str) -> "ForeignKey":
    from sqlite_utils.db import ForeignKey

    return ForeignKey(
        table=table, column="persona_id", other_table="personas", other_column="id", on_delete="CASCADE"
    )


# Until then every conversation is one branch, and a `client_msg_id` is on the line that came with it. The
# line's answer takes it over; the hash of what was asked is not known, only the line itself.
_ONE_BRANCH_EACH = """
    UPDATE conversations SET current_turn_id =
        (SELECT max(turns.id) FROM turns WHERE turns.conversation_id = conversations.id)
"""
_MOVE_CLIENT_MSG_IDS = """
    UPDATE turns SET client_msg_id = line.client_msg_id FROM turns AS line
    WHERE line.id = turns.parent_id AND turns.role = 'assistant'
"""
_LEAVE_THEM_TO_ANSWERS = "UPDATE turns SET client_msg_id = NULL WHERE role = 'user'"


def _make_trees(db: "Database") -> None:
    db.table("conversations").add_column("current_turn_id", int)
    turns = db.table("turns")
    turns.add_column("body_hash", bytes)
    db.execute(_ONE_BRANCH_EACH)
    db.execute("DROP INDEX turns_client_msg_id")
    db.execute(_MOVE_CLIENT_MSG_IDS)
    db.execute(_LEAVE_THEM_TO_ANSWERS)
    db.execute(_TURNS_BY_CLIENT_MSG_ID)
    # It also serves what the index it replaces was for: to find the turns of a conversation.
    turns.create_index(["conversation_id", "parent_id", "id"], index_name="turns_siblings")
    db.execute("DROP INDEX turns_conversation")


_SUMMARIES = """
    CREATE TABLE summaries (
        turn_id INTEGER PRIMARY KEY REFERENCES turns (id) ON DELETE CASCADE,
        conversation_id TEXT NOT NULL,
        content TEXT NOT NULL,
        created_at REAL NOT NULL
    ) STRICT
"""


def _add_summaries(db: "Database") -> None:
    db.execute(_SUMMARIES)
    db.table("summaries").create_index(["conversation_id", "turn_id"], index_name="summaries_conversation")


def _index_empty_conversations(db: "Database") -> None:
    db.execute(_EMPTY_CONVERSATIONS)


MIGRATIONS: tuple[Migration, ...] = (
    _create_tables,
    _make_trees,
    _add_summaries,
    _index_empty_conversations,
)


def check(conn: sqlite3.Connection, path: Path, *, newest: int = len(MIGRATIONS)) -> int:
    """The database's version, 0 when it is empty. Reads only.

    Raises `DatabaseError` when the database is newer than `newest` or another program's, and
    `sqlite3.Error` when it cannot be read.
    """
    (application_id,) = conn.execute("PRAGMA application_id").fetchone()
    (version,) = conn.execute("PRAGMA user_version").fetchone()
    (tables,) = conn.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    if application_id not in (0, APPLICATION_ID):
        raise DatabaseError(f"{path}: another program's database; name another file")
    if not 0 <= version <= newest:
        raise DatabaseError(
            f"{path}: written by a newer version of persona (schema {version}, this one knows "
            f"{newest}); upgrade persona or name another file"
        )
    if tables and not (application_id and version):
        raise DatabaseError(f"{path}: another program's database; name another file")
    return int(version)


def migrate(conn: sqlite3.Connection, path: Path, *, migrations: Sequence[Migration] = MIGRATIONS) -> None:
    """Bring the database to the newest version, in one transaction; an empty one gets the seed
    personas.

    Raises what `check` raises; the database is then as it was.
    """
    # So that a migration may rebuild a table that others refer to; they are checked at the end. Has no
    # effect inside a transaction.
    conn.execute("PRAGMA foreign_keys = OFF")
    # IMMEDIATE before looking: another process that is just starting must not migrate it too.
    conn.execute("BEGIN IMMEDIATE")
    try:
        version = check(conn, path, newest=len(migrations))
        # Also when it is that already: BEGIN IMMEDIATE does not mind a read-only file, but this does.
        conn.execute(f"PRAGMA user_version = {len(migrations)}")
        if version == len(migrations):
            conn.execute("ROLLBACK")
            return
        conn.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        _run(conn, migrations[version:])
        _check_foreign_keys(conn, path)
        if version == 0:
            for persona in seed.personas():
                store.insert_persona(conn, persona)
        conn.execute("COMMIT")
    except BaseException:
        if conn.in_transaction:
            conn.execute("ROLLBACK")
        raise


def _run(conn: sqlite3.Connection, migrations: Sequence[Migration]) -> None:
    # Imported when there is something to do: it costs more than the rest of a start.
    from sqlite_utils import Database

    # Plugins of an operator's sqlite-utils have no business here.
    db = Database(conn, recursive_triggers=False, execute_plugins=False)
    for migration in migrations:
        migration(db)


def _check_foreign_keys(conn: sqlite3.Connection, path: Path) -> None:
    broken = conn.execute("PRAGMA foreign_key_check").fetchone()
    if broken is not None:
        raise DatabaseError(
            f"{path}: cannot be upgraded, rows of {broken[0]} refer to rows that are missing; "
            "restore a backup or name another file"
        )
