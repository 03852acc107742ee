"""The command line: `loadgen run`, `list`, `compare`, `bench`."""

import ipaddress
import os
import shlex
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, Literal
from urllib.parse import urlsplit

import click
import structlog

try:
    import hdrh  # noqa: F401 - looked for here, to say what is missing in one line
except ModuleNotFoundError as missing:  # pragma: no cover - needs an environment without it
    raise SystemExit("loadgen needs the package `hdrhistogram`: pip install 'persona[loadgen]'") from missing

from loadgen.baseline import Check
from loadgen.compare import changes, comparison_lines
from loadgen.destinations import Destinations
from loadgen.progress import Progress, report_lines
from loadgen.results import Document
from loadgen.run import Plan, run
from loadgen.scenario import ScenarioError, load_scenario, scenario_names
from loadgen.servers import OURS, PEERS
from loadgen.store import DEFAULT_FOLDER, UnreadableRun, load
from loadgen.store import save as save_run
from loadgen.tables import (
    TABLES,
    BenchPlan,
    NoSuchRow,
    Table,
    TableError,
    measure,
    text_lines,
)

MAX_WORKERS = 64


def is_loopback(url: str) -> bool:
    """Whether the URL names this machine, without asking a name server."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@contextmanager
def _leaving_at(*numbers: signal.Signals) -> Iterator[None]:
    """Signals that end a process end this one by an exception, so that what it started ends with it, and what
    it wrote meanwhile is removed. One that is ignored, as `nohup` wants it, stays so."""

    def leave(number: int, frame: FrameType | None) -> None:
        interrupt = signal.getsignal(signal.SIGINT)
        if callable(interrupt) and interrupt is not signal.default_int_handler:
            # An event loop is running, and has a way of its own to be interrupted wherever it is.
            interrupt(signal.SIGINT, frame)
        else:
            raise SystemExit(128 + number)

    before = {
        number: signal.signal(number, leave)
        for number in numbers
        if signal.getsignal(number) is not signal.SIG_IGN
    }
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.pass_context
def main(context: click.Context) -> None:
    """Load a server, and say what it did: honestly, or not at all."""
    context.with_resource(_leaving_at(signal.SIGTERM, signal.SIGHUP))


@main.command("list")
def list_scenarios() -> None:
    """The scenarios there are."""
    for name in scenario_names():
        click.echo(f"{name:16} {load_scenario(name).summary}")


@main.command("run")
@click.argument("scenario")
@click.option("--url", help="Server to load.  [default: one of its own]")
@click.option(
    "--server",
    type=click.Choice([*OURS, *PEERS]),
    default="trio-websocket",
    help="Without --url: which engine of ours, or which peer.",
)
@click.option(
    "--connections",
    type=click.IntRange(1, 100_000),
    help="Of the highest stage; rates follow.",
)
@click.option("--duration", type=click.FloatRange(0, min_open=True), help="Seconds, all stages together.")
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    help="Requests a second of the highest stage: open model, in place of what users do by themselves.",
)
@click.option(
    "--arrivals", type=click.Choice(["poisson", "constant"]), help="How they come, in an open model."
)
@click.option("--warmup", type=click.FloatRange(0), help="Seconds at the start that are not measured.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=60.0, help="Seconds per request.")
@click.option(
    "--workers", type=click.IntRange(1, MAX_WORKERS), default=1, help="Processes that make the load."
)
@click.option(
    "--repeat", type=click.IntRange(1, 100), default=1, help="Runs; `compare` knows the noise by them."
)
@click.option("--seed", type=int, default=0, help="The same seed plans the same pauses and arrivals.")
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=DEFAULT_FOLDER,
    help="Folder for the JSON and the page of each run.",
)
@click.option(
    "--token-file",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="File whose first line is the bearer token.",
)
@click.option("--allow-remote", is_flag=True, help="Load a server on another machine. Ask its owner first.")
def run_command(
    scenario: str,
    url: str | None,
    server: str,
    connections: int | None,
    duration: float | None,
    rate: float | None,
    arrivals: Literal["poisson", "constant"] | None,
    warmup: float | None,
    timeout: float,
    workers: int,
    repeat: int,
    seed: int,
    out: Path,
    token_file: Path | None,
    allow_remote: bool,
) -> None:
    """Run SCENARIO: one of `loadgen list`, or the path of a Python file.

    Exits with 1 when a threshold of the scenario does not hold, or an answer was wrong.
    """
    if url is not None and not allow_remote and not is_loopback(url):
        raise click.UsageError(f"{url} is not this machine; --allow-remote loads it all the same")
    plan = Plan(
        scenario=scenario,
        connections=connections,
        seconds=duration,
        rate=rate,
        warm_up_s=warmup,
        arrivals=arrivals,
        timeout_s=timeout,
        seed=seed,
        token=None
        if token_file is None
        else token_file.read_text(encoding="utf-8").partition("\n")[0].strip(),
    )
    good = True
    for number in range(repeat):
        document = _run_once(plan, out, url=url, server=server, workers=workers)
        for line in report_lines(document):
            click.echo(line)
        try:
            click.echo(f"  {save_run(document, out, number)}")
        except OSError as exc:
            raise click.ClickException(f"cannot keep it: {exc}") from None
        good = good and not document["failed"]
    if not good:
        raise click.exceptions.Exit(1)


def _make_folder(folder: Path) -> None:
    """Before a run and not after it: its figures would be lost."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise click.UsageError(f"cannot keep runs in {folder}: {exc.strerror}") from None
    if not os.access(folder, os.W_OK):
        raise click.UsageError(f"cannot keep runs in {folder}: it cannot be written to")


