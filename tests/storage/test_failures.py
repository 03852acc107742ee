"""The log of a database that fails: a line when it begins, now and then one, and one when it is over."""

import sqlite3
from typing import Any

import attrs
import structlog.testing

from persona.storage import failures
from persona.storage.failures import FailureLog


@attrs.define
class Clock:
    time_s: float = 1000.0

    def __call__(self) -> float:
        return self.time_s


def fail(log: FailureLog, text: str) -> None:
    log.add(sqlite3.OperationalError(text))
    log.transaction_ended(failed=True)
    log.report()


def said(logs: list[Any], event: str) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in entry.items() if name not in ("event", "log_level", "exc_info")}
        for entry in logs
        if entry["event"] == event
    ]


def test_a_failure_that_lasts_is_logged_now_and_then() -> None:
    clock = Clock()
    log = FailureLog(clock)
    with structlog.testing.capture_logs() as logs:
        for _ in range(100):
            fail(log, "disk I/O error")
            clock.time_s += 0.25
    lines = said(logs, "database_failed")
    assert [line.get("repeated", 0) for line in lines] == [0, 39, 39]
    assert {(line["code"], line["error"]) for line in lines} == {("OperationalError", "disk I/O error")}
    assert all(isinstance(entry["exc_info"], sqlite3.OperationalError) for entry in logs)


def test_another_failure_is_logged_at_once() -> None:
    log = FailureLog(Clock())
    with structlog.testing.capture_logs() as logs:
        for text in ("disk I/O error", "disk I/O error", "disk full", "disk I/O error", "disk full"):
            fail(log, text)
    assert [line["error"] for line in said(logs, "database_failed")] == ["disk I/O error", "disk full"]


def test_the_end_is_logged_once_and_what_comes_then_is_new() -> None:
    clock = Clock()
    log = FailureLog(clock)
    with structlog.testing.capture_logs() as logs:
        log.transaction_ended(failed=False)
        for _ in range(3):
            fail(log, "disk full")
            clock.time_s += 0.5
        # So soon after the last one, it may be chance.
        log.transaction_ended(failed=False)
        assert said(logs, "database_recovered") == []
        clock.time_s += 0.5
        log.transaction_ended(failed=False)
        log.transaction_ended(failed=False)
        fail(log, "disk full")
    assert said(logs, "database_recovered") == [{"failed_for_s": 1.0, "failed_transactions": 3}]
    assert [entry["event"] for entry in logs] == ["database_failed", "database_recovered", "database_failed"]
    assert "repeated" not in logs[-1]


def test_a_call_that_fails_alone_is_no_failure_of_the_database() -> None:
    log = FailureLog(Clock())
    with structlog.testing.capture_logs() as logs:
        log.add(sqlite3.OperationalError("no such table: nowhere"))
        log.transaction_ended(failed=False)
        log.report()
    assert [entry["event"] for entry in logs] == ["database_failed"]


def test_kinds_are_bounded() -> None:
    log = FailureLog(Clock())
    with structlog.testing.capture_logs() as logs:
        for n in range(failures.MAX_KINDS):
            fail(log, f"failure {n}")
        fail(log, "failure 0")
        assert len(logs) == failures.MAX_KINDS
        fail(log, "one more")
        fail(log, "failure 1")
        fail(log, "failure 0")
    assert [line["error"] for line in said(logs, "database_failed")][-2:] == ["one more", "failure 0"]
