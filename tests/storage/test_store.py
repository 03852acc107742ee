"""Queries: what goes in comes out, and pages are whole."""

import sqlite3
from collections.abc import Iterator
from pathlib import Path

import attrs
import pytest

from persona.errors import Conflict, InvalidParams, PersonaNotFound
from persona.model import Conversation, InteractionState, NewTurn, Persona, Priority
from persona.storage import schema, store, turns
from persona.storage.seed import ARIA_ID, KIRA_ID


@pytest.fixture
def conn() -> Iterator[sqlite3.Connection]:
    opened = sqlite3.connect(":memory:", isolation_level=None)
    schema.migrate(opened, Path("p.db"))
    opened.execute("PRAGMA foreign_keys = ON")
    yield opened
    opened.close()


def persona(**changes: object) -> Persona:
    fields: dict[str, object] = {
        "id": "p1",
        "name": "Straße",
        "description": "a street",
        "personality_traits": {"long": 0.5, "wet": "often", "nested": {"a": [1, None]}},
        "topic_preferences": {"cars": 10, "ünïcödé": 100},
        "charisma": 3,
        "intelligence": 4,
        "social_rank": "road",
        "backstory": "paved\nin 'parts' \x00",
        "current_priority": Priority.URGENT,
        "max_social_energy": 12.5,
        "max_available_time_s": 33.25,
        "version": 7,
        "created_at": 1.5,
        "updated_at": 1_700_000_000.123456,
    }
    return Persona(**{**fields, **changes})  # type: ignore[arg-type]


def conversation(id_: str = "c1", **changes: object) -> Conversation:
    fields: dict[str, object] = {
        "id": id_,
        "persona_id": ARIA_ID,
        "user": "ann",
        "created_at": 10.0,
        "updated_at": 10.0,
    }
    return Conversation(**{**fields, **changes})  # type: ignore[arg-type]


def line(content: str, created_at: float = 20.0, **changes: object) -> NewTurn:
    fields: dict[str, object] = {"role": "user", "speaker_id": "ann"}
    return NewTurn(content=content, created_at=created_at, **{**fields, **changes})  # type: ignore[arg-type]


def answer(content: str, created_at: float = 21.0, **changes: object) -> NewTurn:
    return line(content, created_at, **{"role": "assistant", "speaker_id": ARIA_ID, **changes})


def count(conn: sqlite3.Connection, table: str) -> int:
    (number,) = conn.execute(f"SELECT count(*) FROM {table}").fetchone()
    return int(number)


# Personas and states


@pytest.mark.parametrize("traits", [{"long": 0.5, "nested": {"a": [1, None]}}, ["brave", "loud"], {}])
def test_a_persona_comes_back_as_it_was(
    conn: sqlite3.Connection, traits: dict[str, object] | list[str]
) -> None:
    added = persona(personality_traits=traits)
    store.insert_persona(conn, added)
    assert added in store.list_personas(conn)


def test_every_field_of_a_persona_is_updated(conn: sqlite3.Connection) -> None:
    store.insert_persona(conn, persona())
    changed = persona(
        name="Gasse",
        description="b",
        personality_traits=["x"],
        topic_preferences={},
        charisma=1,
        intelligence=2,
        social_rank="lane",
        backstory="",
        current_priority=Priority.NONE,
        max_social_energy=1.0,
        max_available_time_s=2.0,
        version=8,
        updated_at=99.0,
    )
    differing = [
        a.name for a in attrs.fields(Persona) if getattr(changed, a.name) == getattr(persona(), a.name)
    ]
    assert differing == ["id", "created_at"]
    assert store.update_persona(conn, changed, expected_version=7)
    assert [p for p in store.list_personas(conn) if p.id == "p1"] == [changed]


def test_a_stale_or_missing_persona_is_not_updated(conn: sqlite3.Connection) -> None:
    store.insert_persona(conn, persona())
    assert not store.update_persona(conn, persona(description="lost"), expected_version=6)
    assert not store.update_persona(conn, persona(id="nobody", name="N"), expected_version=7)
    assert persona() in store.list_personas(conn)