def _run_once(plan: Plan, out: Path, **options: Any) -> Document:
    try:
        progress = Progress(sys.stderr, plan.load().seconds)
        _make_folder(out)
        try:
            command = shlex.join(["loadgen", *sys.argv[1:]])
            return run(plan, command=command, on_second=progress.show, **options)
        finally:
            progress.end()
    except ScenarioError as exc:
        raise click.UsageError(str(exc)) from None
    except (OSError, ValueError, RuntimeError) as exc:
        raise click.ClickException(str(exc)) from None
    except KeyboardInterrupt:
        # Half a run is not reported: it would look like a whole one.
        raise click.Abort from None


@main.command("compare")
@click.argument("a", type=click.Path(exists=True, path_type=Path))
@click.argument("b", type=click.Path(exists=True, path_type=Path))
@click.option("--all", "everything", is_flag=True, help="Also what did not change.")
@click.option("--fail-on-worse", is_flag=True, help="Exit with 1 when a figure got worse beyond the noise.")
def compare_command(a: Path, b: Path, everything: bool, fail_on_worse: bool) -> None:
    """Put B beside A: each the folder of a run and its repeats, or one JSON file."""
    try:
        of_a, of_b = load(a), load(b)
    except UnreadableRun as exc:
        raise click.UsageError(str(exc)) from None
    for line in comparison_lines(of_a, of_b, everything=everything):
        click.echo(line)
    if fail_on_worse and any(change.verdict == "worse" for change in changes(of_a, of_b)):
        raise click.exceptions.Exit(1)


