"""Figures over the last seconds, from counts that only ever rise.

Once a second the counts are copied; what happened in a window is the newest copy less the one from before
the window. So a message costs nothing more for it, and every count is exact. A percentile is read from the
buckets of a histogram: the bucket is right, and the place within it is taken as if the bucket's values were
spread evenly, as Prometheus' `histogram_quantile` does. Its error is less than the width of that bucket
(`metrics.SECONDS`); beyond the last bound only that bound is known.
"""

from collections import deque
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import TypeVar

import attrs

from persona.metrics import SECONDS, Distribution, Metrics, counts, reading

K = TypeVar("K")

MAX_WINDOW_S = 300
"""The longest window. Five minutes of copies take about a megabyte; longer histories are Prometheus' job."""


@attrs.frozen
class Counted:
    """A histogram as it stood: how many in each bucket, and the seconds of all together."""

    buckets: tuple[int, ...] = (0,) * (len(SECONDS) + 1)
    total_s: float = 0.0

    @classmethod
    def of(cls, durations: Distribution) -> "Counted":
        """A copy."""
        return cls(tuple(durations.buckets), durations.total)

    @property
    def count(self) -> int:
        """How many in all."""
        return sum(self.buckets)

    def __sub__(self, earlier: "Counted") -> "Counted":
        buckets = tuple(now - then for now, then in zip(self.buckets, earlier.buckets, strict=True))
        return Counted(buckets, self.total_s - earlier.total_s)

    def __add__(self, other: "Counted") -> "Counted":
        buckets = tuple(one + two for one, two in zip(self.buckets, other.buckets, strict=True))
        return Counted(buckets, self.total_s + other.total_s)

    @property
    def mean(self) -> float | None:
        """In seconds; `None` where there is nothing."""
        count = self.count
        return self.total_s / count if count else None

    def quantile(self, q: float) -> float | None:
        """What a share `q` of them took at most, in seconds; `None` where there is nothing."""
        return quantile(self.buckets, q)


def quantile(buckets: Sequence[int], q: float) -> float | None:
    """See the module's text; 0 < `q` <= 1, and the last bucket has no upper bound."""
    rank = q * sum(buckets)
    if not rank:
        return None
    below = 0
    for (lower, upper), count in zip(pairwise((0.0, *SECONDS)), buckets, strict=False):
        if below + count >= rank:
            return lower + (upper - lower) * (rank - below) / count
        below += count
    return float(SECONDS[-1])


NOTHING = Counted()


@attrs.frozen(kw_only=True)
class Snapshot:
    """All counts as they stood `at` (trio's clock)."""

    at: float
    outcomes: Mapping[tuple[str, str], int]
    seconds: Mapping[str, Counted]
    errors: Mapping[str, int]
    closed: Mapping[str, int]
    tokens: float
    first_token: Counted
    llm: Counted
    resident_bytes: int | None = None
    lag_s: float = 0.0
    """The worst since the snapshot before."""

    @classmethod
    def of(
        cls, metrics: Metrics, *, at: float, resident_bytes: int | None = None, lag_s: float = 0.0
    ) -> "Snapshot":
        """Copy the counts of `metrics`."""
        seconds = metrics.messages.seconds().items()
        return cls(
            at=at,
            outcomes=metrics.messages.outcomes(),
            seconds={method: Counted.of(durations) for method, durations in seconds},
            errors=counts(metrics.errors),
            closed=counts(metrics.closed),
            tokens=reading(metrics.tokens),
            first_token=Counted.of(metrics.first_token_seconds.durations),
            llm=Counted.of(metrics.llm_seconds.durations),
            resident_bytes=resident_bytes,
            lag_s=lag_s,
        )


@attrs.frozen(kw_only=True)
class Span:
    """What happened between two snapshots. Only what there was anything of is listed."""

    seconds_long: float
    outcomes: dict[tuple[str, str], int]
    seconds: dict[str, Counted]
    errors: dict[str, int]
    closed: dict[str, int]
    tokens: float
    first_token: Counted
    llm: Counted
    growth_bytes_per_s: float | None
    max_lag_s: float

    def rate(self, count: float) -> float:
        """`count` a second."""
        return count / self.seconds_long if self.seconds_long else 0.0

    def all_calls(self) -> Counted:
        """The durations of all calls."""
        return sum(self.seconds.values(), NOTHING)


class Window:
    """The snapshots of the last `MAX_WINDOW_S`."""

    def __init__(self, first: Snapshot) -> None:
        # One more than there are seconds: a window of 300 s lies between 301 snapshots.
        self._snapshots: deque[Snapshot] = deque([first], maxlen=MAX_WINDOW_S + 1)

    @property
    def newest(self) -> Snapshot:
        """The last one added."""
        return self._snapshots[-1]

    def add(self, snapshot: Snapshot) -> None:
        """Add the next one; the oldest goes."""
        last = self._snapshots[-1]
        # A quiet server's snapshots share what did not change.
        if snapshot.outcomes == last.outcomes:
            snapshot = attrs.evolve(snapshot, outcomes=last.outcomes, seconds=last.seconds)
        self._snapshots.append(snapshot)

    def over(self, window_s: float, latest: Snapshot | None = None) -> Span:
        """The last `window_s` seconds up to `latest`, by default the newest snapshot; less where the server
        has not run for so long."""
        latest = latest or self._snapshots[-1]
        since = latest.at - window_s
        # Half a second of grace: snapshots come a little late, and a minute must not become 61 s.
        earlier = next((each for each in reversed(self._snapshots) if each.at <= since + 0.5), None)
        earlier = earlier or self._snapshots[0]
        within = [each for each in self._snapshots if each.at > earlier.at]
        return Span(
            seconds_long=latest.at - earlier.at,
            outcomes=_risen(latest.outcomes, earlier.outcomes),
            seconds={
                method: counted - earlier.seconds.get(method, NOTHING)
                for method, counted in latest.seconds.items()
                if counted != earlier.seconds.get(method, NOTHING)
            },
            errors=_risen(latest.errors, earlier.errors),
            closed=_risen(latest.closed, earlier.closed),
            tokens=latest.tokens - earlier.tokens,
            first_token=latest.first_token - earlier.first_token,
            llm=latest.llm - earlier.llm,
            growth_bytes_per_s=_growth([earlier, *within]),
            max_lag_s=max((each.lag_s for each in within), default=0.0),
        )


def _risen(latest: Mapping[K, int], earlier: Mapping[K, int]) -> dict[K, int]:
    return {key: count - earlier.get(key, 0) for key, count in latest.items() if count != earlier.get(key, 0)}


def _growth(snapshots: list[Snapshot]) -> float | None:
    known = [(each.at, each.resident_bytes) for each in snapshots if each.resident_bytes is not None]
    if len(known) < 2:
        return None
    (first_at, first_bytes), (last_at, last_bytes) = known[0], known[-1]
    return (last_bytes - first_bytes) / (last_at - first_at) if last_at > first_at else None
