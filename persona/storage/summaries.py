"""What a branch said up to a turn, in short: queries, as plain functions of a connection, as in `store`."""

import sqlite3

import attrs

from persona.model import Spoken
from persona.storage import turns

NEWEST_SUMMARIES = """
    SELECT turn_id, content FROM summaries WHERE conversation_id = ? AND turn_id <= ?
    ORDER BY turn_id DESC LIMIT ?
"""
# Nothing where the turn is gone: its conversation may have been deleted while the summary was made.
SAVE_SUMMARY = """
    INSERT INTO summaries (turn_id, conversation_id, content, created_at)
    SELECT id, conversation_id, :content, :created_at FROM turns
    WHERE id = :turn_id AND conversation_id = :conversation_id
    ON CONFLICT (turn_id) DO UPDATE SET content = excluded.content, created_at = excluded.created_at
"""

MAX_CANDIDATES = 16
"""Looked at, newest first. Those of other branches are among them, and a conversation has few."""


@attrs.frozen
class Summary:
    """What was said up to and with turn `turn_id`, in short."""

    turn_id: int
    content: str


def find_summary(conn: sqlite3.Connection, conversation_id: str, leaf_id: int | None) -> Summary | None:
    """The newest summary on the branch that ends with `leaf_id`."""
    if leaf_id is None:
        return None
    for row in conn.execute(NEWEST_SUMMARIES, (conversation_id, leaf_id, MAX_CANDIDATES)).fetchall():
        if turns.is_on_branch(conn, row[0], leaf_id):
            return Summary(*row)
    return None


def after_summary(
    conn: sqlite3.Connection, conversation_id: str, leaf_id: int | None, limit: int
) -> tuple[Summary | None, list[Spoken]]:
    """The newest summary on the branch that ends with `leaf_id`, and up to `limit` turns after it, the last
    ones, oldest first."""
    summary = find_summary(conn, conversation_id, leaf_id)
    history = turns.branch(conn, leaf_id, limit)
    if summary is not None:
        history = [turn for turn in history if turn.id > summary.turn_id]
    return summary, history


def save_summary(
    conn: sqlite3.Connection, conversation_id: str, summary: Summary, *, created_at: float
) -> None:
    """Write a summary over the last one at the same turn; nothing when that turn is gone."""
    values = {
        "turn_id": summary.turn_id,
        "conversation_id": conversation_id,
        "content": summary.content,
        "created_at": created_at,
    }
    conn.execute(SAVE_SUMMARY, values)
