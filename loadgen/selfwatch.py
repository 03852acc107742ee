"""The generator watches itself: a load test that is late itself measures itself.

Two things are measured. *Lag*: how late a timer was served, and how long one turn of the loop kept the next
answer waiting; each of them may have gone into a latency. *Busy*: the share of time in which the loop
worked, and did not wait for the server.
"""

import time
from collections.abc import Iterator

from loadgen.latencies import Latencies

MAX_LAG_SHARE = 0.25
"""The generator's lag may be this share of the latency it measures, at the same percentile."""
UNHEARD_LAG_MS = 2.0
"""Lag below this is left alone: to wait on a socket is not more exact on a machine that does other things."""
MAX_BUSY_SHARE = 0.9


class SelfWatch:
    """`began` and `ended` go around what the loop does between two waits."""

    def __init__(self) -> None:
        self.lag = Latencies()
        self._busy_s = self._second_busy_s = 0.0
        self._worst_second_s = self._second_lag_s = 0.0
        self._began_at = 0.0
        self._cpu_at_start_s = time.process_time()
        self._started_at = time.perf_counter()

    def began(self, now: float) -> None:
        """The loop has something to do."""
        self._began_at = now

    def ended(self, now: float) -> None:
        """The loop is about to wait."""
        turn_s = now - self._began_at
        self._busy_s += turn_s
        self._second_busy_s += turn_s
        self.late_by(turn_s)

    def late_by(self, seconds: float) -> None:
        """Something was due so long ago."""
        self.lag.record(seconds)
        self._second_lag_s = max(self._second_lag_s, seconds)

    def end_second(self, length_s: float) -> tuple[float, float]:
        """Busy share and longest lag, in ms, of the second that ends now."""
        busy = min(1.0, self._second_busy_s / length_s) if length_s else 0.0
        lag_ms = round(self._second_lag_s * 1000, 3)
        self._worst_second_s = max(self._worst_second_s, busy)
        self._second_busy_s = self._second_lag_s = 0.0
        return round(busy, 4), lag_ms

    def figures(self) -> dict[str, float]:
        """Of the whole run: `busy`, `busiest_second` and `cpu` are shares of one core."""
        length_s = time.perf_counter() - self._started_at
        lag = self.lag.figures()
        return {
            "busy": min(1.0, self._busy_s / length_s),
            "busiest_second": self._worst_second_s,
            "cpu": (time.process_time() - self._cpu_at_start_s) / length_s,
            **{f"lag_{name}": lag[name] for name in ("p50_ms", "p99_ms", "max_ms") if name in lag},
        }


def what_is_spoiled(generator: dict[str, float], response: dict[str, float]) -> Iterator[str]:
    """Why the figures say something about the generator, a line for each reason; nothing where they do not.

    `generator` is of `SelfWatch.figures`, `response` of `Latencies.figures`.
    """
    if generator["busy"] > MAX_BUSY_SHARE:
        yield (
            f"the load generator worked {generator['busy']:.0%} of the time, so rates and latencies are "
            "bounded by it; use --workers"
        )
    lag_ms = generator.get("lag_p99_ms", 0.0)
    if response and lag_ms > max(UNHEARD_LAG_MS, MAX_LAG_SHARE * response["p99_ms"]):
        yield (
            f"the load generator itself was late by {lag_ms:.1f} ms at the 99th percentile, where answers "
            f"took {response['p99_ms']:.1f} ms: the latencies are partly its own"
        )
