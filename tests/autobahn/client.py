"""Runs the fuzzing client, which is a program for Python 2.7, and takes what it leaves behind."""

import ast
import json
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import trio

CASES = ["1.*", "2.*", "3.*", "4.*", "5.*", "6.*", "7.*", "10.*"]
"""Framing, pings, reserved bits, opcodes, fragments, UTF-8, closing, automatic fragments. Not 9 (speed of
messages up to 16 MiB, which this server refuses), nor 12 and 13 (compression, which it does not offer)."""
TAIL_BYTES = 2000


class ClientFailed(Exception):
    """The client did not get through."""


@attrs.frozen
class Run:
    """What the client wanted to run, and what it saw, by engine and case."""

    cases: Sequence[str]
    seen: Mapping[str, Mapping[str, Any]]


async def run_client(command: Sequence[str], urls: Mapping[str, str], folder: Path, *, limit_s: float) -> Run:
    """Run `command`, the client, against a server for each engine. Its log and its report, with a page for
    each case, are left in `folder`.

    Raises `ClientFailed` when it takes longer than `limit_s`, fails, or leaves no report.
    """
    reports, log = folder / "reports", folder / "client.log"
    # What an earlier run saw must not be taken for what this one does.
    shutil.rmtree(reports, ignore_errors=True)
    spec = folder / "spec.json"
    spec.write_text(json.dumps(_spec(urls, reports)))
    with log.open("wb") as output, trio.move_on_after(limit_s) as scope:
        ended = await trio.run_process(
            [*command, "--mode", "fuzzingclient", "--spec", str(spec)],
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        )
    said = log.read_text(errors="replace")
    if scope.cancelled_caught:
        raise ClientFailed(f"the client was not done after {limit_s:g} s:\n{said[-TAIL_BYTES:]}")
    index = reports / "index.json"
    # It says which cases it is going to run in a line of its own.
    announced = re.search(r"^Cases = (\[.*\])$", said, re.MULTILINE)
    if ended.returncode or announced is None or not index.exists():
        raise ClientFailed(f"the client ended with {ended.returncode}:\n{said[-TAIL_BYTES:]}")
    return Run(cases=ast.literal_eval(announced[1]), seen=json.loads(index.read_text()))


def _spec(urls: Mapping[str, str], reports: Path) -> dict[str, Any]:
    return {
        "outdir": str(reports),
        "servers": [{"agent": engine, "url": url} for engine, url in urls.items()],
        "cases": CASES,
        "exclude-cases": [],
        "exclude-agent-cases": {},
    }
