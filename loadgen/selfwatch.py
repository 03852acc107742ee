"""The generator watches itself: a load test that is late itself measures itself.

Two things are measured. *Lag*: how late a timer was served, and how long one turn of the loop kept the next
answer waiting. With each latency goes the longest of them while it ran: an idle loop that is on time a
thousand times says nothing of the ten answers that waited for it. *Busy*: the share of time in which the
loop worked, and did not wait for the server.
"""

import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator

from loadgen.latencies import Latencies

MAX_LAG_SHARE = 0.25
"""The generator's lag may be this share of the latency it measures, at the same percentile."""
UNHEARD_LAG_MS = 2.0
"""Lag below this is left alone: to wait on a socket is not more exact on a machine that does other things."""
MAX_BUSY_SHARE = 0.9
NOTED_LAG_S = 0.0005
"""Less is taken for none."""
MAX_NOTED = 1000
"""Times the loop was late that are kept, each longer than those after it. A longer one takes the place of all
that were before it, so there are a handful; at the bound the last one gives way."""
LAG_STEPS = 10_000
"""In a second: lag is counted to a tenth of a millisecond."""


class SelfWatch:
    """`began` and `ended` go around what the loop does between two waits."""

    def __init__(self) -> None:
        self._late: list[tuple[float, float]] = []
        """Until when and how long: later ones are shorter."""
        self._lags: Counter[int] = Counter()
        self._max_lag_s = 0.0
        self._began_at = 0.0
        self.start(time.perf_counter())

    def start(self, now: float) -> None:
        """The run begins; what was until then is forgotten, but for lag that an answer may have met."""
        self._busy_s = self._second_busy_s = self._second_lag_s = 0.0
        self._seconds = self._busy_seconds = 0
        self._busiest_second = 0.0
        self._cpu_at_start_s = time.process_time()
        self._started_at = now

    def began(self, now: float) -> None:
        """The loop has something to do."""
        self._began_at = now

    def ended(self, now: float) -> None:
        """The loop is about to wait."""
        turn_s = now - self._began_at
        self._busy_s += turn_s
        self._second_busy_s += turn_s
        self.late_by(turn_s, now)

    def late_by(self, seconds: float, now: float) -> None:
        """What is done now was due so long ago."""
        if seconds < NOTED_LAG_S:
            return
        self._max_lag_s = max(self._max_lag_s, seconds)
        self._second_lag_s = max(self._second_lag_s, seconds)
        while self._late and self._late[-1][1] <= seconds:
            self._late.pop()
        if len(self._late) == MAX_NOTED:
            self._late.pop()
        self._late.append((now, seconds))

    def measured(self, since: float) -> None:
        """A latency that counts from `since` ends now: the longest lag of that time goes with it."""
        late = self._late
        if not late or late[-1][0] < since:
            self._lags[0] += 1
        else:
            _, seconds = late[bisect_left(late, (since,))]
            self._lags[round(seconds * LAG_STEPS)] += 1

    @property
    def lag(self) -> Latencies:
        """One for each latency that was measured."""
        whole = Latencies()
        for steps, count in self._lags.items():
            whole.record(steps / LAG_STEPS, count)
        return whole

    def end_second(self, length_s: float) -> tuple[float, float]:
        """Busy share and longest lag, in ms, of the second that ends now."""
        busy = min(1.0, self._second_busy_s / length_s) if length_s else 0.0
        lag_ms = round(self._second_lag_s * 1000, 3)
        self._seconds += 1
        self._busy_seconds += busy > MAX_BUSY_SHARE
        self._busiest_second = max(self._busiest_second, busy)
        self._second_busy_s = self._second_lag_s = 0.0
        return round(busy, 4), lag_ms

    def figures(self) -> dict[str, float]:
        """Of the whole run: `busy`, `busiest_second` and `cpu` are shares of one core; `busy_seconds` are
        those of `seconds` in which it did next to nothing but work."""
        length_s = time.perf_counter() - self._started_at
        lag = self.lag.figures()
        return {
            "busy": min(1.0, self._busy_s / length_s),
            "busiest_second": self._busiest_second,
            "busy_seconds": self._busy_seconds,
            "seconds": self._seconds,
            "cpu": (time.process_time() - self._cpu_at_start_s) / length_s,
            **{f"lag_{name}": lag[name] for name in ("p50_ms", "p99_ms") if name in lag},
            "lag_max_ms": self._max_lag_s * 1000,
        }


def what_is_spoiled(generator: dict[str, float], response: dict[str, float]) -> Iterator[str]:
    """Why the figures say something about the generator, a line for each reason; nothing where they do not.

    `generator` is of `SelfWatch.figures`, `response` of `Latencies.figures`.
    """
    # By the second: a stage that was too much for it is lost in the average of the others.
    if generator["busy_seconds"]:
        yield (
            f"the load generator worked more than {MAX_BUSY_SHARE:.0%} of the time in "
            f"{generator['busy_seconds']:.0f} of {generator['seconds']:.0f} seconds, so what is measured "
            "in them is bounded by it; use --workers"
        )
    lag_ms = generator.get("lag_p99_ms", 0.0)
    if response and lag_ms > max(UNHEARD_LAG_MS, MAX_LAG_SHARE * response["p99_ms"]):
        yield (
            f"the load generator itself was late by {lag_ms:.1f} ms at the 99th percentile, where answers "
            f"took {response['p99_ms']:.1f} ms: the latencies are partly its own"
        )