def test_a_name_is_taken_whatever_its_case(conn: sqlite3.Connection) -> None:
    store.insert_persona(conn, persona())
    with pytest.raises(Conflict) as caught:
        store.insert_persona(conn, persona(id="p2", name="STRASSE"))
    assert caught.value.field == "name"
    store.insert_persona(conn, persona(id="p3", name="Weg"))
    with pytest.raises(Conflict):
        store.update_persona(conn, persona(id="p3", name="strasse"), expected_version=7)
    with pytest.raises(sqlite3.IntegrityError):
        conn.execute("INSERT INTO personas (id) VALUES ('incomplete')")


def test_deleting_a_persona_deletes_everything_of_it(conn: sqlite3.Connection) -> None:
    for persona_id, id_ in ((ARIA_ID, "a"), (KIRA_ID, "k")):
        store.create_conversation(conn, conversation(id_, persona_id=persona_id))
        turns.append_turns(conn, id_, [line("hello"), answer("hi")])
        store.save_state(
            conn,
            InteractionState(persona_id=persona_id, as_of=1, social_energy=2, available_time_s=3),
        )
    assert store.delete_persona(conn, ARIA_ID)
    assert not store.delete_persona(conn, ARIA_ID)
    assert [p.name for p in store.list_personas(conn)] == ["Kira"]
    assert [state.persona_id for state in store.load_states(conn)] == [KIRA_ID]
    assert store.get_conversation(conn, "a") is None
    assert count(conn, "turns") == 2
    assert conn.execute("PRAGMA foreign_key_check").fetchall() == []


def test_the_last_state_is_kept(conn: sqlite3.Connection) -> None:
    first = InteractionState(
        persona_id=ARIA_ID,
        as_of=1.0,
        social_energy=2.0,
        available_time_s=3.0,
        interaction_fatigue=4.0,
        interest_level=5.0,
        cooldown_until=6.0,
    )
    store.save_state(conn, first)
    assert store.load_states(conn) == [first]
    last = InteractionState(
        persona_id=ARIA_ID,
        as_of=1.5,
        social_energy=2.5,
        available_time_s=3.5,
        interaction_fatigue=4.5,
        interest_level=5.5,
    )
    store.save_state(conn, last)
    assert store.load_states(conn) == [last]


def test_the_state_of_a_persona_that_is_gone_is_dropped(conn: sqlite3.Connection) -> None:
    store.save_state(conn, InteractionState(persona_id="gone", as_of=1, social_energy=2, available_time_s=3))
    assert store.load_states(conn) == []


# Conversations


def test_a_conversation_comes_back_as_it_was(conn: sqlite3.Connection) -> None:
    added = conversation(created_at=1.25, updated_at=2.5)
    store.create_conversation(conn, added)
    assert store.get_conversation(conn, "c1") == added
    assert store.get_conversation(conn, "c2") is None


def test_deleting_a_conversation_deletes_its_turns_and_no_others(conn: sqlite3.Connection) -> None:
    for id_ in ("c1", "c2"):
        store.create_conversation(conn, conversation(id_))
        turns.append_turns(conn, id_, [line("hello"), answer("hi")])
    assert store.delete_conversation(conn, "c1") == 2
    assert store.delete_conversation(conn, "c1") is None
    assert store.get_conversation(conn, "c1") is None
    assert store.get_conversation(conn, "c2") is not None
    assert count(conn, "turns") == 2


def test_a_conversation_needs_its_persona(conn: sqlite3.Connection) -> None:
    with pytest.raises(PersonaNotFound):
        store.create_conversation(conn, conversation(persona_id="gone"))


