"""Two runs side by side: what changed beyond the noise of their repeats.

The noise of a figure is how far the repeats of either side are apart, both together, and never less than a
floor. One run alone has no range: then only what differs by half is called a change.
"""

import math
import re
import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import attrs

from loadgen.results import Document

NOISE_FLOOR = 0.05
UNKNOWN_NOISE = 0.5
GROWTH_FLOOR = 0.1
"""A slope is none that moves a figure by less than this share of its highest value in the whole run."""
SAMPLES_ABOVE = 10
"""A percentile is decided by those above it; by fewer, it is chance."""
HIDDEN = ("generator.",)
"""How names begin that are not compared."""
MORE_IS_BETTER = ("rate", "answered", "clean_drain", "count")
NEITHER = (
    *("connections_max", "connections_end", "connections_per_minute", "cancelled", "expected_errors"),
    *("all_errors", "connect.count", "handshake.count"),
)
"""How names end of which more is neither better nor worse: what was asked for, or provoked on purpose."""
CHANCE = ("ms_max", "max_ms", "ms_end", "cpu_end")
"""How names end of single samples, which say what happened once."""
PERCENTILE = re.compile(r"(?P<kind>.+)\.p(?P<percentile>[\d.]+)_ms")

Verdict = Literal["same", "better", "worse", "changed"]
"""`same` is within the noise; `changed` is beyond it, and nobody can say whether for the better."""


@attrs.frozen
class Change:
    """One figure on both sides: medians, and how far apart they may be by chance."""

    figure: str
    a: float
    b: float
    noise: float
    """In the figure's own unit."""
    decides: bool = True
    """Whether there were samples enough to call it better or worse."""

    @property
    def share(self) -> float:
        """How much `b` is above `a`, as a share of `a`."""
        if self.a:
            return (self.b - self.a) / abs(self.a)
        return math.copysign(math.inf, self.b) if self.b else 0.0

    @property
    def verdict(self) -> Verdict:
        """What there is to be said of it."""
        if abs(self.b - self.a) <= self.noise:
            return "same"
        if not self.decides or self.figure.endswith((*NEITHER, *CHANCE)):
            return "changed"
        return "better" if (self.b > self.a) == self.figure.endswith(MORE_IS_BETTER) else "worse"


def changes(a: Sequence[Document], b: Sequence[Document]) -> Iterator[Change]:
    """Of every figure that both have. Each side is one run or more."""
    names = [
        name
        for name in a[0]["figures"]
        if not name.startswith(HIDDEN) and all(name in each["figures"] for each in (*a, *b))
    ]
    for name in names:
        of_a, of_b = ([each["figures"][name] for each in side] for side in (a, b))
        yield Change(
            name,
            statistics.median(of_a),
            statistics.median(of_b),
            max(_noise(of_a, of_b), *(_least_growth(name, each) for each in (*a, *b))),
            all(_is_decided(name, each["figures"]) for each in (*a, *b)),
        )


def _noise(a: Sequence[float], b: Sequence[float]) -> float:
    middle_a, middle_b = abs(statistics.median(a)), abs(statistics.median(b))
    if len(a) == len(b) == 1:
        return UNKNOWN_NOISE * middle_a
    # Where one side has repeats, they speak for both. What is ten times as long is ten times as far apart,
    # and that must not excuse it.
    scale = min(1.0, middle_a / middle_b) if middle_a and middle_b else 1.0
    return max(NOISE_FLOOR * middle_a, max(a) - min(a) + (max(b) - min(b)) * scale)


def _least_growth(name: str, document: Document) -> float:
    """By the minute; 0 of what is no slope. Slopes lie around zero, so a share of them says nothing."""
    if not name.endswith("_per_minute"):
        return 0.0
    highest = document["figures"].get(name.removesuffix("_per_minute") + "_max", 0.0)
    return float(GROWTH_FLOOR * abs(highest) / (document["stages"][-1]["to_s"] / 60))


def _is_decided(name: str, figures: Mapping[str, float]) -> bool:
    found = PERCENTILE.fullmatch(name)
    if found is None:
        return True
    count = figures.get(f"{found['kind']}.count", math.inf)
    return count * (100 - float(found["percentile"])) / 100 >= SAMPLES_ABOVE


def warnings(a: Sequence[Document], b: Sequence[Document]) -> Iterator[str]:
    """Why the comparison may not be one."""
    if len(a) == len(b) == 1:
        yield (
            "one run each: their noise is not known, so only changes of more than "
            f"{UNKNOWN_NOISE:.0%} are named; use `run --repeat 3`"
        )
    for what, key in (("scenarios", "scenario"), ("servers", "server"), ("machines", "machine")):
        if len({str(each[key]) for each in (*a, *b)}) > 1:
            yield f"they are of different {what}"
    plans = [
        [(stage["connections"], stage["rate"], stage["to_s"]) for stage in each["stages"]]
        for each in (*a, *b)
    ]
    if any(plan != plans[0] for plan in plans):
        yield "they are of different size"
    if any(each["spoiled"] for each in (*a, *b)):
        yield "the load generator spoiled at least one of them"


def comparison_lines(a: Sequence[Document], b: Sequence[Document], *, everything: bool) -> Iterator[str]:
    """For people: what changed, or with `everything` also what did not."""
    yield from (f"note: {line}" for line in warnings(a, b))
    found = list(changes(a, b))
    for change in found:
        if everything or change.verdict != "same":
            yield (
                f"{change.verdict:8}{change.figure:34}{change.a:14.3f} -> {change.b:14.3f}"
                f"  {change.share:+8.1%} (noise {change.noise:.3f})"
            )
    same = sum(change.verdict == "same" for change in found)
    yield f"{len(found) - same} of {len(found)} figures changed beyond the noise"
