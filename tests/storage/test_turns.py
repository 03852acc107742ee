"""The tree of a conversation: branches are read whole and in order, and nothing walks a table."""

import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persona.errors import Conflict, NotFound
from persona.model import Conversation, NewTurn, Siblings, Spoken, Turn
from persona.storage import schema, store, turns
from persona.storage.seed import ARIA_ID
from persona.storage.turns import Spot
from tests.storage.test_store import answer, conversation, count, line


def open_memory() -> sqlite3.Connection:
    opened = sqlite3.connect(":memory:", isolation_level=None)
    schema.migrate(opened, Path("p.db"))
    opened.execute("PRAGMA foreign_keys = ON")
    return opened


@pytest.fixture
def conn() -> Iterator[sqlite3.Connection]:
    opened = open_memory()
    store.create_conversation(opened, conversation("c1"))
    store.create_conversation(opened, conversation("c2"))
    yield opened
    opened.close()


def say(conn: sqlite3.Connection, content: str, spot: Spot | None = None) -> Turn:
    """A line in c1, at the end of the current branch or at `spot`."""
    (turn,) = turns.append_turns(conn, "c1", [line(content)], spot)
    return turn


def beside(conn: sqlite3.Connection, turn: Turn, content: str) -> Turn:
    """A sibling, which becomes current."""
    return say(conn, content, Spot(parent_id=turn.parent_id, seen_leaf_id=turns.current_leaf(conn, "c1")))


def spoken(said: Iterable[Turn]) -> list[Spoken]:
    return [Spoken(turn.id, turn.role, turn.content) for turn in said]


def current(conn: sqlite3.Connection, id_: str = "c1") -> list[str]:
    return [turn.content for turn, _ in turns.recent_turns(conn, id_, 200).turns]


def places(conn: sqlite3.Connection) -> dict[str, tuple[int, int]]:
    found = turns.recent_turns(conn, "c1", 200).turns
    return {turn.content: (siblings.index, siblings.count) for turn, siblings in found}


# One branch


def test_turns_follow_each_other(conn: sqlite3.Connection) -> None:
    details = {"model": "m", "deep": [1, {"a": None}]}
    full = {"tokens_used": 3, "finish_reason": "stop", "client_msg_id": "m1", "body_hash": b"\x00\xff"}
    first = turns.append_turns(
        conn, "c1", [line("hello"), answer("hi \x00 'there'", details=details, **full)]
    )
    turns.append_turns(conn, "c2", [line("elsewhere")])
    second = turns.append_turns(conn, "c1", [line("more", 30.0)])
    assert [turn.parent_id for turn in first + second] == [None, first[0].id, first[1].id]
    assert first[0].id < first[1].id < second[0].id
    assert first[1] == Turn(
        id=first[1].id,
        conversation_id="c1",
        parent_id=first[0].id,
        role="assistant",
        speaker_id=ARIA_ID,
        content="hi \x00 'there'",
        created_at=21.0,
        details=details,
        **full,
    )
    page = turns.recent_turns(conn, "c1", 20)
    assert [turn for turn, _ in page.turns] == first + second
    assert {siblings for _, siblings in page.turns} == {
        Siblings(index=1, count=1, previous_id=None, next_id=None)
    }
    assert (page.has_more, page.current_turn_id) == (False, second[0].id)
    assert turns.branch(conn, second[0].id, 20) == spoken(first + second)
    assert turns.branch(conn, second[0].id, 2) == spoken([first[1], second[0]])
    assert turns.branch(conn, None, 20) == []
    updated = store.get_conversation(conn, "c1")
    assert updated == conversation("c1", updated_at=30.0, turn_count=3)


def test_a_clock_that_steps_back_does_not_age_a_conversation(conn: sqlite3.Connection) -> None:
    store.create_conversation(conn, conversation("old", updated_at=100.0))
    turns.append_turns(conn, "old", [line("hello", 50.0)])
    updated = store.get_conversation(conn, "old")
    assert updated is not None
    assert updated.updated_at == 100.0


def test_no_turns_are_no_change(conn: sqlite3.Connection) -> None:
    assert turns.append_turns(conn, "c1", []) == []
    assert store.get_conversation(conn, "c1") == conversation("c1")


