"""Tables of measurements: servers side by side, ratios, marks; as text, JSON and Markdown.

A new table is one line in `TABLES`: a name, and the function that measures it.
"""

import importlib
import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import orjson

from loadgen.results import machine

TABLES = {
    "transport": "loadgen.bench:measure",
    "storage": "loadgen.storage.table:measure",
    "chat": "loadgen.chatbench:measure",
    "scale": "loadgen.scale:measure",
    "guide": "loadgen.guide:measure",
}
"""Each is a function from a `BenchPlan` to the rows."""

MAX_COLUMNS = 6
"""With more servers than that, a row is a table of its own, with the servers below each other."""


class TableError(Exception):
    """A table cannot be measured, read or written. The message is for people."""


class NoSuchRow(TableError):
    """A table has no row of the kind that was asked for; others may."""


@attrs.frozen(kw_only=True)
class BenchPlan:
    """How thoroughly. `only` are words of the rows' names; `servers` leaves out others, and their ratios;
    files that are measured are made in `folder`."""

    rounds: int = 3
    seconds: float = 2.0
    only: str = ""
    servers: tuple[str, ...] = ()
    folder: Path = Path()


@attrs.frozen
class Mark:
    """What a ratio of two columns should be at least, where there is such a bound. Above 1 is in favour of
    `ours`."""

    ours: str
    other: str
    at_least: float | None = None

    @property
    def name(self) -> str:
        """As tables and baselines have it."""
        return f"{self.ours} / {self.other}"


@attrs.frozen(kw_only=True)
class Row:
    """One line: a figure of several servers, a value for each round. `bounds` are figures to compare with
    that nobody measured."""

    name: str
    unit: str
    rounds: Mapping[str, Sequence[float]]
    more_is_better: bool = False
    in_steps: bool = False
    """Nothing lies between two of its values: of an even number of rounds the lower middle one counts."""
    marks: tuple[Mark, ...] = ()
    bounds: Mapping[str, float] = attrs.field(factory=dict)
    extra: Mapping[str, Mapping[str, float]] = attrs.field(factory=dict)
    """Other figures by server, to be shown in the terminal."""
    note: str = ""

    @property
    def title(self) -> str:
        """What tells it from the table's others."""
        return f"{self.name}, {self.unit}"

    def value(self, server: str) -> float:
        """The median of its rounds."""
        if server in self.bounds:
            return self.bounds[server]
        middle = statistics.median_low if self.in_steps else statistics.median
        return middle(self.rounds[server])

    def ratio(self, mark: Mark) -> float:
        """Of the medians; above 1 in favour of `mark.ours`."""
        return self._in_favour(self.value(mark.ours), self.value(mark.other))

    def is_missed(self, mark: Mark) -> bool:
        """Whether the ratio is below its mark."""
        return mark.at_least is not None and self.ratio(mark) < mark.at_least

    def ratios(self, mark: Mark) -> list[float]:
        """Each round's own."""
        ours = self.rounds[mark.ours]
        others = self.rounds.get(mark.other) or [self.value(mark.other)] * len(ours)
        return [self._in_favour(a, b) for a, b in zip(ours, others, strict=True)]

    def _in_favour(self, ours: float, other: float) -> float:
        above, below = (ours, other) if self.more_is_better else (other, ours)
        return above / below if below else math.inf


@attrs.frozen(kw_only=True)
class Table:
    """What was measured, when, where and by which command."""

    name: str
    rows: tuple[Row, ...]
    command: str
    date: str = attrs.field(factory=lambda: datetime.now(UTC).date().isoformat())
    machine: Mapping[str, Any] = attrs.field(factory=machine)

    def as_json(self) -> bytes:
        """Everything, every round."""
        rows = [
            {
                **attrs.asdict(row),
                "values": {server: row.value(server) for server in row.rounds},
                "ratios": {mark.name: row.ratio(mark) for mark in row.marks},
            }
            for row in self.rows
        ]
        return orjson.dumps({**attrs.asdict(self), "rows": rows}, option=orjson.OPT_INDENT_2)


def measure(name: str, plan: BenchPlan, command: str) -> Table:
    """Measure a table of `TABLES`. Raises `TableError`: `NoSuchRow` where the plan leaves nothing of it."""
    module, _, function = TABLES[name].partition(":")
    rows: Callable[[BenchPlan], Iterator[Row]] = getattr(importlib.import_module(module), function)
    table = Table(name=name, rows=tuple(rows(plan)), command=command)
    if not table.rows:
        wanted = [f"holds {plan.only!r}"] if plan.only else []
        wanted += [f"is of {', '.join(plan.servers)}"] if plan.servers else []
        raise NoSuchRow(f"no row of {name} {' and '.join(wanted)}")
    return table


