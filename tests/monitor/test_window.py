"""Figures over the last seconds: exact counts, and percentiles to one bucket."""

import bisect
import math
import random

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona.metrics import SECONDS, Distribution, Metrics
from persona.monitor.window import MAX_WINDOW_S, Counted, Snapshot, Window, quantile


@attrs.define
class Past:
    """A server's counts, copied once a second."""

    metrics: Metrics = attrs.field(factory=Metrics)
    at: float = 1000.0
    window: Window = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.window = Window(self.snapshot())

    def snapshot(self, **figures: object) -> Snapshot:
        return attrs.evolve(Snapshot.of(self.metrics, at=self.at), **figures)

    def passes(self, seconds: int = 1, **figures: object) -> None:
        for _ in range(seconds):
            self.at += 1
            self.window.add(self.snapshot(**figures))

    def answers(self, count: int, method: str = "m", outcome: str = "ok", seconds: float = 0.003) -> None:
        for _ in range(count):
            self.metrics.messages.count_answer(method, outcome, seconds)


def test_a_window_holds_what_happened_in_it_and_nothing_older() -> None:
    past = Past()
    past.answers(5)
    past.passes()
    past.answers(3, outcome="not_found")
    past.answers(2, "n")
    past.metrics.errors.labels("not_found").inc(3)
    past.passes()
    past.passes()
    past.answers(1)
    # The last second is not copied yet.
    latest = past.snapshot(at=past.at + 0.4)
    assert past.window.over(300, latest).outcomes == {("m", "ok"): 6, ("m", "not_found"): 3, ("n", "ok"): 2}
    span = past.window.over(2, latest)
    assert span.outcomes == {("m", "ok"): 1, ("m", "not_found"): 3, ("n", "ok"): 2}
    assert span.errors == {"not_found": 3}
    assert {method: counted.count for method, counted in span.seconds.items()} == {"m": 4, "n": 2}
    assert span.seconds_long == pytest.approx(2.4)
    assert span.rate(6) == pytest.approx(2.5)
    assert past.window.over(1, latest).outcomes == {("m", "ok"): 1}
    assert past.window.over(1, latest).errors == {}


def test_a_fresh_server_has_no_rate() -> None:
    past = Past()
    span = past.window.over(60)
    assert (span.seconds_long, span.rate(7), span.growth_bytes_per_s) == (0, 0, None)
    assert span.all_calls().mean is None
    assert span.all_calls().quantile(0.99) is None


def test_snapshots_that_come_late_do_not_make_the_window_longer() -> None:
    past = Past()
    for _ in range(100):
        past.at += 1.003
        past.window.add(past.snapshot())
    assert past.window.over(60).seconds_long == pytest.approx(60, abs=0.55)


def test_what_is_older_than_the_longest_window_is_forgotten() -> None:
    past = Past()
    past.passes()
    past.answers(7)
    past.passes(MAX_WINDOW_S)
    assert past.window.over(MAX_WINDOW_S).outcomes == {("m", "ok"): 7}
    past.passes()
    assert past.window.over(MAX_WINDOW_S).outcomes == {}
    assert past.window.over(10 * MAX_WINDOW_S).seconds_long == MAX_WINDOW_S


def test_memory_grows_by_so_much_a_second_and_the_worst_lag_counts() -> None:
    past = Past()
    past.passes(resident_bytes=None, lag_s=9.0)
    past.passes(resident_bytes=1000, lag_s=0.1)
    past.passes(resident_bytes=None, lag_s=0.7)
    past.passes(resident_bytes=4000, lag_s=0.2)
    span = past.window.over(3)
    assert span.growth_bytes_per_s == 1500
    assert span.max_lag_s == 0.7


def test_tokens_and_model_times_are_of_the_window() -> None:
    past = Past()
    past.metrics.tokens.inc(100)
    past.metrics.llm_seconds.observe(2)
    past.passes()
    past.metrics.tokens.inc(30)
    past.metrics.first_token_seconds.observe(0.2)
    past.metrics.closed.labels("client").inc()
    past.passes()
    span = past.window.over(1)
    assert (span.tokens, span.llm.count, span.first_token.count) == (30, 0, 1)
    assert span.closed == {"client": 1}


# Percentiles


def exact(values: list[float], q: float) -> float:
    """By nearest rank."""
    return sorted(values)[math.ceil(q * len(values)) - 1]


def bucket(value: float) -> int:
    return bisect.bisect_left(SECONDS, value)


@given(
    values=st.lists(st.floats(0.00001, 400), min_size=1, max_size=200),
    q=st.sampled_from([0.5, 0.9, 0.95, 0.99, 1.0]),
)
def test_a_percentile_lies_in_the_bucket_of_the_exact_one(values: list[float], q: float) -> None:
    durations = Distribution()
    for value in values:
        durations.observe(value)
    estimate, truth = quantile(durations.buckets, q), exact(values, q)
    assert estimate is not None
    if truth > SECONDS[-1]:
        assert estimate == SECONDS[-1]
    else:
        # The upper bound of a bucket belongs to it.
        assert bucket(estimate) == bucket(truth)


def test_within_a_bucket_values_are_taken_as_evenly_spread() -> None:
    durations = Distribution()
    rng = random.Random(3)
    values = [rng.uniform(0.25, 0.5) for _ in range(5000)]
    for value in values:
        durations.observe(value)
    for q in (0.1, 0.5, 0.95):
        assert quantile(durations.buckets, q) == pytest.approx(exact(values, q), rel=0.02)


def test_counts_are_added_and_taken_away_bucket_by_bucket() -> None:
    early, late = Distribution(), Distribution()
    for seconds in (0.001, 0.3):
        early.observe(seconds)
        late.observe(seconds)
    late.observe(20)
    risen = Counted.of(late) - Counted.of(early)
    assert (risen.count, risen.mean) == (1, pytest.approx(20))
    assert (risen + Counted.of(early)).buckets == Counted.of(late).buckets
