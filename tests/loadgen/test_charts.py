"""Axes, gaps and thinning."""

import re

import pytest

from loadgen.charts import MAX_POINTS, Line, chart, linear, nines, percentile_axis, thinned


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 7), (0, 0.003), (5, 1234), (0, 0)])
def test_ticks_are_round_and_not_too_many(low: float, high: float) -> None:
    axis = linear(low, high)
    assert 2 <= len(axis.ticks) <= 9
    assert all(axis.low <= at <= axis.high * (1 + 1e-9) for at, _ in axis.ticks)
    assert all(len(text) <= 6 for _, text in axis.ticks)


def test_the_percentile_axis_counts_nines() -> None:
    assert [round(nines(p), 6) for p in (0.0, 90.0, 99.0, 99.9)] == [0, 1, 2, 3]
    assert [text for _, text in percentile_axis().ticks] == ["0 %", "90 %", "99 %", "99.9 %", "99.99 %"]


def test_a_gap_breaks_the_line() -> None:
    drawn = chart("t", "ms", [Line("a", [(0, 1.0), (1, None), (2, 1.0), (3, 2.0)])], x=linear(0, 3))
    (path,) = re.findall(r'<path d="([^"]*)"', drawn)
    assert re.sub(r"[^ML]", "", path) == "MML"


def test_higher_is_further_up() -> None:
    drawn = chart("t", "ms", [Line("a", [(0, 1.0), (1, 2.0)])], x=linear(0, 1))
    (path,) = re.findall(r'<path d="([^"]*)"', drawn)
    first, second = (float(each.split()[1]) for each in re.split("[ML]", path)[1:])
    assert second < first


def test_nothing_to_draw_is_no_chart() -> None:
    assert chart("t", "ms", [Line("a", [(0, None)])], x=linear(0, 1)) == ""


def test_a_long_run_is_thinned_and_keeps_its_peaks() -> None:
    points = [(float(n), 1.0) for n in range(MAX_POINTS * 10)]
    points[7777] = (7777.0, 99.0)
    few = thinned(points)
    assert len(few) <= MAX_POINTS
    assert (7777.0, 99.0) in few
    assert thinned([]) == []