def test_turns_need_their_conversation_and_what_they_follow(conn: sqlite3.Connection) -> None:
    (elsewhere,) = turns.append_turns(conn, "c2", [line("elsewhere")])
    for id_, parent_id, field in (
        ("gone", None, "conversation_id"),
        ("c1", elsewhere.id, "turn_id"),
        ("c1", 999, "turn_id"),
    ):
        with pytest.raises(NotFound) as caught:
            turns.append_turns(conn, id_, [line("hello")], Spot(parent_id=parent_id, seen_leaf_id=None))
        assert caught.value.field == field
    assert count(conn, "turns") == 1


def test_a_turn_id_is_never_given_twice(conn: sqlite3.Connection) -> None:
    last = say(conn, "hello")
    turns.delete_branch(conn, "c1", last.id)
    assert say(conn, "hello").id > last.id


def test_a_branch_is_read_backwards_in_pages(conn: sqlite3.Connection) -> None:
    said: list[Turn] = []
    for n in range(10):
        said.append(say(conn, str(n)))
        turns.append_turns(conn, "c2", [line("elsewhere")])

    def page(limit: int, before: Turn | None = None) -> tuple[list[Turn], bool]:
        found = turns.recent_turns(conn, "c1", limit, None if before is None else before.id)
        return [turn for turn, _ in found.turns], found.has_more

    assert page(4) == (said[6:], True)
    assert page(4, said[6]) == (said[2:6], True)
    assert page(2, said[2]) == (said[:2], False)
    assert page(10) == (said, False)
    assert page(4, said[0]) == ([], False)


def test_what_is_gone_has_no_pages(conn: sqlite3.Connection) -> None:
    (elsewhere,) = turns.append_turns(conn, "c2", [line("elsewhere")])
    for id_, before, field in (
        ("gone", None, "conversation_id"),
        ("c1", 999, "before"),
        ("c1", elsewhere.id, "before"),
    ):
        with pytest.raises(NotFound) as caught:
            turns.recent_turns(conn, id_, 4, before)
        assert caught.value.field == field


# `client_msg_id`


def test_a_client_msg_id_finds_answer_and_line(conn: sqlite3.Connection) -> None:
    said, answered = turns.append_turns(conn, "c1", [line("hello"), answer("hi", client_msg_id="m")])
    turns.append_turns(conn, "c1", [line("after"), answer("not this one")])
    assert turns.answer_by_client_msg_id(conn, "c1", "m") == (answered, said)
    # The same id may be used in another conversation.
    assert turns.answer_by_client_msg_id(conn, "c2", "m") is None
    turns.append_turns(conn, "c2", [line("hello"), answer("hi", client_msg_id="m")])
    assert turns.answer_by_client_msg_id(conn, "c1", "n") is None


def test_a_client_msg_id_is_used_once_and_can_be_taken_over(conn: sqlite3.Connection) -> None:
    said, cut = turns.append_turns(conn, "c1", [line("hello"), answer("h", client_msg_id="m")])
    again = [answer("hi", client_msg_id="m", body_hash=b"h")]
    with pytest.raises(Conflict) as caught:
        turns.append_turns(conn, "c1", again)
    assert caught.value.field == "client_msg_id"
    spot = Spot(parent_id=said.id, seen_leaf_id=cut.id)
    (whole,) = turns.append_turns(conn, "c1", again, spot, supersedes=cut.id)
    assert turns.answer_by_client_msg_id(conn, "c1", "m") == (whole, said)
    assert turns.get_turn(conn, "c1", cut.id).client_msg_id is None
    assert current(conn) == ["hello", "hi"]


# Branches


def test_siblings_stand_beside_each_other_and_the_branch_is_the_newest(conn: sqlite3.Connection) -> None:
    root, first = say(conn, "root"), say(conn, "first")
    below = say(conn, "below first")
    second, third = beside(conn, first, "second"), beside(conn, first, "third")
    assert current(conn) == ["root", "third"]
    assert places(conn) == {"root": (1, 1), "third": (3, 3)}
    turns.select_branch(conn, "c1", second.id)
    ((_, siblings),) = turns.recent_turns(conn, "c1", 1).turns
    assert siblings == Siblings(index=2, count=3, previous_id=first.id, next_id=third.id)
    assert turns.select_branch(conn, "c1", first.id) == below.id
    assert current(conn) == ["root", "first", "below first"]
    # The first line can have siblings, too.
    beside(conn, root, "other root")
    assert places(conn) == {"other root": (2, 2)}
    assert count(conn, "turns") == 6
    updated = store.get_conversation(conn, "c1")
    assert updated is not None
    assert updated.turn_count == 6


