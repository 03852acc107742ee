"""Turns, and the tree they make: queries, as plain functions of a connection, as in `store`.

Every turn knows the turn it follows; turns that follow the same one are siblings. A conversation names
its current leaf, and the current branch is the path from the root to there. So nothing needs to be
overwritten: another answer is a sibling, and to change the branch is to name another leaf.

A turn's id is above its parent's, so ids rise along every branch: a path is put in order, and its end
found, without sorting by anything else.
"""

import sqlite3
from collections.abc import Sequence
from typing import Any

import attrs
import orjson

from persona.errors import Conflict, NotFound
from persona.model import NewTurn, Siblings, Spoken, Turn

Row = tuple[Any, ...]

# Where a query names its index, the planner may otherwise choose worse once it has statistics: those of a
# young database say that nothing tells the turns of a conversation apart.

_TURN = """
    turns.id, turns.conversation_id, turns.parent_id, turns.role, turns.speaker_id, turns.content,
    turns.created_at, turns.tokens_used, turns.finish_reason, turns.client_msg_id, turns.body_hash,
    turns.details
"""
GET_TURN = f"SELECT {_TURN} FROM turns WHERE id = ? AND conversation_id = ?"  # noqa: S608
CURRENT_LEAF = "SELECT current_turn_id FROM conversations WHERE id = ?"
INSERT_TURN = """
    INSERT INTO turns (
        conversation_id, parent_id, role, speaker_id, content, created_at, tokens_used, finish_reason,
        client_msg_id, body_hash, details
    ) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)
"""
RELEASE_CLIENT_MSG_ID = "UPDATE turns SET client_msg_id = NULL, body_hash = NULL WHERE id = ?"
EXTEND_CONVERSATION = """
    UPDATE conversations SET
        updated_at = max(updated_at, ?), turn_count = turn_count + ?, current_turn_id = ?
    WHERE id = ?
"""
SET_CURRENT_LEAF = "UPDATE conversations SET current_turn_id = ? WHERE id = ?"
TURN_BY_CLIENT_MSG_ID = f"""
    SELECT {_TURN} FROM turns INDEXED BY turns_client_msg_id WHERE conversation_id = ? AND client_msg_id = ?
"""  # noqa: S608
# From a leaf upwards, parent by parent. A turn alone is always found by its primary key; in a join the
# planner may walk the table instead, if statistics say that it is tiny. So the step up is a query of its own,
# and the turns of a path are found by the index that can be asked for by name.
_PATH = """
    WITH RECURSIVE path (id, parent_id, conversation_id) AS (
        SELECT id, parent_id, conversation_id FROM turns WHERE id = :leaf
        UNION ALL
        SELECT
            path.parent_id, (SELECT above.parent_id FROM turns AS above WHERE above.id = path.parent_id),
            path.conversation_id
        FROM path WHERE path.parent_id IS NOT NULL
        LIMIT :limit
    )
"""
_TURNS_OF_PATH = """
    FROM path CROSS JOIN turns INDEXED BY turns_siblings ON turns.conversation_id = path.conversation_id
        AND turns.parent_id IS path.parent_id AND turns.id = path.id
"""
# One row for all of it: before each row Python lets go of the interpreter, and to get it back from a busy
# event loop may take milliseconds. That made 300 of them of two hundred whole turns, and makes 6 of this one.
BRANCH = f"""
    {_PATH}
    SELECT json_group_array(json_array(turns.id, turns.role, turns.content)) {_TURNS_OF_PATH}
"""
IS_ON_BRANCH = f"{_PATH} SELECT 1 FROM path WHERE id = :turn"  # noqa: S608
_SIBLINGS = """
    FROM turns AS sibling INDEXED BY turns_siblings
    WHERE sibling.conversation_id = turns.conversation_id AND sibling.parent_id IS turns.parent_id
"""
BRANCH_WITH_SIBLINGS = f"""
    {_PATH}
    SELECT {_TURN},
        (SELECT count(*) {_SIBLINGS} AND sibling.id <= turns.id),
        (SELECT count(*) {_SIBLINGS}),
        (SELECT max(sibling.id) {_SIBLINGS} AND sibling.id < turns.id),
        (SELECT min(sibling.id) {_SIBLINGS} AND sibling.id > turns.id)
    {_TURNS_OF_PATH}
"""
# From a turn downwards, each time to the newest child.
NEWEST_LEAF = """
    WITH RECURSIVE down (id) AS (
        SELECT :turn
        UNION ALL
        SELECT (
            SELECT max(turns.id) FROM turns INDEXED BY turns_siblings
            WHERE turns.conversation_id = :conversation AND turns.parent_id = down.id
        ) FROM down WHERE down.id IS NOT NULL
    )
    SELECT max(id) FROM down
"""
CHILDREN = """
    SELECT id FROM turns INDEXED BY turns_siblings WHERE conversation_id = ? AND parent_id = ?
"""
DELETE_TURN = "DELETE FROM turns WHERE id = ?"
SIBLING_BESIDE = """
    SELECT max(id) FROM turns INDEXED BY turns_siblings
    WHERE conversation_id = :conversation AND parent_id IS :parent AND id < :turn
    UNION ALL
    SELECT min(id) FROM turns INDEXED BY turns_siblings
    WHERE conversation_id = :conversation AND parent_id IS :parent AND id > :turn
"""
SHRINK_CONVERSATION = """
    UPDATE conversations SET turn_count = turn_count - ?, current_turn_id = ? WHERE id = ?
"""


