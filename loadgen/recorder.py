"""What a run saw, as it sees it: latencies by stage and kind, errors by kind, a line for each second.

The rules of the figures are here and nowhere else:

* A latency is counted from when its request was due, into the stage it was due in; what was due in the
  warm-up gives none.
* A rate is of the answers that came while a stage ran, whenever they were due: what was waited for after the
  end has a latency, and there was no time to divide it by.
* An error is counted by kind, in the warm-up too, and never gives a latency.
* A wrong answer is an error, is kept word for word, and fails the run.
* An event that a subscriber missed is an error, `missed_event`: it shows by a gap, or in the end by what the
  server said it delivered.
* Connects and handshakes are measured from the start: connections have no warm-up.
"""

import math
from array import array
from collections import Counter
from collections.abc import Mapping
from typing import Any

import attrs

from loadgen.latencies import Latencies
from loadgen.scenario import Scenario
from loadgen.selfwatch import SelfWatch

MAX_WRONG_KEPT = 10
MAX_WRONG_CHARACTERS = 500
MAX_KIND_CHARACTERS = 60
MAX_KINDS = 50
"""Of errors, in one stage. Kinds are what a server says: one that makes up a new one each time gets no more
rows than that, and the others are counted as `other`."""
OTHER = "other"


@attrs.define
class StageFigures:
    """Of one stage."""

    from_s: float
    to_s: float
    latencies: dict[str, Latencies] = attrs.field(factory=dict)
    errors: Counter[str] = attrs.field(factory=Counter)
    answered: int = 0
    """Of what was due in it."""
    answered_meanwhile: int = 0
    """Of what was due before, too, while it was measured: what its rate is of."""
    wrong: int = 0

    def record(self, kind: str, seconds: float) -> None:
        """Count a latency."""
        latencies = self.latencies.get(kind)
        if latencies is None:
            latencies = self.latencies[kind] = Latencies()
        latencies.record(seconds)


@attrs.define(kw_only=True)
class Second:
    """One second of the run. Percentiles are in milliseconds, and `None` where nothing was answered."""

    at_s: float
    connections: int
    waiting: int
    oldest_ms: float
    """How long the request that waits longest has waited: a stall shows here before anything is answered."""
    answered: int = 0
    errors: int = 0
    expected_errors: int = 0
    p50_ms: float | None = None
    p95_ms: float | None = None
    p99_ms: float | None = None
    max_ms: float | None = None
    busy: float = 0.0
    """Share of the second in which the generator worked."""
    lag_ms: float = 0.0
    """The longest that the generator was late in it."""
    server: Mapping[str, float] = attrs.field(factory=dict)


@attrs.define
class Events:
    """What was published on `exchange.TOPIC`, the warm-up and what timed out included."""

    promised: int = 0
    """Receipts, by what the server said of each event: to how many it went."""
    received: int = 0
    last_at: float = 0.0
    departed: int = 0
    """Connections that were open and did not stay to the end. What is missing may have been theirs."""


class Recorder:
    """For one process. Nothing is measured before `start`. `watch` is told of each answer's latency."""

    def __init__(self, scenario: Scenario, watch: SelfWatch | None = None) -> None:
        self._watch = watch or SelfWatch()
        self._expected = scenario.expected
        self._warm_up_s = scenario.warm_up_s
        self._measure_from = math.inf
        self.stages: list[StageFigures] = []
        from_s = 0.0
        for stage in scenario.stages:
            self.stages.append(StageFigures(from_s, from_s + stage.seconds))
            from_s += stage.seconds
        self._ends = [math.inf for _ in self.stages]
        self._current = 0
        self.warm_up_answered = 0
        self.wrong_answers: list[str] = []
        self.wrong_count = 0
        self.cancelled_count = 0
        self.events = Events()
        self.seconds: list[Second] = []
        self._second_answers = array("d")
        self._second_errors = self._second_expected = 0

    def start(self, at: float) -> None:
        """The run begins at `at`, by `time.perf_counter()`; what was before is of the first stage."""
        self._measure_from = at + self._warm_up_s
        self._second_answers = array("d")
        self._second_errors = self._second_expected = 0
        self._ends = [at + stage.to_s for stage in self.stages]

    @property
    def error_count(self) -> int:
        """Of those that were not expected."""
        return sum(
            count
            for stage in self.stages
            for kind, count in stage.errors.items()
            if kind not in self._expected
        )

    def took(self, kind: str, scheduled_at: float, now: float) -> None:
        """Something that was due at `scheduled_at` came now."""
        if scheduled_at >= self._measure_from:
            self._stage_of(scheduled_at).record(kind, now - scheduled_at)

    def answered(self, method: str, scheduled_at: float, now: float) -> None:
        """A right answer."""
        self._second_answers.append(now - scheduled_at)
        if self._measure_from <= now < self._ends[-1]:
            self._stage_of(now).answered_meanwhile += 1
        if scheduled_at < self._measure_from:
            self.warm_up_answered += 1
            return
        stage = self._stage_of(scheduled_at)
        stage.answered += 1
        stage.record(method, now - scheduled_at)
        self._watch.measured(scheduled_at)

    def opened(self, started_at: float, connected_at: float, opened_at: float) -> None:
        """A connection: TCP first, the opening handshake after it."""
        stage = self._stage_of(started_at)
        stage.record("connect", connected_at - started_at)
        stage.record("handshake", opened_at - connected_at)

    def failed(self, kind: str, scheduled_at: float) -> None:
        """Something ended in an error of this kind."""
        kind = printable(kind, MAX_KIND_CHARACTERS)
        errors = self._stage_of(scheduled_at).errors
        if kind not in errors and len(errors) >= MAX_KINDS and kind not in self._expected:
            kind = OTHER
        errors[kind] += 1
        if kind in self._expected:
            self._second_expected += 1
        else:
            self._second_errors += 1

    def wrong(self, what: str, message: Any, at: float) -> None:
        """The server said what is not right, to what was due at `at`, or then."""
        self.wrong_count += 1
        self._stage_of(at).wrong += 1
        if len(self.wrong_answers) < MAX_WRONG_KEPT:
            said = printable(str(message), MAX_WRONG_CHARACTERS)
            self.wrong_answers.append(f"{printable(what, MAX_WRONG_CHARACTERS)}: {said}")
        self._second_errors += 1

    def cancelled(self) -> None:
        """A stream ended as its user wished, before its time."""
        self.cancelled_count += 1

    def end_second(self, second: Second) -> None:
        """Complete the line of this second, and begin the next."""
        ordered = sorted(self._second_answers)
        second.answered = len(ordered)
        second.errors = self._second_errors
        second.expected_errors = self._second_expected
        if ordered:
            second.p50_ms, second.p95_ms, second.p99_ms, second.max_ms = (
                round(ordered[max(0, round(share * len(ordered)) - 1)] * 1000, 3)
                for share in (0.5, 0.95, 0.99, 1.0)
            )
        self.seconds.append(second)
        self._second_answers = array("d")
        self._second_errors = self._second_expected = 0

    def _stage_of(self, at: float) -> StageFigures:
        # Most belong to the current stage; only around a change of stage does it go back.
        while self._current < len(self._ends) - 1 and at >= self._ends[self._current]:
            self._current += 1
        index = self._current
        while index and at < self._ends[index - 1]:
            index -= 1
        return self.stages[index]


def printable(text: str, limit: int) -> str:
    """What a server said, so that a terminal shows it and does not obey it."""
    if len(text) <= limit and text.isprintable():
        return text
    return "".join(each if each.isprintable() else "?" for each in text[:limit])