@main.command("bench")
@click.argument("names", nargs=-1, type=click.Choice(sorted(TABLES)), metavar="[TABLE]...")
@click.option("--rounds", type=click.IntRange(1), default=3, help="Times each server is measured.")
@click.option(
    "--seconds",
    type=click.FloatRange(0, min_open=True),
    default=2.0,
    help="Length of one; broadcasts and idle connections take the time that they take.",
)
@click.option("--only", default="", help="Rows whose names hold this. Not with --docs.")
@click.option(
    "--server",
    "servers",
    multiple=True,
    help="Only these, and without ratios: not with --docs, --save, --check.",
)
@click.option(
    "--json", "folder", type=click.Path(file_okay=False, path_type=Path), help="Keep all figures there."
)
@click.option(
    "--folder",
    "measured_in",
    type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path),
    default=Path(),
    help="Where the files of `storage` and `guide` are made: on the disk that is measured.",
)
@click.option(
    "--docs", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Write tables there."
)
@click.option(
    "--save", type=click.Path(dir_okay=False, path_type=Path), help="Store the ratios as a baseline."
)
@click.option(
    "--beside", is_flag=True, help="With --save: keep what is stored, so that noise is that of several hours."
)
@click.option(
    "--check", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Hold against one."
)
def bench_command(
    names: tuple[str, ...],
    rounds: int,
    seconds: float,
    only: str,
    servers: tuple[str, ...],
    folder: Path | None,
    measured_in: Path,
    docs: Path | None,
    save: Path | None,
    beside: bool,
    check: Path | None,
) -> None:
    """Measure the project's tables: transport, storage, chat, scale, guide; all of them where none is named.

    With --check it exits with 1 when a ratio is worse than the stored one beyond the noise, or none was there
    to be checked.
    """
    if beside and save is None:
        raise click.UsageError("--beside goes with --save")
    _refuse_parts(only, servers, {"--docs": docs, "--save": save, "--check": check})
    plan = BenchPlan(rounds=rounds, seconds=seconds, only=only, servers=servers, folder=measured_in)
    where = Destinations(
        folder=folder, docs=docs, baseline=save, beside=beside, is_part=bool(only), held_against=check
    )
    names = names or tuple(TABLES)
    checks: list[Check] = []
    try:
        where.look_ahead(names)
        for table in _measured(names, plan):
            for line in (line for row in table.rows for line in text_lines(row)):
                click.echo(line)
            found = where.take(table)
            if found is not None:
                checks.append(found)
                for line in _check_lines(table, found):
                    click.echo(line)
    except TableError as exc:
        raise click.ClickException(str(exc)) from None
    for line in (line for found in checks for line in found.worse):
        click.echo(f"WORSE: {line}")
    if checks and not any(found.checked for found in checks):
        raise click.ClickException(f"nothing was checked: {check} has none of these ratios")
    if any(found.worse for found in checks):
        raise click.exceptions.Exit(1)


def _check_lines(table: Table, found: Check) -> Iterator[str]:
    for cpu in found.other_cpus:
        yield f"note: the baseline of {table.name} is of {cpu}, and this is {table.machine['cpu']}"
    yield f"{table.name}: {found.checked} ratios checked, {found.not_stored} not stored"


def _measured(names: Sequence[str], plan: BenchPlan) -> Iterator[Table]:
    """One after the other; those that have none of the wanted rows are passed over. Raises `TableError`, also
    where all of them are."""
    missing: list[str] = []
    for name in names:
        # Without the names of files: those are this machine's, not the table's.
        command = f"loadgen bench {name} --rounds {plan.rounds} --seconds {plan.seconds:g}"
        if plan.only:
            command += f" --only {shlex.quote(plan.only)}"
        try:
            with _logs_apart():
                table = measure(name, plan, command)
        except NoSuchRow as exc:
            missing.append(str(exc))
            click.echo(f"note: {exc}", err=True)
            continue
        yield table
    if len(missing) == len(names):
        raise TableError("; ".join(missing))


def _refuse_parts(only: str, servers: tuple[str, ...], wanted: Mapping[str, Path | None]) -> None:
    """A part of a table must not replace the whole, nor be what a check takes for it. Raises `UsageError`."""
    given = [name for name, file in wanted.items() if file is not None]
    if servers and given:
        raise click.UsageError(f"--server measures without ratios; {' and '.join(given)} cannot go with it")
    if only and "--docs" in given:
        raise click.UsageError("--only measures a part of a table; --docs cannot go with it")


@contextmanager
def _logs_apart() -> Iterator[None]:
    """Some tables run parts of the server in this process, and what those log is no part of a table."""
    before = structlog.get_config()
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    try:
        yield
    finally:
        structlog.configure(**before)