def text_lines(row: Row) -> Iterator[str]:
    """A row, for the terminal."""
    yield f"## {row.title}"
    for server in row.rounds:
        others = "".join(f"{value:12.1f} {key}" for key, value in row.extra.get(server, {}).items())
        yield f"  {server:20}{row.value(server):12.1f} {row.unit}{others}"
    for mark in row.marks:
        verdict = "MISSED" if row.is_missed(mark) else "ok"
        wanted = "" if mark.at_least is None else f" (mark {mark.at_least:.2f}) {verdict}"
        yield f"  {mark.name}: {row.ratio(mark):.2f}{wanted}"
    if row.note:
        yield f"  {row.note}"


def markdown(table: Table) -> str:
    """For the documentation."""
    where = table.machine
    head = (
        f"`{table.command}` on {table.date}: {where['cpu']}, {where['cores']} cores, {where['system']}, "
        f"Python {where['python']}. Medians of the rounds; a ratio above 1 is in our favour."
    )
    servers = list(dict.fromkeys(server for row in table.rows for server in row.rounds))
    body = _side_by_side(table, servers) if len(servers) <= MAX_COLUMNS else _row_by_row(table)
    notes = dict.fromkeys(f"* {row.name}: {row.note}" for row in table.rows if row.note)
    return "\n".join([head, "", *body, *(["", *notes] if notes else [])])


def _side_by_side(table: Table, servers: Sequence[str]) -> Iterator[str]:
    yield f"| | {' | '.join(servers)} | ratio, and mark |"
    yield f"|---|{'---|' * len(servers)}---|"
    for row in table.rows:
        cells = [_number(row.value(server)) if server in row.rounds else "" for server in servers]
        ratios = "; ".join(f"{mark.name}: {_ratio(row, mark)}" for mark in row.marks)
        yield f"| {row.title} | {' | '.join(cells)} | {ratios} |"


def _row_by_row(table: Table) -> Iterator[str]:
    """Rows of one name are of the same runs, so they share a table; each has its marks there."""
    by_name: dict[str, list[Row]] = {}
    for row in table.rows:
        by_name.setdefault(row.name, []).append(row)
    for n, (name, rows) in enumerate(by_name.items()):
        first = rows[0]
        others = list(dict.fromkeys(key for figures in first.extra.values() for key in figures))
        if n:
            yield ""
        yield f"| {name} | {' | '.join([first.unit, *others])} | ratio (worst to best round), and mark |"
        yield f"|---|{'---|' * (1 + len(others))}---|"
        for server in first.rounds:
            figures = [first.value(server), *(first.extra[server][key] for key in others)]
            ratios = "; ".join(
                f"{label}{_ratio(row, mark, with_extremes=True)}"
                for row in rows
                for mark in row.marks
                if (label := _label(first, row, mark, server)) is not None
            )
            yield f"| {server} | {' | '.join(_number(figure) for figure in figures)} | {ratios} |"


def _label(first: Row, row: Row, mark: Mark, server: str) -> str | None:
    """What a ratio is called in the line of this server; `None` where it belongs to another line."""
    if server != (mark.other if mark.other in row.rounds else mark.ours):
        return None
    figure = "" if row is first else f"{row.unit}: "
    # Most ratios are of the first server to the one of the line.
    ours = "" if mark.ours == next(iter(row.rounds)) else f"of {mark.ours}: "
    other = "" if mark.other in row.rounds else f"to {mark.other}: "
    return figure + ours + other


def _ratio(row: Row, mark: Mark, *, with_extremes: bool = False) -> str:
    text = f"{row.ratio(mark):.2f}"
    if with_extremes:
        ratios = row.ratios(mark)
        text += f" ({min(ratios):.2f} to {max(ratios):.2f})"
    if mark.at_least is not None:
        missed = ": **missed**" if row.is_missed(mark) else ""
        text += f"; {mark.at_least:.3g}{missed}" if with_extremes else f" ({mark.at_least:.3g}{missed})"
    return text


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def docs_around(name: str, file: Path) -> tuple[str, str]:
    """What stands before and after a table's place in a Markdown file, with its markers. Raises `TableError`
    where there are none."""
    begin, end = f"<!-- {name}: begin -->", f"<!-- {name}: end -->"
    before, found, rest = file.read_text(encoding="utf-8").partition(begin)
    _, closed, after = rest.partition(end)
    if not found or not closed:
        raise TableError(f"{file} has no markers `{begin}` and `{end}`")
    return before + begin, end + after


def write_docs(table: Table, file: Path) -> None:
    """Put the table between its markers in a Markdown file. Raises `TableError` where there are none."""
    before, after = docs_around(table.name, file)
    file.write_text(f"{before}\n{markdown(table)}\n{after}", encoding="utf-8")
