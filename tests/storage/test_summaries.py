"""Summaries belong to a turn, and so to the branches through it."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from persona.storage import store, turns
from persona.storage.summaries import (
    Summary,
    after_summary,
    find_summary,
    save_summary,
)
from persona.storage.turns import Spot
from tests.storage.test_store import conversation, line
from tests.storage.test_turns import beside, open_memory, say, spoken


@pytest.fixture
def conn() -> Iterator[sqlite3.Connection]:
    with closing(open_memory()) as opened:
        store.create_conversation(opened, conversation("c1"))
        yield opened


def sum_up(conn: sqlite3.Connection, turn_id: int, content: str) -> Summary:
    summary = Summary(turn_id, content)
    save_summary(conn, "c1", summary, created_at=1.0)
    return summary


def test_the_newest_on_the_branch_counts(conn: sqlite3.Connection) -> None:
    said = [say(conn, f"t{number}") for number in range(6)]
    assert find_summary(conn, "c1", said[5].id) is None
    assert find_summary(conn, "c1", None) is None
    early, late = sum_up(conn, said[1].id, "early"), sum_up(conn, said[3].id, "late")
    assert find_summary(conn, "c1", said[5].id) == late
    assert find_summary(conn, "c1", said[3].id) == late
    assert find_summary(conn, "c1", said[2].id) == early
    other = beside(conn, said[2], "elsewhere")
    assert find_summary(conn, "c1", other.id) == early


def test_what_comes_after_it(conn: sqlite3.Connection) -> None:
    said = [say(conn, f"t{number}") for number in range(6)]
    assert after_summary(conn, "c1", said[5].id, 4) == (None, spoken(said[2:]))
    summary = sum_up(conn, said[1].id, "so far")
    assert after_summary(conn, "c1", said[5].id, 10) == (summary, spoken(said[2:]))
    assert after_summary(conn, "c1", said[5].id, 2) == (summary, spoken(said[4:]))


def test_one_at_the_same_turn_takes_the_place_of_the_last(conn: sqlite3.Connection) -> None:
    turn = say(conn, "t")
    sum_up(conn, turn.id, "once")
    again = sum_up(conn, turn.id, "again")
    assert find_summary(conn, "c1", turn.id) == again


def test_it_goes_with_its_turn_and_is_not_saved_without(conn: sqlite3.Connection) -> None:
    said = [say(conn, f"t{number}") for number in range(3)]
    sum_up(conn, said[1].id, "so far")
    turns.delete_branch(conn, "c1", said[1].id)
    sum_up(conn, said[2].id, "too late")
    store.create_conversation(conn, conversation("c2"))
    save_summary(conn, "c2", Summary(said[0].id, "another's turn"), created_at=1.0)
    assert conn.execute("SELECT count(*) FROM summaries").fetchone() == (0,)
    sum_up(conn, said[0].id, "again")
    store.delete_conversation(conn, "c1")
    assert conn.execute("SELECT count(*) FROM summaries").fetchone() == (0,)


def test_those_of_other_branches_are_passed_over(conn: sqlite3.Connection) -> None:
    root = say(conn, "root")
    sum_up(conn, root.id, "mine, but older")
    turn = say(conn, "turn")
    mine = sum_up(conn, turn.id, "mine")
    leaf = say(conn, "leaf")
    for number in range(40):
        (other,) = turns.append_turns(
            conn, "c1", [line(f"o{number}")], Spot(parent_id=root.id, seen_leaf_id=leaf.id)
        )
        sum_up(conn, other.id, "another's")
    newest = say(conn, "newest", Spot(parent_id=leaf.id, seen_leaf_id=None))
    assert find_summary(conn, "c1", newest.id) == mine
