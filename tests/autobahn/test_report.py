"""What the client has seen, judged."""

from typing import Any

import pytest

from tests.autobahn.report import Verdict, is_good, judge, lines


def seen(behavior: str = "OK", close: str = "OK", code: int | None = 1000) -> dict[str, Any]:
    return {"behavior": behavior, "behaviorClose": close, "remoteCloseCode": code, "duration": 1}


def outcome(case: str = "1.1.1", **result: Any) -> str:
    (verdict,) = judge({case: seen(**result)}, [case])
    return verdict.outcome


@pytest.mark.parametrize(
    ("behavior", "close", "worse"),
    [
        ("OK", "OK", "OK"),
        ("NON-STRICT", "OK", "NON-STRICT"),
        ("OK", "INFORMATIONAL", "INFORMATIONAL"),
        ("INFORMATIONAL", "NON-STRICT", "INFORMATIONAL"),
    ],
)
def test_a_case_is_what_the_worse_of_message_and_close_is(behavior: str, close: str, worse: str) -> None:
    assert outcome(behavior=behavior, close=close) == worse
    assert is_good([Verdict("1.1.1", worse)])


@pytest.mark.parametrize(
    "result",
    [
        {"behavior": "FAILED"},
        {"close": "FAILED"},
        {"behavior": "FAILED", "close": "FAILED", "code": None},
        # What else the client may say is no better, nor is what nobody has heard of.
        {"close": "WRONG CODE"},
        {"close": "UNCLEAN"},
        {"close": "FAILED BY CLIENT"},
        {"behavior": "UNIMPLEMENTED"},
        {"behavior": "new in the next version"},
    ],
)
def test_failed_fails_whether_the_message_or_the_close_did(result: dict[str, Any]) -> None:
    verdicts = judge({"1.1.1": seen(), "7.1.5": seen(**result)}, ["1.1.1", "7.1.5"])
    assert [verdict.outcome for verdict in verdicts] == ["OK", "FAILED"]
    assert not is_good(verdicts)


def test_binary_is_excluded_only_where_it_was_refused_as_promised() -> None:
    failed = {"behavior": "FAILED", "close": "FAILED"}
    assert outcome("1.2.8", **failed, code=1003) == "excluded"
    assert is_good(judge({"1.2.8": seen(**failed, code=1003)}, ["1.2.8"]))
    assert outcome("1.2.8", **failed, code=1002) == "FAILED"
    assert outcome("1.2.8", **failed, code=None) == "FAILED"
    # An echo would break the contract as well.
    assert outcome("1.2.8") == "FAILED"
    # And no other case may end so.
    assert outcome("2.1.8", **failed, code=1003) == "FAILED"
    assert outcome("7.12.1", **failed, code=1003) == "FAILED"


def test_a_case_that_did_not_run_is_not_good() -> None:
    verdicts = judge({"1.1.1": seen()}, ["1.1.1", "1.2.1", "10.1.1"])
    assert [verdict.outcome for verdict in verdicts] == ["OK", "did not run", "did not run"]
    assert not is_good(verdicts)


def test_an_empty_run_is_not_good() -> None:
    assert not is_good(judge({}, []))


def test_the_table_counts_everything_and_names_what_is_not_ok() -> None:
    cases = ["1.1.1", "1.2.1", "3.2", "3.3", "7.1.5", "7.1.6", "10.1.1"]
    one = {
        "1.1.1": seen(),
        "1.2.1": seen("FAILED", "FAILED", 1003),
        "3.2": seen("NON-STRICT"),
        "3.3": seen("NON-STRICT"),
        "7.1.5": seen("FAILED", "WRONG CODE", 1002),
        "7.1.6": seen("INFORMATIONAL", "INFORMATIONAL", None),
    }
    two = {case: seen() for case in cases if case != "1.2.1"} | {"1.2.1": one["1.2.1"]}
    head, first, second, *named = lines({"one": judge(one, cases), "two": judge(two, cases)})
    assert " ".join(head.split()) == "OK NON-STRICT INFORMATIONAL FAILED excluded did not run"
    assert first.split() == ["one", "1", "2", "1", "1", "1", "1"]
    assert second.split() == ["two", "6", "0", "0", "0", "1", "0"]
    assert named == [
        "one NON-STRICT: 3.2 3.3",
        "one INFORMATIONAL: 7.1.6",
        "one FAILED 7.1.5: behavior FAILED, close WRONG CODE, code 1002",
        "one excluded: 1.2.1",
        "one did not run: 10.1.1",
        "two excluded: 1.2.1",
        "excluded are binary messages, which this server closes with 1003",
    ]