def test_selecting_goes_down_to_the_newest_leaf(conn: sqlite3.Connection) -> None:
    root, a = say(conn, "root"), say(conn, "a")
    aa = say(conn, "aa")
    ab = beside(conn, aa, "ab")
    b = beside(conn, a, "b")
    assert turns.select_branch(conn, "c1", root.id) == b.id
    assert turns.select_branch(conn, "c1", a.id) == ab.id
    assert turns.select_branch(conn, "c1", aa.id) == aa.id
    assert current(conn) == ["root", "a", "aa"]
    (elsewhere,) = turns.append_turns(conn, "c2", [line("elsewhere")])
    for id_ in (elsewhere.id, 999):
        with pytest.raises(NotFound) as caught:
            turns.select_branch(conn, "c1", id_)
        assert caught.value.field == "turn_id"
    assert current(conn) == ["root", "a", "aa"]


def test_the_branch_moves_on_only_from_the_leaf_that_was_seen(conn: sqlite3.Connection) -> None:
    root, first = say(conn, "root"), say(conn, "first")
    seen = Spot(parent_id=root.id, seen_leaf_id=first.id)
    say(conn, "one", seen)
    late = say(conn, "late", seen)
    assert current(conn) == ["root", "one"]
    assert turns.get_turn(conn, "c1", late.id).parent_id == root.id
    assert places(conn)["one"] == (2, 3)


def test_a_branch_that_was_cut_back_meanwhile_grows_again(conn: sqlite3.Connection) -> None:
    root, a = say(conn, "root"), say(conn, "a")
    b = say(conn, "b")
    seen = Spot(parent_id=a.id, seen_leaf_id=b.id)
    turns.delete_branch(conn, "c1", b.id)
    say(conn, "instead of b", seen)
    assert current(conn) == ["root", "a", "instead of b"]
    anew = Spot(parent_id=None, seen_leaf_id=turns.current_leaf(conn, "c1"))
    turns.delete_branch(conn, "c1", root.id)
    say(conn, "anew", anew)
    assert current(conn) == ["anew"]


def test_a_reader_goes_on_where_it_was_when_another_branch_is_chosen(conn: sqlite3.Connection) -> None:
    said = [say(conn, str(n)) for n in range(6)]
    page = turns.recent_turns(conn, "c1", 2)
    beside(conn, said[1], "other")
    rest = turns.recent_turns(conn, "c1", 20, page.turns[0][0].id)
    assert [turn.content for turn, _ in rest.turns] == ["0", "1", "2", "3"]
    assert current(conn) == ["0", "other"]


# Deleting


def test_a_branch_is_deleted_with_all_that_follows(conn: sqlite3.Connection) -> None:
    say(conn, "root")
    a = say(conn, "a")
    aa = say(conn, "aa")
    ab = beside(conn, aa, "ab")
    b = beside(conn, a, "b")
    deleted, leaf = turns.delete_branch(conn, "c1", a.id)
    assert (deleted, leaf) == ({a.id, aa.id, ab.id}, b.id)
    # The current branch was another: it stays.
    assert current(conn) == ["root", "b"]
    assert places(conn)["b"] == (1, 1)
    updated = store.get_conversation(conn, "c1")
    assert updated is not None
    assert updated.turn_count == count(conn, "turns") == 2


def test_where_the_current_branch_is_deleted_the_one_beside_it_becomes_current(
    conn: sqlite3.Connection,
) -> None:
    root, a = say(conn, "root"), say(conn, "a")
    aa = say(conn, "aa")
    b, c = beside(conn, a, "b"), beside(conn, a, "c")
    assert turns.delete_branch(conn, "c1", c.id)[1] == b.id
    turns.select_branch(conn, "c1", a.id)
    assert turns.delete_branch(conn, "c1", a.id) == ({a.id, aa.id}, b.id)
    # The last of its siblings, then the first line of all.
    assert turns.delete_branch(conn, "c1", b.id) == ({b.id}, root.id)
    assert current(conn) == ["root"]
    assert turns.delete_branch(conn, "c1", root.id) == ({root.id}, None)
    assert current(conn) == []
    assert say(conn, "anew").parent_id is None


def test_only_what_is_there_is_deleted(conn: sqlite3.Connection) -> None:
    (elsewhere,) = turns.append_turns(conn, "c2", [line("elsewhere")])
    for id_ in (elsewhere.id, 999):
        with pytest.raises(NotFound):
            turns.delete_branch(conn, "c1", id_)
    assert count(conn, "turns") == 1


# Any order of events