@attrs.frozen(kw_only=True)
class Spot:
    """Where in the tree new turns go."""

    parent_id: int | None
    """The turn they follow; `None` begins the conversation."""
    seen_leaf_id: int | None
    """The current leaf as it was seen. If it still is, or the current branch ends above the new turns by
    now, they become the end of it; else somebody chose another branch meanwhile, and that stays."""


@attrs.frozen(kw_only=True)
class Page:
    """A stretch of a branch, oldest first, each turn with its place among its siblings."""

    turns: list[tuple[Turn, Siblings]]
    has_more: bool
    """Whether the branch has older turns."""
    current_turn_id: int | None
    """The leaf of the current branch; `None` where nothing was said."""


def current_leaf(conn: sqlite3.Connection, conversation_id: str) -> int | None:
    """The last turn of the current branch; `None` where there is none. Raises `NotFound` when the
    conversation is gone."""
    found = conn.execute(CURRENT_LEAF, (conversation_id,)).fetchone()
    if found is None:
        raise NotFound("no such conversation", field="conversation_id")
    leaf_id: int | None = found[0]
    return leaf_id


def get_turn(conn: sqlite3.Connection, conversation_id: str, turn_id: int, *, field: str = "turn_id") -> Turn:
    """A turn of that conversation. Raises `NotFound`, naming `field`, when it has none of that id."""
    row = conn.execute(GET_TURN, (turn_id, conversation_id)).fetchone()
    if row is None:
        raise NotFound("the conversation has no such turn", field=field)
    return _turn(row)


def append_turns(
    conn: sqlite3.Connection,
    conversation_id: str,
    turns: Sequence[NewTurn],
    spot: Spot | None = None,
    *,
    supersedes: int | None = None,
) -> list[Turn]:
    """Add turns at `spot`, by default at the end of the current branch; each one's parent is the one
    before. The turn `supersedes` gives its `client_msg_id` up first.

    Raises `NotFound` when the conversation or the turn they follow is gone, `Conflict` when a
    `client_msg_id` was used in it before.
    """
    leaf_id = current_leaf(conn, conversation_id)
    if not turns:
        return []
    if spot is None:
        spot = Spot(parent_id=leaf_id, seen_leaf_id=leaf_id)
    elif spot.parent_id is not None:
        get_turn(conn, conversation_id, spot.parent_id)
    if supersedes is not None:
        conn.execute(RELEASE_CLIENT_MSG_ID, (supersedes,))
    parent_id = spot.parent_id
    appended = []
    try:
        for turn in turns:
            appended.append(_insert_turn(conn, conversation_id, parent_id, turn))
            parent_id = appended[-1].id
    except sqlite3.IntegrityError as exc:
        if exc.sqlite_errorcode == sqlite3.SQLITE_CONSTRAINT_UNIQUE:
            raise Conflict("this client_msg_id was used before", field="client_msg_id") from exc
        raise
    # Compared and set in one transaction, so that of two writers one comes second.
    if leaf_id == spot.seen_leaf_id or is_on_branch(conn, leaf_id, spot.parent_id):
        leaf_id = parent_id
    values = (turns[-1].created_at, len(turns), leaf_id, conversation_id)
    conn.execute(EXTEND_CONVERSATION, values)
    return appended


def branch(conn: sqlite3.Connection, leaf_id: int | None, limit: int) -> list[Spoken]:
    """What was said in the last `limit` turns of the branch that ends with `leaf_id`, oldest first."""
    (found,) = conn.execute(BRANCH, {"leaf": leaf_id, "limit": limit}).fetchone()
    return [Spoken(*row) for row in sorted(orjson.loads(found))]


def recent_turns(
    conn: sqlite3.Connection, conversation_id: str, limit: int, before_id: int | None = None
) -> Page:
    """The last `limit` turns of the current branch.

    With `before_id`, those before that turn on its own branch: a reader goes on where it was, also when
    another branch was chosen meanwhile. Raises `NotFound` when the conversation or that turn is gone.
    """
    current = last_id = current_leaf(conn, conversation_id)
    if before_id is not None:
        last_id = get_turn(conn, conversation_id, before_id, field="before").parent_id
    rows = conn.execute(BRANCH_WITH_SIBLINGS, {"leaf": last_id, "limit": limit + 1}).fetchall()
    rows.sort(key=_id)
    return Page(
        turns=[(_turn(row), _siblings(row)) for row in rows[-limit:]],
        has_more=len(rows) > limit,
        current_turn_id=current,
    )


