"""Whether something grows: what a soak is for."""

from collections.abc import Sequence


def slope(points: Sequence[tuple[float, float]]) -> float:
    """Of the line with the least squared distance to the points (x, y); 0 where all share one x.

    Ordinary least squares: the sum of (x - mean x)(y - mean y) over the sum of (x - mean x) squared.
    """
    mean_x = sum(x for x, _ in points) / len(points)
    mean_y = sum(y for _, y in points) / len(points)
    spread = sum((x - mean_x) ** 2 for x, _ in points)
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / spread if spread else 0.0
