"""The command line: `loadgen run`, `list`, `compare`, `bench`."""

import ipaddress
import shlex
import sys
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import click

try:
    import hdrh  # noqa: F401 - looked for here, to say what is missing in one line
except ModuleNotFoundError as missing:  # pragma: no cover - needs an environment without it
    raise SystemExit("loadgen needs the package `hdrhistogram`: pip install 'persona[loadgen]'") from missing

from loadgen.progress import Progress, report_lines
from loadgen.results import Document
from loadgen.run import Plan, run
from loadgen.scenario import ScenarioError, load_scenario, scenario_names
from loadgen.servers import OURS, PEERS
from loadgen.store import DEFAULT_FOLDER, save

MAX_WORKERS = 64


def is_loopback(url: str) -> bool:
    """Whether the URL names this machine, without asking a name server."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
def main() -> None:
    """Load a server, and say what it did: honestly, or not at all."""


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
@click.option("--connections", type=click.IntRange(1, 100_000), help="Of the highest stage.")
@click.option("--duration", type=click.FloatRange(0, min_open=True), help="Seconds, all stages together.")
@click.option(
    "--rate",
    type=click.FloatRange(0, min_open=True),
    help="Requests a second of the highest stage: open model.",
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
        document = _run_once(plan, url=url, server=server, workers=workers)
        page = save(document, out, number)
        for line in report_lines(document):
            click.echo(line)
        click.echo(f"  {page}")
        good = good and not document["failed"]
    if not good:
        raise click.exceptions.Exit(1)


def _run_once(plan: Plan, **options: Any) -> Document:
    try:
        progress = Progress(sys.stderr, plan.load().seconds)
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
