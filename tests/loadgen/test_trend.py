"""The slope of what is sampled."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadgen.trend import slope


@given(st.floats(-100, 100), st.floats(-100, 100), st.integers(2, 20))
def test_a_line_has_its_slope(per_second: float, start: float, count: int) -> None:
    points = [(float(n), start + n * per_second) for n in range(count)]
    assert slope(points) == pytest.approx(per_second, abs=1e-6)


def test_noise_around_a_level_is_no_growth() -> None:
    assert slope([(0, 1), (1, 3), (2, 3), (3, 1)]) == 0


def test_one_moment_has_no_slope() -> None:
    assert slope([(5, 1), (5, 2)]) == 0
