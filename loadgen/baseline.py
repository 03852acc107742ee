"""The ratios of an earlier measurement, to hold the next one against.

The file has a part for each table: what it was measured on, when and in how many rounds, and each round's
ratios, by row and mark.
"""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import orjson

from loadgen.tables import Table, TableError

TIMES = ("us", "ms", "percent")
"""How the unit of a time ends, or of a share of it."""
NOISE_FLOOR = 0.15
"""A ratio may be off by this share of the stored one, however alike the rounds were."""

Ratios = Mapping[str, Mapping[str, Sequence[float]]]
"""Of a table's rounds, by row and mark."""


@attrs.frozen(kw_only=True)
class Sitting:
    """One measurement of a table, or of a part of it."""

    cpu: str
    date: str
    rounds: int


@attrs.frozen(kw_only=True)
class Baseline:
    """What is stored of one table."""

    measured: tuple[Sitting, ...] = ()
    """All that its ratios are of."""
    ratios: Ratios = attrs.field(factory=dict)


@attrs.frozen
class Check:
    """What came of holding a table against a baseline."""

    worse: tuple[str, ...]
    """A line for each ratio that fell beyond the noise."""
    checked: int
    not_stored: int
    """Ratios that the baseline could have, and has not."""
    other_cpus: tuple[str, ...]
    """What it was measured on and is not what this is: such have ratios of their own."""


def ratios_of(table: Table) -> Ratios:
    """Each round's ratios: what is stored. Neither times nor ratios to a time that nobody measured: those are
    the machine's. Nor ratios to nothing, which JSON has no number for."""
    kept = [
        (
            row,
            [
                mark
                for mark in row.marks
                if (mark.other in row.rounds or not row.unit.endswith(TIMES))
                and all(map(math.isfinite, row.ratios(mark)))
            ],
        )
        for row in table.rows
    ]
    return {
        row.title: {mark.name: [round(ratio, 4) for ratio in row.ratios(mark)] for mark in marks}
        for row, marks in kept
        if marks
    }


def check(table: Table, baseline: Baseline) -> Check:
    """Hold the medians of a table's ratios against the stored ones. The noise is that of the stored rounds,
    and never less than a floor: a measurement that is all over the place must not excuse itself."""
    worse: list[str] = []
    checked = not_stored = 0
    for title, marks in ratios_of(table).items():
        for name, ratios in marks.items():
            stored = baseline.ratios.get(title, {}).get(name)
            if stored is None:
                not_stored += 1
                continue
            checked += 1
            ratio, was = statistics.median(ratios), statistics.median(stored)
            noise = max(max(stored) - min(stored), NOISE_FLOOR * was)
            if ratio < was - noise:
                worse.append(f"{title}: {name} is {ratio:.2f} and was {was:.2f}, with a noise of {noise:.2f}")
    others = dict.fromkeys(each.cpu for each in baseline.measured if each.cpu != table.machine["cpu"])
    return Check(tuple(worse), checked, not_stored, tuple(others))


def read_baseline(file: Path) -> dict[str, Baseline]:
    """All tables' baselines, by name; empty where there is no file yet. Raises `TableError`."""
    if not file.exists():
        return {}
    try:
        found = orjson.loads(file.read_bytes())
    except orjson.JSONDecodeError:
        raise TableError(f"{file} is no JSON") from None
    if not isinstance(found, dict) or not all(_is_baseline(each) for each in found.values()):
        raise TableError(f"{file} is no baseline, or one of another version")
    return {
        name: Baseline(
            measured=tuple(Sitting(**sitting) for sitting in each["measured"]), ratios=each["ratios"]
        )
        for name, each in found.items()
    }


def _is_baseline(found: Any) -> bool:
    return (
        isinstance(found, dict)
        and found.keys() == {"measured", "ratios"}
        and isinstance(found["measured"], list)
        and all(_is_sitting(sitting) for sitting in found["measured"])
        and _are_ratios(found["ratios"])
    )


def _is_sitting(found: Any) -> bool:
    types = {"cpu": str, "date": str, "rounds": int}
    return (
        isinstance(found, dict)
        and found.keys() == types.keys()
        and all(isinstance(found[key], each) for key, each in types.items())
    )


def _are_ratios(found: Any) -> bool:
    """Numbers in lists, two names down."""
    return isinstance(found, dict) and all(
        isinstance(marks, dict)
        and all(
            isinstance(ratios, list) and ratios and all(isinstance(ratio, float | int) for ratio in ratios)
            for ratios in marks.values()
        )
        for marks in found.values()
    )


def save_baseline(table: Table, file: Path, *, beside: bool = False, is_part: bool = False) -> None:
    """Store a table's ratios beside those of other tables, and with `beside` also beside this one's earlier
    ones: rounds of one hour say nothing of how far a machine moves in a day. Where the table `is_part` of the
    whole, rows that it does not have stay as they are."""
    stored = read_baseline(file)
    earlier = stored.get(table.name, Baseline()) if beside or is_part else Baseline()
    new = ratios_of(table)
    rounds = max((len(each) for row in table.rows for each in row.rounds.values()), default=0)
    stored[table.name] = Baseline(
        measured=(*earlier.measured, Sitting(cpu=table.machine["cpu"], date=table.date, rounds=rounds)),
        ratios=_joined(earlier.ratios, new) if beside else {**earlier.ratios, **new},
    )
    whole = {name: attrs.asdict(each) for name, each in stored.items()}
    file.write_bytes(orjson.dumps(whole, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS) + b"\n")


def _joined(earlier: Ratios, later: Ratios) -> Ratios:
    return {
        title: {
            name: [*earlier.get(title, {}).get(name, ()), *later.get(title, {}).get(name, ())]
            for name in {**earlier.get(title, {}), **later.get(title, {})}
        }
        for title in {**earlier, **later}
    }
