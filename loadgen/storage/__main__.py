"""`python -m loadgen.storage`: the database beside others, in one run, as ratios.

Every side has the same file, statements and rows, and its own copy of the file for each run. Sides take turns
within a round, so that a machine that slows down slows all of them; a ratio is the median of the rounds' own.
What each was told it had written is looked for in the file afterwards, and what each reads is checked.
"""

import os
import platform
import sqlite3
import tempfile
from collections.abc import Sequence
from pathlib import Path

import attrs
import click
import psutil

from loadgen.storage.job import CONVERSATIONS, Job, WrongResult
from loadgen.storage.table import Scenario, lines, measure, scenarios

IN_MEMORY = {"tmpfs", "ramfs"}


def filesystem(folder: Path) -> str:
    """The type of the file system that the folder is on; empty where the system does not say."""
    resolved = folder.resolve()
    mounts = [
        (len(Path(part.mountpoint).parts), part.fstype)
        for part in psutil.disk_partitions(all=True)
        if resolved.is_relative_to(part.mountpoint)
    ]
    return max(mounts, default=(0, ""))[1]


def _only(scenario: Scenario, names: Sequence[str]) -> Scenario:
    sides = tuple(side for side in scenario.sides if not names or side.name in names)
    return attrs.evolve(scenario, sides=sides)


@click.command(context_settings={"show_default": True})
@click.option("--rounds", type=click.IntRange(1), default=3, help="Times each side is measured.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=2.0, help="Length of one.")
@click.option("--turns", type=click.IntRange(CONVERSATIONS * 20), default=100_000, help="Rows there already.")
@click.option("--only", default="", help="Scenarios whose names hold this.")
@click.option("--side", "names", multiple=True, help="Only these.")
@click.option(
    "--folder",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    default=Path(),
    help="Where the files are made: on the disk that is measured.",
)
def main(rounds: int, seconds: float, turns: int, only: str, names: Sequence[str], folder: Path) -> None:
    """Measure our database and others, and compare."""
    known = {side.name for scenario in scenarios() for side in scenario.sides}
    if unknown := set(names) - known:
        raise click.UsageError(
            f"no such side: {', '.join(sorted(unknown))}; there are {', '.join(sorted(known))}"
        )
    kind = filesystem(folder)
    click.echo(
        f"Python {platform.python_version()}, SQLite {sqlite3.sqlite_version}, {os.cpu_count()} cores, "
        f"{kind or 'unknown file system'}, {turns:,} turns, {rounds} rounds of {seconds:g} s\n"
    )
    if kind in IN_MEMORY:
        click.echo("warning: this folder is in memory, where a commit waits for no disk; see --folder\n")
    with tempfile.TemporaryDirectory(dir=folder, prefix="bench-storage-") as made:
        job = Job.prepare(Path(made) / "template.db", turns)
        for scenario in scenarios():
            chosen = _only(scenario, names)
            if only not in scenario.name or not chosen.sides:
                continue
            try:
                figures = measure(chosen, job, path=Path(made) / "run.db", rounds=rounds, seconds=seconds)
            except (WrongResult, RuntimeError) as exc:
                raise click.ClickException(f"{scenario.name}: {exc}") from None
            for line in lines(chosen, figures):
                click.echo(line)


if __name__ == "__main__":
    main(prog_name="python -m loadgen.storage")
