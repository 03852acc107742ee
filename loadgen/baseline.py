"""The ratios of an earlier measurement, to hold the next one against."""

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import attrs
import orjson

from loadgen.tables import Table, TableError

TIMES = ("us", "ms", "percent")
"""How the unit of a time ends, or of a share of it."""
NOISE_FLOOR = 0.15
"""A ratio may be off by this share of the stored one, however alike the rounds were."""

Baseline = Mapping[str, Mapping[str, Sequence[float]]]
"""The ratios of a table's rounds, by row and mark."""


def baseline_of(table: Table) -> Baseline:
    """Each round's ratios: what is stored. Neither times nor ratios to a time that nobody measured: those are
    the machine's."""
    kept = [
        (row, [mark for mark in row.marks if mark.other in row.rounds or not row.unit.endswith(TIMES)])
        for row in table.rows
    ]
    return {
        row.title: {mark.name: [round(ratio, 4) for ratio in row.ratios(mark)] for mark in marks}
        for row, marks in kept
        if marks
    }


@attrs.frozen
class Check:
    """What came of holding a table against a baseline."""

    worse: tuple[str, ...]
    """A line for each ratio that fell beyond the noise."""
    checked: int
    not_stored: int
    """Ratios that the baseline could have, and has not."""


def check(table: Table, baseline: Baseline) -> Check:
    """Hold the medians of a table's ratios against the stored ones. The noise is that of the stored rounds,
    and never less than a floor: a measurement that is all over the place must not excuse itself."""
    worse: list[str] = []
    checked = not_stored = 0
    for title, marks in baseline_of(table).items():
        for name, ratios in marks.items():
            stored = baseline.get(title, {}).get(name)
            if stored is None:
                not_stored += 1
                continue
            checked += 1
            ratio, was = statistics.median(ratios), statistics.median(stored)
            noise = max(max(stored) - min(stored), NOISE_FLOOR * was)
            if ratio < was - noise:
                worse.append(f"{title}: {name} is {ratio:.2f} and was {was:.2f}, with a noise of {noise:.2f}")
    return Check(tuple(worse), checked, not_stored)


def read_baseline(file: Path) -> dict[str, Baseline]:
    """All tables' baselines, by name; empty where there is no file yet. Raises `TableError`."""
    if not file.exists():
        return {}
    try:
        found = orjson.loads(file.read_bytes())
    except orjson.JSONDecodeError:
        raise TableError(f"{file} is no JSON") from None
    if not _is_baselines(found):
        raise TableError(f"{file} is no baseline, or one of another version")
    return cast(dict[str, Baseline], found)


def _is_baselines(found: object) -> bool:
    """Numbers in lists, three names down."""
    level = [found]
    for _ in range(3):
        if not all(isinstance(each, dict) for each in level):
            return False
        level = [inner for each in level for inner in cast(dict[str, object], each).values()]
    return all(
        isinstance(ratios, list) and ratios and all(isinstance(ratio, float | int) for ratio in ratios)
        for ratios in level
    )


def save_baseline(table: Table, file: Path, *, beside: bool = False, is_part: bool = False) -> None:
    """Store a table's ratios beside those of other tables, and with `beside` also beside this one's earlier
    ones: rounds of one hour say nothing of how far a machine moves in a day. Where the table `is_part` of the
    whole, rows that it does not have stay as they are."""
    stored = read_baseline(file)
    new = baseline_of(table)
    if beside:
        new = _joined(stored.get(table.name, {}), new)
    elif is_part:
        new = {**stored.get(table.name, {}), **new}
    whole = {**stored, table.name: new}
    file.write_bytes(orjson.dumps(whole, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n")


def _joined(earlier: Baseline, later: Baseline) -> Baseline:
    return {
        title: {
            name: [*earlier.get(title, {}).get(name, ()), *later.get(title, {}).get(name, ())]
            for name in {**earlier.get(title, {}), **later.get(title, {})}
        }
        for title in {**earlier, **later}
    }
