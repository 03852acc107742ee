"""A database with something in it, to be copied, looked at and spoiled."""

import contextlib
import sqlite3
from pathlib import Path

from persona.model import Conversation, NewTurn
from persona.storage import store
from persona.storage.connection import ConnectionSettings
from persona.storage.turns import append_turns

TURNS = 600
CONVERSATIONS = 3


def say(number: int) -> NewTurn:
    return NewTurn(role="user", speaker_id="anonymous", content=f"{number} " + "said " * 60, created_at=2.0)


def talk(conn: sqlite3.Connection) -> None:
    """`TURNS` turns in `CONVERSATIONS` conversations, over some dozens of pages."""
    persona = store.list_personas(conn)[0]
    for name in range(CONVERSATIONS):
        conversation = Conversation(
            id=f"c{name}", persona_id=persona.id, user="anonymous", created_at=1.0, updated_at=1.0
        )
        store.create_conversation(conn, conversation)
        append_turns(conn, conversation.id, [say(n) for n in range(TURNS // CONVERSATIONS)])


def save(path: Path) -> Path:
    """A database as a server that has ended well leaves it."""
    settings = ConnectionSettings(path=path, synchronous="normal", busy_timeout_s=5, cache_pages=1000)
    settings.prepare()
    with contextlib.closing(settings.connect()) as conn:
        conn.execute("BEGIN")
        talk(conn)
        conn.execute("COMMIT")
    return path
