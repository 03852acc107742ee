"""The generator about itself."""

from loadgen.selfwatch import SelfWatch, what_is_spoiled

FINE = {"busy": 0.3, "lag_p99_ms": 0.5}
RESPONSE = {"p99_ms": 10.0}


def test_a_generator_at_ease_spoils_nothing() -> None:
    assert list(what_is_spoiled(FINE, RESPONSE)) == []
    assert list(what_is_spoiled(FINE, {})) == []


def test_one_that_works_all_the_time_says_so() -> None:
    (line,) = what_is_spoiled({**FINE, "busy": 0.95}, RESPONSE)
    assert "95%" in line
    assert "--workers" in line


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
    watch.late_by(0.5)
    assert watch.end_second(1.0) == (0.25, 500.0)
    assert watch.end_second(1.0) == (0.0, 0.0)
    assert watch.figures()["busiest_second"] == 0.25
    assert watch.lag.figures()["max_ms"] == 500