EVENTS = st.lists(
    st.tuples(st.sampled_from(["say", "sibling", "select", "delete"]), st.integers(0, 10**6)), max_size=40
)


@settings(max_examples=60, deadline=None)
@given(EVENTS)
def test_a_tree_is_what_a_model_of_it_says(events: list[tuple[str, int]]) -> None:
    """Against a dict of parents: the branch, siblings and counts, after any mix of events."""
    conn = open_memory()
    store.create_conversation(conn, conversation("c1"))
    parents: dict[int, int | None] = {}
    leaf: int | None = None

    def children(parent: int | None) -> list[int]:
        return sorted(id_ for id_, of in parents.items() if of == parent)

    def newest_leaf(id_: int) -> int:
        while below := children(id_):
            id_ = below[-1]
        return id_

    def path(id_: int | None) -> list[int]:
        return [] if id_ is None else [*path(parents[id_]), id_]

    for what, number in events:
        chosen = sorted(parents)[number % len(parents)] if parents else None
        if what in ("say", "sibling") or chosen is None:
            spot = None
            if what == "sibling" and chosen is not None:
                spot = Spot(parent_id=parents[chosen], seen_leaf_id=leaf)
            turn = say(conn, "x", spot)
            parents[turn.id] = leaf if spot is None else spot.parent_id
            leaf = turn.id
        elif what == "select":
            leaf = turns.select_branch(conn, "c1", chosen)
            assert leaf == newest_leaf(chosen)
        else:
            gone = {id_ for id_ in parents if chosen in path(id_)}
            kin = [id_ for id_ in children(parents[chosen]) if id_ != chosen]
            older, newer = [k for k in kin if k < chosen], [k for k in kin if k > chosen]
            parent = parents[chosen]
            parents = {id_: of for id_, of in parents.items() if id_ not in gone}
            if leaf in gone:
                leaf = newest_leaf((older[-1:] or newer[:1])[0]) if kin else parent
            assert turns.delete_branch(conn, "c1", chosen) == (gone, leaf)
    page = turns.recent_turns(conn, "c1", 200)
    assert page.current_turn_id == leaf
    assert [turn.id for turn, _ in page.turns] == path(leaf)
    for turn, siblings in page.turns:
        kin = children(parents[turn.id])
        at = kin.index(turn.id)
        assert (siblings.index, siblings.count) == (at + 1, len(kin))
        assert siblings.previous_id == (kin[at - 1] if at else None)
        assert siblings.next_id == (kin[at + 1] if at + 1 < len(kin) else None)
    kept = store.get_conversation(conn, "c1")
    assert kept is not None
    assert kept.turn_count == len(parents)
    conn.close()


# How long it takes


def fill(conn: sqlite3.Connection, conversations: int, total: int) -> None:
    conn.execute("BEGIN")
    for n in range(conversations):
        store.create_conversation(
            conn,
            Conversation(id=f"d{n}", persona_id=ARIA_ID, user="anonymous", created_at=n, updated_at=n),
        )
    for n in range(total):
        new = NewTurn(role="user", speaker_id="a", content="x" * 300, created_at=n, client_msg_id=f"m{n}")
        turns.append_turns(conn, f"d{n % conversations}", [new])
    conn.execute("COMMIT")


@given(contents=st.lists(st.text(), max_size=4))
def test_a_branch_says_what_was_said_to_the_letter(contents: list[str]) -> None:
    with closing(open_memory()) as conn:
        store.create_conversation(conn, conversation("c1"))
        for content in ["\x00'\\\"\n\u2028", *contents]:
            say(conn, content)
        found = turns.branch(conn, turns.current_leaf(conn, "c1"), 10)
    assert [each.content for each in found][1:] == contents


def test_a_long_conversation_is_no_slower_to_read_at_its_end(conn: sqlite3.Connection) -> None:
    """Two thousand turns, and a branch of as many that hangs from the first of them: a page and a
    context take milliseconds, whatever lies above."""
    fill(conn, 1, 2000)
    first = turns.recent_turns(conn, "d0", 2000).turns[0][0]
    began = time.perf_counter()
    for _ in range(20):
        page = turns.recent_turns(conn, "d0", 20)
        turns.branch(conn, page.current_turn_id, 200)
    # About 1 ms a round where it is idle.
    assert time.perf_counter() - began < 20 * 0.05
    assert len(page.turns) == 20
    deleted, leaf = turns.delete_branch(conn, "d0", first.id)
    assert (len(deleted), leaf) == (2000, None)