def test_the_latest_conversation_is_the_one_last_spoken_in(conn: sqlite3.Connection) -> None:
    assert store.latest_conversation(conn, "ann", ARIA_ID) is None
    for id_, changes in (
        ("old", {"updated_at": 10.0}),
        ("new", {"updated_at": 11.0}),
        ("other user", {"updated_at": 12.0, "user": "bob"}),
        ("other persona", {"updated_at": 12.0, "persona_id": KIRA_ID}),
    ):
        store.create_conversation(conn, conversation(id_, **changes))
    latest = store.latest_conversation(conn, "ann", ARIA_ID)
    assert latest is not None
    assert latest.id == "new"
    turns.append_turns(conn, "old", [line("again", 13.0)])
    latest = store.latest_conversation(conn, "ann", ARIA_ID)
    assert latest == conversation("old", updated_at=13.0, turn_count=1)


@pytest.fixture
def many(conn: sqlite3.Connection) -> sqlite3.Connection:
    """25 of Ann's, of which several share a time, and some of Bob's."""
    for n in range(25):
        kira = n % 5 == 0
        store.create_conversation(
            conn,
            conversation(f"c{n:02}", updated_at=n // 4 + 0.1, persona_id=KIRA_ID if kira else ARIA_ID),
        )
        store.create_conversation(conn, conversation(f"b{n:02}", updated_at=n // 4 + 0.1, user="bob"))
    return conn


@pytest.mark.parametrize("limit", [1, 3, 5, 24, 25, 26])
@pytest.mark.parametrize("persona_id", [None, ARIA_ID, KIRA_ID])
@pytest.mark.parametrize("ids", [None, [f"c{n:02}" for n in range(3, 20)] + ["b01", "unknown"]])
def test_pages_hold_everything_once_newest_first(
    many: sqlite3.Connection, limit: int, persona_id: str | None, ids: list[str] | None
) -> None:
    found: list[Conversation] = []
    before = None
    while True:
        page, before = store.list_conversations(
            many, user="ann", persona_id=persona_id, ids=ids, limit=limit, before=before
        )
        assert len(page) == limit or before is None
        found += page
        if before is None:
            break
        assert len(before) <= 200
    expected = [
        n
        for n in range(25)
        if (persona_id is None or (n % 5 == 0) == (persona_id == KIRA_ID)) and (ids is None or 3 <= n < 20)
    ]
    expected.sort(key=lambda n: (n // 4, n), reverse=True)
    assert [c.id for c in found] == [f"c{n:02}" for n in expected]


def test_no_ids_are_no_conversations(many: sqlite3.Connection) -> None:
    assert store.list_conversations(many, user="ann", ids=[], limit=5) == ([], None)


@pytest.mark.parametrize(
    "cursor",
    ["x", "", "AAAA", "WzFd", "bnVsbA==", "WzEsMl0=", "WzEuMCwgMl0=", "ü", "\ud800", "W10=", "eyJhIjoxfQ=="],
)
def test_a_bad_cursor_is_named(conn: sqlite3.Connection, cursor: str) -> None:
    with pytest.raises(InvalidParams) as caught:
        store.list_conversations(conn, user="ann", limit=5, before=cursor)
    assert caught.value.field == "before"


def test_conversations_are_counted(many: sqlite3.Connection) -> None:
    assert store.count_conversations(many, since=0.0) == 50
    assert store.count_conversations(many, since=6.0) == 2
    assert store.count_conversations(many, since=5.1) == 10
    assert store.count_conversations(many, since=7.0) == 0


def test_a_personas_turns_are_counted(conn: sqlite3.Connection) -> None:
    assert store.persona_turn_stats(conn, ARIA_ID) == (0, 0, None)
    store.create_conversation(conn, conversation("silent", updated_at=50.0))
    assert store.persona_turn_stats(conn, ARIA_ID) == (0, 1, None)
    store.create_conversation(conn, conversation("a"))
    store.create_conversation(conn, conversation("k", persona_id=KIRA_ID))
    turns.append_turns(conn, "a", [line("1"), answer("2"), line("3", 30.0)])
    turns.append_turns(conn, "k", [line("4", 40.0)])
    assert store.persona_turn_stats(conn, ARIA_ID) == (3, 2, 30.0)
