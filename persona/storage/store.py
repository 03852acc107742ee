"""Queries, as plain functions of a connection, for `Database.read` and `Database.write`.

None opens or ends a transaction: the pool does. None returns anything tied to the connection. Plain
SQL and tuples, because these run some tens of thousands of times a second. Those of turns are in `turns`.
"""

import base64
import math
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import attrs
import orjson

from persona.errors import Conflict, InvalidParams, PersonaError, PersonaNotFound
from persona.model import Conversation, InteractionState, Persona, Priority

Row = tuple[Any, ...]

# Where a query names its index (INDEXED BY), the planner would choose worse once it has statistics: those of
# a young database, where all turns are of one conversation, say that an index on the conversation tells
# nothing apart, and it then walks the whole table. Statistics are renewed rarely, so that would last. Unary
# plus signs, the other way to hold it off, can only forbid one index, not ask for one.

LIST_PERSONAS = """
    SELECT id, name, description, personality_traits, topic_preferences, charisma, intelligence,
        social_rank, backstory, current_priority, max_social_energy, max_available_time_s, version,
        created_at, updated_at
    FROM personas ORDER BY name_key
"""
INSERT_PERSONA = """
    INSERT INTO personas (
        id, name, name_key, description, personality_traits, topic_preferences, charisma, intelligence,
        social_rank, backstory, current_priority, max_social_energy, max_available_time_s, version,
        created_at, updated_at
    ) VALUES (
        :id, :name, :name_key, :description, :personality_traits, :topic_preferences, :charisma,
        :intelligence, :social_rank, :backstory, :current_priority, :max_social_energy,
        :max_available_time_s, :version, :created_at, :updated_at
    )
"""
UPDATE_PERSONA = """
    UPDATE personas SET
        name = :name, name_key = :name_key, description = :description,
        personality_traits = :personality_traits, topic_preferences = :topic_preferences,
        charisma = :charisma, intelligence = :intelligence, social_rank = :social_rank,
        backstory = :backstory, current_priority = :current_priority,
        max_social_energy = :max_social_energy, max_available_time_s = :max_available_time_s,
        version = :version, updated_at = :updated_at
    WHERE id = :id AND version = :expected_version
"""
DELETE_PERSONA = "DELETE FROM personas WHERE id = ?"

_STATE = """
    persona_id, as_of, social_energy, available_time_s, interaction_fatigue, interest_level, cooldown_until
"""
LOAD_STATES = f"SELECT {_STATE} FROM interaction_states"  # noqa: S608
# Nothing for a persona that is gone: its last state may be on its way here when it is deleted.
SAVE_STATE = f"""
    INSERT INTO interaction_states ({_STATE})
    SELECT :persona_id, :as_of, :social_energy, :available_time_s, :interaction_fatigue, :interest_level,
        :cooldown_until
    WHERE EXISTS (SELECT 1 FROM personas WHERE id = :persona_id)
    ON CONFLICT (persona_id) DO UPDATE SET
        as_of = excluded.as_of, social_energy = excluded.social_energy,
        available_time_s = excluded.available_time_s, interaction_fatigue = excluded.interaction_fatigue,
        interest_level = excluded.interest_level, cooldown_until = excluded.cooldown_until
"""  # noqa: S608

