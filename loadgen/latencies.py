"""Latencies in HdrHistograms: three significant digits from a microsecond to an hour, whatever their number.

Kept, added and stored without losing what percentiles need. The extra `loadgen` brings `hdrhistogram`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from hdrh.histogram import HdrHistogram

HIGHEST_US = 3_600_000_000
"""An hour; what took longer is counted as that, and its true length is kept as the maximum."""
DIGITS = 3
PERCENTILES = (50.0, 90.0, 95.0, 99.0, 99.9)


class Latencies:
    """How long things took. Only what succeeded belongs here: an error that came fast is no good figure."""

    def __init__(self) -> None:
        self._histogram = HdrHistogram(1, HIGHEST_US, DIGITS)
        self._max_us = 0

    def __len__(self) -> int:
        return int(self._histogram.get_total_count())

    def record(self, seconds: float, count: int = 1) -> None:
        """Count one, or so many of the same. Less than a microsecond counts as one."""
        us = max(1, round(seconds * 1e6))
        self._max_us = max(self._max_us, us)
        self._histogram.record_value(min(us, HIGHEST_US), count)

    def add(self, other: "Latencies") -> None:
        """Count all of another's, too."""
        if len(other):
            self._histogram.add(other._histogram)  # noqa: SLF001 - of the same class
        self._max_us = max(self._max_us, other._max_us)  # noqa: SLF001

    def percentile_s(self, percentile: float) -> float:
        """The value that `percentile` percent are not above, in seconds; 0 where there is none."""
        (us,) = self._histogram.get_percentile_to_value_dict([percentile]).values() or (0,)
        # The upper edge of a bucket may lie above what was ever measured.
        return float(min(us, self._max_us)) / 1e6

    def figures(self) -> dict[str, float]:
        """Count, percentiles and maximum, in milliseconds; empty where there is none."""
        if not len(self):
            return {}
        values = self._histogram.get_percentile_to_value_dict(list(PERCENTILES))
        percentiles = {f"p{p:g}_ms": min(values[p], self._max_us) / 1e3 for p in PERCENTILES}
        return {"count": float(len(self)), **percentiles, "max_ms": self._max_us / 1e3}

    def curve(self) -> Iterator[tuple[float, float]]:
        """Percentile and milliseconds, denser towards 100: half of what is left, again and again."""
        if len(self):
            for step in self._histogram.get_percentile_iterator(4):
                yield (
                    float(step.percentile_level_iterated_to),
                    min(step.value_iterated_to, self._max_us) / 1e3,
                )

    def stored(self) -> dict[str, Any]:
        """For JSON; `restored` reads it."""
        return {"histogram": self._histogram.encode().decode(), "max_us": self._max_us}

    @classmethod
    def restored(cls, stored: Mapping[str, Any]) -> "Latencies":
        """From what `stored` gave."""
        latencies = cls()
        latencies._histogram.decode_and_add(stored["histogram"])
        latencies._max_us = stored["max_us"]
        return latencies
