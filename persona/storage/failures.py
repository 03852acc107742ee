"""What the log says of a database that fails: when it begins, that it lasts, and when it is over.

Clients try again, so a full disk fails many times a second; a line for each, with its traceback, would
soon fill the disk of the log.
"""

import sqlite3
import time
from collections.abc import Callable
from typing import final

import structlog

REPEAT_S = 10.0
"""How long a failure that was logged is only counted when it comes again."""
STEADY_S = 1.0
"""How long nothing must have failed for the next success to be the end of it. Where some transactions
fail and some do not, as on a disk that is nearly full, each would be an end and a beginning."""
MAX_KINDS = 32
"""Failures told apart at a time. A disk that dies shows half a dozen; beyond, the oldest is forgotten, and
would be logged anew."""

_log = structlog.get_logger()


@final
class FailureLog:
    """The failures of one connection and its successors. Used by one thread at a time."""

    def __init__(self, now: Callable[[], float] = time.monotonic) -> None:
        self._now = now
        self._unreported: list[sqlite3.Error] = []
        self._due: dict[tuple[str, str], float] = {}
        """When a failure of that code and text will be logged again."""
        self._skipped: dict[tuple[str, str], int] = {}
        self._failing_since: float | None = None
        self._failed_at = 0.0
        self._failed_transactions = 0

    def add(self, exc: sqlite3.Error) -> None:
        """A call or a transaction failed. Logged by `report`: writing out a traceback takes milliseconds,
        and nobody should wait for it inside a transaction."""
        self._unreported.append(exc)

    def transaction_ended(self, *, failed: bool) -> None:
        """Note how the transaction ended, to tell how long the database has been failing."""
        if failed:
            self._failed_at = self._now()
            self._failing_since = self._failed_at if self._failing_since is None else self._failing_since
            self._failed_transactions += 1
        elif self._failing_since is not None and self._now() >= self._failed_at + STEADY_S:
            _log.info(
                "database_recovered",
                failed_for_s=round(self._failed_at - self._failing_since, 3),
                failed_transactions=self._failed_transactions,
            )
            self._failing_since, self._failed_transactions = None, 0
            self._due.clear()
            self._skipped.clear()

    def report(self) -> None:
        """Log what was added and was not logged in the last `REPEAT_S`."""
        for exc in self._unreported:
            self._report(exc)
        self._unreported.clear()

    def _report(self, exc: sqlite3.Error) -> None:
        kind = (getattr(exc, "sqlite_errorname", type(exc).__name__), str(exc))
        now = self._now()
        if now < self._due.get(kind, now):
            self._skipped[kind] = self._skipped.get(kind, 0) + 1
            return
        if kind not in self._due and len(self._due) >= MAX_KINDS:
            oldest = next(iter(self._due))
            del self._due[oldest]
            self._skipped.pop(oldest, None)
        self._due[kind] = now + REPEAT_S
        code, error = kind
        skipped = self._skipped.pop(kind, 0)
        more = {"repeated": skipped} if skipped else {}
        _log.error("database_failed", code=code, error=error, **more, exc_info=exc)