_CONVERSATION = "id, persona_id, user, created_at, updated_at, turn_count"
CREATE_CONVERSATION = f"""
    INSERT INTO conversations ({_CONVERSATION})
    VALUES (:id, :persona_id, :user, :created_at, :updated_at, :turn_count)
"""  # noqa: S608
GET_CONVERSATION = f"SELECT {_CONVERSATION} FROM conversations WHERE id = ?"  # noqa: S608
LATEST_CONVERSATION = f"""
    SELECT {_CONVERSATION} FROM conversations WHERE user = ? AND persona_id = ?
    ORDER BY updated_at DESC, id DESC LIMIT 1
"""  # noqa: S608
_PAGE = "AND (updated_at, id) < (:updated_at, :id) ORDER BY updated_at DESC, id DESC LIMIT :limit"
LIST_BY_USER = f"SELECT {_CONVERSATION} FROM conversations WHERE user = :user {_PAGE}"  # noqa: S608
LIST_BY_USER_AND_PERSONA = f"""
    SELECT {_CONVERSATION} FROM conversations WHERE user = :user AND persona_id = :persona_id {_PAGE}
"""  # noqa: S608
# By the primary key, not by user: all anonymous conversations have the same one, and the ids are few.
LIST_BY_IDS = f"""
    SELECT {_CONVERSATION} FROM conversations INDEXED BY sqlite_autoindex_conversations_1
    WHERE id IN (SELECT value FROM json_each(:ids)) AND user = :user
        AND (:persona_id IS NULL OR persona_id = :persona_id) {_PAGE}
"""  # noqa: S608
DELETE_CONVERSATION = "DELETE FROM conversations WHERE id = ? RETURNING turn_count"
COUNT_CONVERSATIONS_SINCE = "SELECT count(*) FROM conversations WHERE updated_at >= ?"
PERSONA_TURN_STATS = """
    SELECT coalesce(sum(turn_count), 0), count(*), max(CASE WHEN turn_count > 0 THEN updated_at END)
    FROM conversations INDEXED BY conversations_persona WHERE persona_id = ?
"""

_FIRST_PAGE = (math.inf, "")


def list_personas(conn: sqlite3.Connection) -> list[Persona]:
    """Everybody, by name."""
    return [_persona(row) for row in conn.execute(LIST_PERSONAS)]


def insert_persona(conn: sqlite3.Connection, persona: Persona) -> None:
    """Raises `Conflict` when the name, whatever its case, is taken."""
    with _unique(Conflict("a persona of this name exists already", field="name")):
        conn.execute(INSERT_PERSONA, _persona_columns(persona))


def update_persona(conn: sqlite3.Connection, persona: Persona, expected_version: int) -> bool:
    """Write all fields of a persona that is still at `expected_version`; whether it was.

    Raises `Conflict` when the name, whatever its case, is taken.
    """
    with _unique(Conflict("a persona of this name exists already", field="name")):
        columns = {**_persona_columns(persona), "expected_version": expected_version}
        return conn.execute(UPDATE_PERSONA, columns).rowcount == 1


def delete_persona(conn: sqlite3.Connection, persona_id: str) -> bool:
    """Remove the persona and everything of it: state, conversations, turns; whether it was there."""
    return conn.execute(DELETE_PERSONA, (persona_id,)).rowcount == 1


def load_states(conn: sqlite3.Connection) -> list[InteractionState]:
    """The saved states; a persona that never spoke has none."""
    return [_state(row) for row in conn.execute(LOAD_STATES)]


def save_state(conn: sqlite3.Connection, state: InteractionState) -> None:
    """Write a state over the last one; nothing when the persona is gone."""
    conn.execute(SAVE_STATE, attrs.asdict(state))


def create_conversation(conn: sqlite3.Connection, conversation: Conversation) -> None:
    """Raises `PersonaNotFound` when the persona is gone."""
    with _constraint(sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY, PersonaNotFound("the persona was deleted")):
        conn.execute(CREATE_CONVERSATION, attrs.asdict(conversation))


def get_conversation(conn: sqlite3.Connection, conversation_id: str) -> Conversation | None:
    """By id."""
    row = conn.execute(GET_CONVERSATION, (conversation_id,)).fetchone()
    return None if row is None else _conversation(row)


def delete_conversation(conn: sqlite3.Connection, conversation_id: str) -> int | None:
    """Remove a conversation and its turns; how many turns it had, `None` when it is gone already."""
    found = conn.execute(DELETE_CONVERSATION, (conversation_id,)).fetchall()
    return int(found[0][0]) if found else None


def latest_conversation(conn: sqlite3.Connection, user: str, persona_id: str) -> Conversation | None:
    """The conversation of that user and persona that had the last turn."""
    row = conn.execute(LATEST_CONVERSATION, (user, persona_id)).fetchone()
    return None if row is None else _conversation(row)


