"""The token bucket."""

import pytest

from persona.transport.ratelimit import TokenBucket


def test_a_burst_then_the_rate() -> None:
    bucket = TokenBucket(per_minute=60, burst=3, now=0.0)
    assert [bucket.take(0.0) for _ in range(3)] == [0.0] * 3
    assert bucket.take(0.0) == pytest.approx(1.0)
    assert bucket.take(0.4) == pytest.approx(0.6)
    assert bucket.take(1.0) == 0.0
    assert bucket.take(1.0) > 0


def test_waiting_as_told_is_enough() -> None:
    bucket = TokenBucket(per_minute=100, burst=1, now=5.0)
    bucket.take(5.0)
    retry_after_s = bucket.take(5.0)
    assert bucket.take(5.0 + retry_after_s + 1e-9) == 0.0


def test_it_never_holds_more_than_the_burst() -> None:
    bucket = TokenBucket(per_minute=600, burst=2, now=0.0)
    assert [bucket.take(1000.0) > 0 for _ in range(3)] == [False, False, True]


def test_zero_lets_everything_through() -> None:
    bucket = TokenBucket(per_minute=0, burst=1, now=0.0)
    assert not any(bucket.take(0.0) for _ in range(1000))
