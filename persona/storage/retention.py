"""What is removed in time: conversations in which nothing was ever said."""

import sqlite3
from collections.abc import Collection

import orjson

# The index `conversations_empty` holds those alone, so a million others cost nothing. Turns are looked for
# all the same: a count that is wrong must not cost anybody a conversation.
REMOVE_EMPTY = """
    DELETE FROM conversations WHERE id IN (
        SELECT id FROM conversations
        WHERE turn_count = 0 AND updated_at < :before
            AND id NOT IN (SELECT value FROM json_each(:in_use))
            AND NOT EXISTS (SELECT 1 FROM turns WHERE turns.conversation_id = conversations.id)
        ORDER BY updated_at LIMIT :limit
    )
    RETURNING id
"""


def remove_empty_conversations(
    conn: sqlite3.Connection, *, before: float, in_use: Collection[str], limit: int
) -> list[str]:
    """Remove at most `limit` conversations that have been without a turn since before `before`, the oldest
    first, but for those `in_use`; their ids."""
    values = {"before": before, "in_use": orjson.dumps(list(in_use)).decode(), "limit": limit}
    return [conversation_id for (conversation_id,) in conn.execute(REMOVE_EMPTY, values)]