def list_conversations(
    conn: sqlite3.Connection,
    *,
    user: str,
    persona_id: str | None = None,
    ids: Sequence[str] | None = None,
    limit: int,
    before: str | None = None,
) -> tuple[list[Conversation], str | None]:
    """A page of a user's conversations, last active first, and the cursor of the next page, `None`
    when this is the last.

    `ids` leaves only those. A conversation that has a turn between two pages moves to the front: it
    may be missing from the later page, never twice on it. Raises `InvalidParams` for a `before` that
    is no cursor.
    """
    updated_at, last_id = _FIRST_PAGE if before is None else _decode_cursor(before)
    values: dict[str, Any] = {
        "user": user,
        "persona_id": persona_id,
        "updated_at": updated_at,
        "id": last_id,
        "limit": limit + 1,
    }
    if ids is not None:
        query = LIST_BY_IDS
        values["ids"] = orjson.dumps(list(ids)).decode()
    else:
        query = LIST_BY_USER if persona_id is None else LIST_BY_USER_AND_PERSONA
    found = [_conversation(row) for row in conn.execute(query, values)]
    page = found[:limit]
    return page, _encode_cursor(page[-1]) if page and len(found) > limit else None


def count_conversations(conn: sqlite3.Connection, since: float) -> int:
    """How many had a turn or began since `since`."""
    (count,) = conn.execute(COUNT_CONVERSATIONS_SINCE, (since,)).fetchone()
    return int(count)


def persona_turn_stats(conn: sqlite3.Connection, persona_id: str) -> tuple[int, int, float | None]:
    """Turns, conversations, and the time of the last turn, of a persona."""
    turns, conversations, last_turn_at = conn.execute(PERSONA_TURN_STATS, (persona_id,)).fetchone()
    return turns, conversations, last_turn_at


def _persona_columns(persona: Persona) -> dict[str, Any]:
    return {
        "id": persona.id,
        "name": persona.name,
        "name_key": persona.name.casefold(),
        "description": persona.description,
        "personality_traits": orjson.dumps(persona.personality_traits).decode(),
        "topic_preferences": orjson.dumps(persona.topic_preferences).decode(),
        "charisma": persona.charisma,
        "intelligence": persona.intelligence,
        "social_rank": persona.social_rank,
        "backstory": persona.backstory,
        "current_priority": persona.current_priority.value,
        "max_social_energy": persona.max_social_energy,
        "max_available_time_s": persona.max_available_time_s,
        "version": persona.version,
        "created_at": persona.created_at,
        "updated_at": persona.updated_at,
    }


def _persona(row: Row) -> Persona:
    return Persona(
        id=row[0],
        name=row[1],
        description=row[2],
        personality_traits=orjson.loads(row[3]),
        topic_preferences=orjson.loads(row[4]),
        charisma=row[5],
        intelligence=row[6],
        social_rank=row[7],
        backstory=row[8],
        current_priority=Priority(row[9]),
        max_social_energy=row[10],
        max_available_time_s=row[11],
        version=row[12],
        created_at=row[13],
        updated_at=row[14],
    )


def _state(row: Row) -> InteractionState:
    return InteractionState(
        persona_id=row[0],
        as_of=row[1],
        social_energy=row[2],
        available_time_s=row[3],
        interaction_fatigue=row[4],
        interest_level=row[5],
        cooldown_until=row[6],
    )


def _conversation(row: Row) -> Conversation:
    return Conversation(
        id=row[0],
        persona_id=row[1],
        user=row[2],
        created_at=row[3],
        updated_at=row[4],
        turn_count=row[5],
    )


def _encode_cursor(conversation: Conversation) -> str:
    return base64.urlsafe_b64encode(orjson.dumps([conversation.updated_at, conversation.id])).decode()


def _decode_cursor(cursor: str) -> tuple[float, str]:
    try:
        match orjson.loads(base64.b64decode(cursor, altchars=b"-_", validate=True)):
            case [float() as updated_at, str() as conversation_id]:
                return updated_at, conversation_id
    except ValueError:
        pass
    raise InvalidParams("before is no cursor that a page came with", field="before")


@contextmanager
def _constraint(code: int, error: PersonaError) -> Iterator[None]:
    """Raise `error` where the constraint of that code is violated."""
    try:
        yield
    except sqlite3.IntegrityError as exc:
        if exc.sqlite_errorcode == code:
            raise error from exc
        raise


def _unique(error: PersonaError) -> AbstractContextManager[None]:
    return _constraint(sqlite3.SQLITE_CONSTRAINT_UNIQUE, error)
