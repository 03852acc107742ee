"""Charts as inline SVG: no script, no network, readable on paper."""

import html
import math
from collections.abc import Iterator, Sequence

import attrs

WIDTH, HEIGHT = 860, 260
LEFT, RIGHT, TOP, BOTTOM = 62, 14, 12, 30
COLOURS = ("var(--c1)", "var(--c2)", "var(--c3)", "var(--c4)")
MAX_POINTS = 1200
"""More than a page is wide. A soak of hours is thinned: each point is the worst of those it stands for."""

Point = tuple[float, float | None]


@attrs.frozen
class Line:
    """A name and points; `None` is a gap."""

    name: str
    points: Sequence[Point]


@attrs.frozen
class Axis:
    """Ticks: where, and what is written there."""

    low: float
    high: float
    ticks: tuple[tuple[float, str], ...]


def linear(low: float, high: float) -> Axis:
    """Ticks at round numbers, four to eight of them."""
    span = (high - low) or 1.0
    high = low + span
    step = 10 ** math.floor(math.log10(span / 4))
    step *= next(factor for factor in (1, 2, 5, 10) if span / (step * factor) <= 8)
    first = math.ceil(low / step)
    ticks = tuple((n * step, f"{n * step:g}") for n in range(first, math.floor(high / step + 1e-9) + 1))
    return Axis(low, high, ticks)


def chart(
    title: str, unit: str, lines: Sequence[Line], *, x: Axis, marks: Sequence[tuple[float, str]] = ()
) -> str:
    """A line chart with its legend. `marks` are vertical lines, where stages begin."""
    values = [y for line in lines for _, y in line.points if y is not None]
    if not values:
        return ""
    y = linear(min([0.0, *values]), max(values) * 1.05 or 1.0)
    body = "".join(
        [
            *_grid(x, y),
            *(_mark(x, at, text) for at, text in marks),
            *(_path(line, x, y, COLOURS[n % len(COLOURS)]) for n, line in enumerate(lines)),
        ]
    )
    legend = " ".join(
        f'<span><i style="background:{COLOURS[n % len(COLOURS)]}"></i>{html.escape(line.name)}</span>'
        for n, line in enumerate(lines)
    )
    return (
        f"<figure><figcaption>{html.escape(title)} <small>{html.escape(unit)}</small> {legend}</figcaption>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{html.escape(title)}">{body}</svg>'
        "</figure>"
    )


def percentile_axis() -> Axis:
    """By how many nines: what matters is at the far end, and a linear axis would hide it."""
    ticks = tuple((nines(p), f"{p:g} %") for p in (0.0, 90.0, 99.0, 99.9, 99.99))
    return Axis(0.0, nines(99.99), ticks)


def nines(percentile: float) -> float:
    """99 is 2, 99.9 is 3."""
    return -math.log10(max(1e-4, 100.0 - percentile) / 100.0)


def thinned(points: Sequence[Point]) -> list[Point]:
    """At most `MAX_POINTS`; of those that become one the highest stays."""
    size = math.ceil(len(points) / MAX_POINTS) or 1
    chunks = (points[start : start + size] for start in range(0, len(points), size))
    return [max(chunk, key=lambda point: -1.0 if point[1] is None else point[1]) for chunk in chunks]


def _across(axis: Axis, value: float) -> float:
    return LEFT + (value - axis.low) / (axis.high - axis.low) * (WIDTH - LEFT - RIGHT)


def _up(axis: Axis, value: float) -> float:
    return HEIGHT - BOTTOM - (value - axis.low) / (axis.high - axis.low) * (HEIGHT - TOP - BOTTOM)


def _grid(x: Axis, y: Axis) -> Iterator[str]:
    for value, text in y.ticks:
        at = _up(y, value)
        yield f'<line class="g" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{at:.1f}" y2="{at:.1f}"/>'
        yield f'<text x="{LEFT - 6}" y="{at + 4:.1f}" text-anchor="end">{text}</text>'
    for value, text in x.ticks:
        at = _across(x, value)
        yield f'<text x="{at:.1f}" y="{HEIGHT - 10}" text-anchor="middle">{text}</text>'


def _mark(x: Axis, at: float, text: str) -> str:
    where = _across(x, at)
    return (
        f'<line class="m" x1="{where:.1f}" x2="{where:.1f}" y1="{TOP}" y2="{HEIGHT - BOTTOM}"/>'
        f'<text class="m" x="{where + 3:.1f}" y="{TOP + 10}">{html.escape(text)}</text>'
    )


def _path(line: Line, x: Axis, y: Axis, colour: str) -> str:
    commands, pen = [], "M"
    for at, value in thinned(line.points):
        if value is None:
            pen = "M"
            continue
        commands.append(f"{pen}{_across(x, at):.1f} {_up(y, value):.1f}")
        pen = "L"
    return f'<path d="{"".join(commands)}" stroke="{colour}"><title>{html.escape(line.name)}</title></path>'
