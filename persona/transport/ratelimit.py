"""A token bucket: so many messages a minute, with a burst.

*Token* here is the bucket's, the algorithm's own name; nowhere else does it mean anything but the
model's.
"""


class TokenBucket:
    """Fills at `per_minute` / 60 a second up to `burst`. `per_minute` 0 lets everything through.

    Times are seconds on any steady clock.
    """

    __slots__ = ("_as_of", "_burst", "_level", "_per_second")

    def __init__(self, *, per_minute: float, burst: int, now: float) -> None:
        self._per_second = per_minute / 60
        self._burst = burst
        self._level = float(burst)
        self._as_of = now

    def take(self, now: float) -> float:
        """Take one; 0 when it was there, else the seconds until it will be (and nothing is taken)."""
        if self._per_second == 0:
            return 0.0
        self._level = min(self._burst, self._level + (now - self._as_of) * self._per_second)
        self._as_of = now
        if self._level >= 1:
            self._level -= 1
            return 0.0
        return (1 - self._level) / self._per_second
