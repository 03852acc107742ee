"""The client's run, with small programs in the client's place."""

import json
import sys
import textwrap
from pathlib import Path

import pytest
import trio

from tests.autobahn.client import CASES, ClientFailed, Run, run_client

URLS = {"one": "ws://127.0.0.1:1/mcp", "two": "ws://127.0.0.1:2/mcp"}
DONE = """
    print("Cases = ['1.1.1', '10.1.1']")
    write({"one": {"1.1.1": {"behavior": "OK"}}})
"""


async def played(folder: Path, script: str, *, limit_s: float = 20.0) -> Run:
    """Run a client that does `script`."""
    start = """
        import json, pathlib, sys, time
        assert sys.argv[1:4] == ["--mode", "fuzzingclient", "--spec"]
        spec = json.loads(pathlib.Path(sys.argv[4]).read_text())
        def write(index):
            reports = pathlib.Path(spec["outdir"])
            reports.mkdir()
            (reports / "index.json").write_text(json.dumps(index))
    """
    program = folder / "program.py"
    program.write_text(textwrap.dedent(start) + textwrap.dedent(script))
    return await run_client([sys.executable, str(program)], URLS, folder, limit_s=limit_s)


async def test_what_it_announces_and_what_it_saw_are_taken_apart(tmp_path: Path) -> None:
    run = await played(tmp_path, DONE)
    assert run == Run(cases=["1.1.1", "10.1.1"], seen={"one": {"1.1.1": {"behavior": "OK"}}})


async def test_it_is_told_where_the_servers_are_and_what_to_run(tmp_path: Path) -> None:
    await played(tmp_path, DONE)
    spec = json.loads((tmp_path / "spec.json").read_text())
    assert spec["servers"] == [{"agent": engine, "url": url} for engine, url in URLS.items()]
    assert spec["cases"] == CASES
    assert spec["exclude-cases"] == []
    assert spec["exclude-agent-cases"] == {}


async def test_a_client_that_hangs_is_ended(tmp_path: Path) -> None:
    with trio.fail_after(20), pytest.raises(ClientFailed, match=r"not done after 0.5 s"):
        await played(tmp_path, DONE + "    time.sleep(60)", limit_s=0.5)


@pytest.mark.parametrize(
    "script",
    [
        DONE + "    sys.exit('it broke')",
        # No report.
        "print(\"Cases = ['1.1.1']\"); print('it broke')",
        # Nobody knows what was to run.
        "write({}); print('it broke')",
    ],
)
async def test_a_client_that_fails_is_quoted(tmp_path: Path, script: str) -> None:
    with pytest.raises(ClientFailed, match="it broke"):
        await played(tmp_path, script)


async def test_an_earlier_report_is_not_taken_for_this_one(tmp_path: Path) -> None:
    await played(tmp_path, DONE)
    with pytest.raises(ClientFailed, match="ended with 0"):
        await played(tmp_path, "print(\"Cases = ['1.1.1', '10.1.1']\")")
