"""Percentiles that are what was measured, to three digits."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.latencies import HIGHEST_US, Latencies


def of(*seconds: float) -> Latencies:
    latencies = Latencies()
    for each in seconds:
        latencies.record(each)
    return latencies


@given(
    st.lists(st.floats(min_value=1e-6, max_value=3000), min_size=1, max_size=50),
    st.sampled_from([50.0, 90.0, 99.0]),
)
def test_a_percentile_is_the_nearest_rank_to_three_digits(seconds: list[float], percentile: float) -> None:
    ordered = sorted(seconds)
    # HdrHistogram rounds the rank to the nearest, half up.
    rank = max(1, int(percentile * len(ordered) / 100 + 0.5))
    assert math.isclose(of(*seconds).percentile_s(percentile), ordered[rank - 1], rel_tol=2e-3, abs_tol=1e-6)


def test_the_maximum_is_exact_and_no_percentile_is_above_it() -> None:
    figures = of(0.1, 0.2, 1.234567).figures()
    assert figures["max_ms"] == 1234.567
    assert figures["p99.9_ms"] == 1234.567
    assert figures["count"] == 3


def test_nothing_measured_gives_no_figures() -> None:
    assert Latencies().figures() == {}
    assert list(Latencies().curve()) == []
    assert Latencies().percentile_s(99) == 0


def test_more_than_an_hour_is_counted_and_its_length_kept() -> None:
    latencies = of(7200.0)
    assert len(latencies) == 1
    assert latencies.figures()["max_ms"] == 7_200_000
    assert latencies.figures()["p50_ms"] == pytest.approx(HIGHEST_US / 1e3, rel=2e-3)


def test_less_than_a_microsecond_counts_as_one() -> None:
    assert of(0.0).figures()["p50_ms"] == 0.001


@given(st.lists(st.floats(min_value=1e-6, max_value=7200), max_size=30), st.integers(0, 30))
def test_what_is_stored_in_parts_and_added_is_the_whole(seconds: list[float], cut: int) -> None:
    whole = Latencies()
    for part in (seconds[:cut], seconds[cut:]):
        whole.add(Latencies.restored(of(*part).stored()))
    assert whole.figures() == of(*seconds).figures()


def test_the_curve_rises_to_the_maximum() -> None:
    curve = list(of(*(n / 1000 for n in range(1, 1001))).curve())
    assert curve == sorted(curve)
    assert curve[-1] == (100.0, 1000.0)
    assert any(99 < percentile < 100 for percentile, _ in curve)
