"""No query walks a table or sorts, whatever the planner knows about the data.

The plans are those for a new database, for one with data, and for one whose statistics mislead: all turns in
one conversation, or nearly nothing in it, as they are when the first statistics are taken.
"""

import ast
import inspect
import re
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from persona.storage import retention, schema, store, summaries
from persona.storage import turns as stored_turns
from persona.storage.seed import ARIA_ID, KIRA_ID

STATEMENT = re.compile(r"\s*(SELECT|INSERT|UPDATE|DELETE|REPLACE|WITH)\b")
MODULES = (store, stored_turns, summaries, retention)
QUERIES = {
    name: value
    for name, value in [pair for module in MODULES for pair in vars(module).items()]
    if isinstance(value, str) and STATEMENT.match(value) and not name.startswith("_")
}
MAY_SCAN = {
    "LIST_PERSONAS": "all of a small table, once, at the start: personas are served from memory",
    "LOAD_STATES": "the same; a row for each persona",
}
MAY_SORT = {
    "LIST_BY_IDS": "the conversations of one session without a token: one for each persona it switched to",
}
SHAPES = {
    # Conversations, turns.
    "empty": (0, 0),
    "one conversation": (1, 1),
    "one long conversation": (1, 3000),
    "many conversations": (1500, 3000),
}


@pytest.fixture(params=SHAPES)
def conn(request: pytest.FixtureRequest) -> Iterator[sqlite3.Connection]:
    conversations, turns = SHAPES[request.param]
    opened = sqlite3.connect(":memory:", isolation_level=None)
    schema.migrate(opened, Path("p.db"))
    opened.execute("BEGIN")
    opened.executemany(
        store.CREATE_CONVERSATION,
        # Nearly all of them anonymous: the column on which the lists' index begins tells nothing apart.
        [
            {
                "id": f"c{n}",
                "persona_id": (ARIA_ID, KIRA_ID)[n % 2],
                "user": "ann" if n % 100 == 1 else "anonymous",
                "created_at": n,
                "updated_at": n,
                "turn_count": 2,
            }
            for n in range(conversations)
        ],
    )
    opened.executemany(
        stored_turns.INSERT_TURN,
        [
            (f"c{n % conversations}", n or None, "user", "ann", "x" * 50, n, 1, None, f"m{n}", None, None)
            for n in range(turns)
        ],
    )
    for persona_id in (ARIA_ID, KIRA_ID):
        opened.execute(
            "INSERT INTO interaction_states VALUES (?, 1.0, 1.0, 1.0, 1.0, 1.0, NULL)", (persona_id,)
        )
    opened.execute("COMMIT")
    yield opened
    opened.close()


@pytest.fixture(params=["before ANALYZE", "after ANALYZE"])
def analyzed(request: pytest.FixtureRequest, conn: sqlite3.Connection) -> sqlite3.Connection:
    if request.param == "after ANALYZE":
        conn.execute("ANALYZE")
    return conn


def plan(conn: sqlite3.Connection, query: str) -> list[str]:
    # SQLite plans before it knows the values; any number of them does.
    values: list[None] | dict[str, None] = [None] * query.count("?")
    if ":" in query:
        values = dict.fromkeys(re.findall(r":(\w+)", query))
    return [row[3] for row in conn.execute(f"EXPLAIN QUERY PLAN {query}", values)]


def scans(steps: list[str]) -> list[str]:
    # What a recursive query has found so far is walked, which is what it is for.
    harmless = ("SCAN json_each", "SCAN CONSTANT ROW", "SCAN path", "SCAN down", "SEARCH down")
    # A search for no value, or for a range of ids of whatever conversation, walks the table too.
    walks = r"SCAN\b|SEARCH [^(]*$|SEARCH .*\(rowid[<>]\?\)"
    return [step for step in steps if re.match(walks, step) and not step.startswith(harmless)]


def sorts(steps: list[str]) -> list[str]:
    return [step for step in steps if "TEMP B-TREE" in step or "AUTOMATIC" in step]


