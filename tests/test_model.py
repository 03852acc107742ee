"""Values of the domain: time on the wire."""

from datetime import datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona.model import isoformat


@pytest.mark.parametrize(
    ("time_s", "text"),
    [
        (0, "1970-01-01T00:00:00.000Z"),
        (1769860800.0, "2026-01-31T12:00:00.000Z"),
        (1769860800.9999, "2026-01-31T12:00:00.999Z"),
        (951782400.0625, "2000-02-29T00:00:00.062Z"),
    ],
)
def test_times_are_utc_with_milliseconds(time_s: float, text: str) -> None:
    assert isoformat(time_s) == text


@given(st.floats(0, 4e9))
def test_a_time_reads_back_to_the_millisecond(time_s: float) -> None:
    # A time is rounded to a microsecond before what is below a millisecond is left out.
    assert -1e-6 < time_s - datetime.fromisoformat(isoformat(time_s)).timestamp() < 0.001 + 1e-6