def answer_by_client_msg_id(
    conn: sqlite3.Connection, conversation_id: str, client_msg_id: str
) -> tuple[Turn, Turn] | None:
    """The answer that was given to this `client_msg_id`, and the line it answers."""
    row = conn.execute(TURN_BY_CLIENT_MSG_ID, (conversation_id, client_msg_id)).fetchone()
    if row is None:
        return None
    answer = _turn(row)
    assert answer.parent_id is not None
    return answer, get_turn(conn, conversation_id, answer.parent_id)


def select_branch(conn: sqlite3.Connection, conversation_id: str, turn_id: int) -> int:
    """Make the branch through that turn the current one; its leaf.

    Below the turn it follows the newest child each time. Raises `NotFound` when the conversation has
    no such turn.
    """
    get_turn(conn, conversation_id, turn_id)
    leaf_id = _newest_leaf(conn, conversation_id, turn_id)
    conn.execute(SET_CURRENT_LEAF, (leaf_id, conversation_id))
    return leaf_id


def delete_branch(
    conn: sqlite3.Connection, conversation_id: str, turn_id: int
) -> tuple[frozenset[int], int | None]:
    """Remove a turn and all that follows it; the ids removed, and the current leaf then.

    Where the current branch was removed, the one beside it becomes current, the older one first; where
    there is none, the branch ends with the turn before. Raises `NotFound` when the conversation has no
    such turn.
    """
    turn = get_turn(conn, conversation_id, turn_id)
    deleted = _descendants(conn, conversation_id, turn_id)
    conn.executemany(DELETE_TURN, [(id_,) for id_ in deleted])
    leaf_id = current_leaf(conn, conversation_id)
    if leaf_id in deleted:
        named = {"conversation": conversation_id, "parent": turn.parent_id, "turn": turn_id}
        beside = conn.execute(SIBLING_BESIDE, named).fetchall()
        nearest = next((found for (found,) in beside if found is not None), None)
        leaf_id = turn.parent_id if nearest is None else _newest_leaf(conn, conversation_id, nearest)
    conn.execute(SHRINK_CONVERSATION, (len(deleted), leaf_id, conversation_id))
    return deleted, leaf_id


def is_on_branch(conn: sqlite3.Connection, turn_id: int | None, leaf_id: int | None) -> bool:
    """Whether the branch that ends with `leaf_id` begins with the one that ends with `turn_id`."""
    if turn_id is None:
        return True
    values = {"leaf": leaf_id, "limit": -1, "turn": turn_id}
    return conn.execute(IS_ON_BRANCH, values).fetchone() is not None


# Neither a foreign key that cascades, for those nest and SQLite's limit is 1,000 deep; nor one recursive
# query, for which SQLite may build a Bloom filter over all turns first.
def _descendants(conn: sqlite3.Connection, conversation_id: str, turn_id: int) -> frozenset[int]:
    """The turn and all that follows it."""
    found = [turn_id]
    for parent_id in found:
        found += (row[0] for row in conn.execute(CHILDREN, (conversation_id, parent_id)))
    return frozenset(found)


def _newest_leaf(conn: sqlite3.Connection, conversation_id: str, turn_id: int) -> int:
    (leaf_id,) = conn.execute(NEWEST_LEAF, {"conversation": conversation_id, "turn": turn_id}).fetchone()
    return int(leaf_id)


def _insert_turn(
    conn: sqlite3.Connection, conversation_id: str, parent_id: int | None, turn: NewTurn
) -> Turn:
    inserted = conn.execute(
        INSERT_TURN,
        (
            conversation_id,
            parent_id,
            turn.role,
            turn.speaker_id,
            turn.content,
            turn.created_at,
            turn.tokens_used,
            turn.finish_reason,
            turn.client_msg_id,
            turn.body_hash,
            None if turn.details is None else orjson.dumps(turn.details).decode(),
        ),
    )
    turn_id = inserted.lastrowid
    assert turn_id is not None
    return Turn(
        id=turn_id,
        conversation_id=conversation_id,
        parent_id=parent_id,
        role=turn.role,
        speaker_id=turn.speaker_id,
        content=turn.content,
        created_at=turn.created_at,
        tokens_used=turn.tokens_used,
        finish_reason=turn.finish_reason,
        client_msg_id=turn.client_msg_id,
        body_hash=turn.body_hash,
        details=turn.details,
    )


def _id(row: Row) -> int:
    return int(row[0])


def _turn(row: Row) -> Turn:
    details = row[11]
    return Turn(
        id=row[0],
        conversation_id=row[1],
        parent_id=row[2],
        role=row[3],
        speaker_id=row[4],
        content=row[5],
        created_at=row[6],
        tokens_used=row[7],
        finish_reason=row[8],
        client_msg_id=row[9],
        body_hash=row[10],
        details=None if details is None else orjson.loads(details),
    )


def _siblings(row: Row) -> Siblings:
    return Siblings(index=row[12], count=row[13], previous_id=row[14], next_id=row[15])
