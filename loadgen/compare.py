"""Two runs side by side: what changed beyond the noise of their repeats.

The noise of a figure is the range of its repeats, of the side where it is wider, and never less than a floor.
One run alone has no range: then only what differs by half is called a change.
"""

import statistics
from collections.abc import Iterator, Sequence

import attrs

from loadgen.results import Document

NOISE_FLOOR = 0.05
UNKNOWN_NOISE = 0.5
MORE_IS_BETTER = ("rate", "answered", "clean_drain", "cancelled", "count")
SHOWN = (
    *("rate", "answered", "errors", "wrong"),
    *("response.", "first_token.", "broadcast.", "connect.", "handshake.", "stage", "server."),
)
"""What is compared, by how its name begins; the generator's own figures are not."""


@attrs.frozen
class Change:
    """One figure on both sides: medians, and how far apart repeats of the same are."""

    figure: str
    a: float
    b: float
    noise: float
    """As a share of `a`."""

    @property
    def share(self) -> float:
        """How much `b` is above `a`, as a share of `a`."""
        if self.a:
            return (self.b - self.a) / abs(self.a)
        return 0.0 if not self.b else float("inf")

    @property
    def verdict(self) -> str:
        """`better`, `worse`, or `same`, which is within the noise."""
        if abs(self.share) <= self.noise:
            return "same"
        better = (self.share > 0) == self.figure.endswith(MORE_IS_BETTER)
        return "better" if better else "worse"


def changes(a: Sequence[Document], b: Sequence[Document]) -> Iterator[Change]:
    """Of every figure that both have. Each side is one run or more."""
    names = [
        name
        for name in a[0]["figures"]
        if name.startswith(SHOWN) and all(name in each["figures"] for each in (*a, *b))
    ]
    for name in names:
        of_a, of_b = ([each["figures"][name] for each in side] for side in (a, b))
        yield Change(name, statistics.median(of_a), statistics.median(of_b), _noise(of_a, of_b))


def _noise(a: Sequence[float], b: Sequence[float]) -> float:
    ranges = [
        (max(side) - min(side)) / abs(statistics.median(side) or 1.0) for side in (a, b) if len(side) > 1
    ]
    if not ranges:
        return UNKNOWN_NOISE
    # Where one side has repeats, they speak for both.
    return max(NOISE_FLOOR, *ranges)


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
                f"{change.verdict:7}{change.figure:34}{change.a:14.3f} -> {change.b:14.3f}"
                f"  {change.share:+8.1%} (noise {change.noise:.1%})"
            )
    same = sum(change.verdict == "same" for change in found)
    yield f"{len(found) - same} of {len(found)} figures changed beyond the noise"
