"""What a branch said up to a turn, in short: queries, as plain functions of a connection, as in `store`."""

import sqlite3

import attrs

from persona.model import Spoken
from persona.storage import turns

# Up from the leaf to the first turn that has one, and no further than the oldest there is: where there is
# none at all, that is no step. A queue of one row keeps the order of the path (SQLite, "WITH", section 3).
NEWEST_SUMMARY = """
    WITH RECURSIVE path (id, parent_id) AS (
        SELECT id, parent_id FROM turns WHERE id = :leaf AND id >= (
            SELECT min(turn_id) FROM summaries WHERE conversation_id = :conversation
        )
        UNION ALL
        SELECT path.parent_id, (SELECT above.parent_id FROM turns AS above WHERE above.id = path.parent_id)
        FROM path WHERE path.parent_id >= (
            SELECT min(turn_id) FROM summaries WHERE conversation_id = :conversation
        )
    )
    SELECT summaries.turn_id, summaries.content
    FROM path CROSS JOIN summaries ON summaries.turn_id = path.id
    LIMIT 1
"""
# Nothing where the turn is gone: its conversation may have been deleted while the summary was made.
SAVE_SUMMARY = """
    INSERT INTO summaries (turn_id, conversation_id, content, created_at)
    SELECT id, conversation_id, :content, :created_at FROM turns
    WHERE id = :turn_id AND conversation_id = :conversation_id
    ON CONFLICT (turn_id) DO UPDATE SET content = excluded.content, created_at = excluded.created_at
"""


@attrs.frozen
class Summary:
    """What was said up to and with turn `turn_id`, in short."""

    turn_id: int
    content: str


def find_summary(conn: sqlite3.Connection, conversation_id: str, leaf_id: int | None) -> Summary | None:
    """The newest summary on the branch that ends with `leaf_id`."""
    found = conn.execute(NEWEST_SUMMARY, {"conversation": conversation_id, "leaf": leaf_id}).fetchone()
    return None if found is None else Summary(*found)


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
