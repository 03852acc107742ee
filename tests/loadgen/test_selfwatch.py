"""The generator about itself."""

import pytest

from loadgen.selfwatch import MAX_NOTED, NOTED_LAG_S, SelfWatch, what_is_spoiled

FINE = {"busy_seconds": 0, "seconds": 20, "lag_p99_ms": 0.5}
RESPONSE = {"p99_ms": 10.0}


def test_a_generator_at_ease_spoils_nothing() -> None:
    assert list(what_is_spoiled(FINE, RESPONSE)) == []
    assert list(what_is_spoiled(FINE, {})) == []


def test_seconds_of_nothing_but_work_say_so_however_idle_the_others_were() -> None:
    watch = SelfWatch()
    for n in range(20):
        watch.began(float(n))
        watch.ended(n + (0.95 if 12 <= n < 15 else 0.01))
        watch.end_second(1.0)
    (line,) = what_is_spoiled(watch.figures(), {})
    assert "more than 90% of the time in 3 of 20 seconds" in line
    assert "--workers" in line


def test_what_it_took_to_connect_is_no_part_of_the_first_second() -> None:
    watch = SelfWatch()
    watch.began(10.0)
    watch.ended(15.0)
    watch.start(20.0)
    watch.began(20.0)
    watch.ended(20.25)
    assert watch.end_second(1.0) == (0.25, 250.0)


def test_one_that_is_late_says_so_where_it_shows_in_the_figures() -> None:
    late = {**FINE, "lag_p99_ms": 5.0}
    (line,) = what_is_spoiled(late, RESPONSE)
    assert "late by 5.0 ms" in line
    # The same lag is nothing beside answers that took a second.
    assert list(what_is_spoiled(late, {"p99_ms": 1000.0})) == []


def test_busy_is_the_share_of_time_between_two_waits() -> None:
    watch = SelfWatch()
    watch.began(10.0)
    watch.ended(10.25)
    watch.late_by(0.5, 10.5)
    assert watch.end_second(1.0) == (0.25, 500.0)
    assert watch.end_second(1.0) == (0.0, 0.0)
    assert watch.figures()["busiest_second"] == 0.25
    assert watch.figures()["lag_max_ms"] == 500


def test_a_latency_takes_the_longest_lag_of_its_time_and_none_of_another() -> None:
    watch = SelfWatch()
    for until, seconds in ((1.0, 0.3), (2.0, 0.1), (3.0, 0.2), (4.0, 0.05), (4.5, NOTED_LAG_S / 2)):
        watch.late_by(seconds, until)
    for since in (0.5, 1.5, 2.5, 3.5, 4.2):
        watch.measured(since)
    lags = watch.lag
    assert len(lags) == 5
    assert [round(lags.percentile_s(p), 2) for p in (20, 40, 80, 100)] == [0.0, 0.05, 0.2, 0.3]


def test_many_turns_in_time_do_not_hide_that_answers_were_late() -> None:
    """One stall of 0.6 s in 20 s of 10 requests a second: in 3 of 100 latencies, in 1 of 1000 turns."""
    watch = SelfWatch()
    for n in range(1000):
        at = n / 50
        watch.began(at)
        stalled_s = 0.6 if n == 500 else 0.0001
        watch.ended(at + stalled_s)
        if n % 5 == 0:
            watch.measured(at - 0.02)
    for k in range(5):
        watch.measured(10.0 + k / 10)
    lag_ms = watch.figures()["lag_p99_ms"]
    assert lag_ms == pytest.approx(600, rel=0.01)
    assert len(list(what_is_spoiled({**FINE, "lag_p99_ms": lag_ms}, {"p99_ms": 330.0}))) == 1


def test_what_is_noted_is_bounded_and_the_last_one_gives_way() -> None:
    watch = SelfWatch()
    for n in range(MAX_NOTED * 2):
        watch.late_by(10.0 - n / 1000, float(n))
    watch.measured(0.0)
    watch.measured(float(MAX_NOTED * 2 - 1))
    lags = watch.lag
    assert lags.percentile_s(100) == pytest.approx(10.0, rel=0.01)
    assert lags.percentile_s(50) == pytest.approx(10.0 - (MAX_NOTED * 2 - 1) / 1000, rel=0.01)