def faults(conn: sqlite3.Connection, name: str) -> list[str]:
    steps = plan(conn, QUERIES[name])
    return [*([] if name in MAY_SCAN else scans(steps)), *([] if name in MAY_SORT else sorts(steps))]


def test_no_query_scans_a_table_or_sorts(analyzed: sqlite3.Connection) -> None:
    found = {name: faults(analyzed, name) for name in QUERIES}
    assert {name: steps for name, steps in found.items() if steps} == {}


def test_the_lists_of_exceptions_name_what_needs_them(analyzed: sqlite3.Connection) -> None:
    for name in MAY_SCAN:
        assert scans(plan(analyzed, QUERIES[name]))
    for name in MAY_SORT:
        assert sorts(plan(analyzed, QUERIES[name]))


def test_a_search_is_by_what_tells_rows_apart(analyzed: sqlite3.Connection) -> None:
    """A search of a wrong index, or of the row's id alone, walks as far as a scan does."""
    expected = {
        "LIST_BY_USER": "conversations_user (user=? AND (updated_at,id)<(?,?))",
        "LIST_BY_USER_AND_PERSONA": (
            "conversations_user_persona (user=? AND persona_id=? AND (updated_at,id)<(?,?))"
        ),
        "LATEST_CONVERSATION": "conversations_user_persona (user=? AND persona_id=?)",
        "LIST_BY_IDS": "(id=?)",
        "PERSONA_TURN_STATS": "(persona_id=?)",
        "CHILDREN": "(conversation_id=? AND parent_id=?)",
        "TURN_BY_CLIENT_MSG_ID": "(conversation_id=? AND client_msg_id=?)",
    }
    for name, place in expected.items():
        assert plan(analyzed, QUERIES[name])[0].endswith(place), name
    for name in ("BRANCH", "BRANCH_WITH_SIBLINGS"):
        # The leaf and each step up by primary key, each turn by its whole place.
        first, step_up, turn = [s for s in plan(analyzed, QUERIES[name]) if "SEARCH" in s][:3]
        assert all(step.endswith("PRIMARY KEY (rowid=?)") for step in (first, step_up))
        assert "(conversation_id=? AND parent_id=? AND id=?" in turn


def test_deleting_a_persona_scans_no_table(analyzed: sqlite3.Connection) -> None:
    # Cascades do not show in a plan. SQLite runs them with the plan of the same DELETE.
    for child, column in (
        ("interaction_states", "persona_id"),
        ("conversations", "persona_id"),
        ("turns", "conversation_id"),
    ):
        (rows,) = analyzed.execute(f"SELECT count(*) FROM {child}").fetchone()
        # To walk one row is as good as to search for it, and the planner knows.
        assert rows == 1 or not scans(plan(analyzed, f"DELETE FROM {child} WHERE {column} = ?"))


@pytest.mark.parametrize(
    ("index", "sufferers"),
    [
        ("turns_siblings", {"CHILDREN", "NEWEST_LEAF", "BRANCH_WITH_SIBLINGS", "SIBLING_BESIDE"}),
        ("conversations_updated_at", {"COUNT_CONVERSATIONS_SINCE"}),
        ("conversations_user", {"LIST_BY_USER"}),
        ("conversations_persona", {"PERSONA_TURN_STATS"}),
    ],
)
def test_a_lost_index_would_be_noticed(conn: sqlite3.Connection, index: str, sufferers: set[str]) -> None:
    conn.execute(f"DROP INDEX {index}")
    found = set()
    for name in QUERIES:
        try:
            if faults(conn, name):
                found.add(name)
        except sqlite3.OperationalError as exc:
            # Asked for by name.
            assert "no such index" in str(exc)
            found.add(name)
    assert sufferers <= found


def test_no_statement_hides_in_a_function() -> None:
    """`QUERIES` holds what is in a constant of the module; there must be nothing else."""
    hidden = [
        (node.lineno, node.value)
        for module in MODULES
        for function in ast.walk(ast.parse(inspect.getsource(module)))
        if isinstance(function, ast.FunctionDef)
        for node in ast.walk(function)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and STATEMENT.match(node.value)
    ]
    assert hidden == []
    assert len(QUERIES) > 15
