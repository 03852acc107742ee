"""The command, against servers small enough to misbehave on purpose."""

import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import orjson
import psutil
import pytest
from click.testing import CliRunner, Result

from loadgen import cli
from loadgen.cli import is_loopback, main
from loadgen.scenario import scenario_names
from tests.loadgen.answering import answering, echo, error, result
from tests.loadgen.test_servers import is_gone

PINGS = """
from loadgen.requests import ping
from loadgen.scenario import NO_ERRORS, Scenario, Stage, Threshold

SCENARIO = Scenario(
    name="pings", summary="", stages=(Stage(seconds=0.4, connections=3),), request=ping, warm_up_s=0.1,
    thresholds=(NO_ERRORS, Threshold("answered", at_least={at_least})),
)
"""


@pytest.fixture
def pings(tmp_path: Path) -> str:
    return scenario(tmp_path, at_least=1)


def scenario(folder: Path, *, at_least: int) -> str:
    file = folder / f"pings{at_least}.py"
    file.write_text(PINGS.format(at_least=at_least))
    return str(file)


def invoke(*args: str) -> Result:
    return CliRunner().invoke(main, args)


def run_against(url: str, scenario: str, folder: Path, *args: str) -> Result:
    return invoke("run", scenario, "--url", url, "--out", str(folder / "out"), *args)


def test_a_good_run_exits_0_and_leaves_its_figures(pings: str, tmp_path: Path) -> None:
    with answering() as server:
        done = run_against(server.url, pings, tmp_path)
    assert done.exit_code == 0, done.output
    assert "errors 0 (0.00%)" in done.output
    assert "a warm-up of 0.1 s with" in done.output
    assert "p99.9" in done.output
    document = orjson.loads((tmp_path / "out/pings-1.json").read_bytes())
    assert document["figures"]["answered"] > 0
    assert (tmp_path / "out/pings-1.html").read_text().startswith("<!doctype html>")


def test_repeats_are_kept_apart(pings: str, tmp_path: Path) -> None:
    with answering() as server:
        assert run_against(server.url, pings, tmp_path, "--repeat", "2").exit_code == 0
    assert sorted(path.name for path in (tmp_path / "out").glob("*.json")) == ["pings-1.json", "pings-2.json"]


def test_a_wrong_answer_fails_the_run(pings: str, tmp_path: Path) -> None:
    asked = 0

    def mix_up(request: dict[str, Any]) -> list[bytes]:
        nonlocal asked
        if request["method"] != "system.ping":
            return echo(request)
        asked += 1
        payload = "another's" if asked == 5 else request["params"]["payload"]
        return [result(request, {"pong": True, "payload": payload})]

    with answering(mix_up) as server:
        done = run_against(server.url, pings, tmp_path)
    assert done.exit_code == 1
    assert "FAILED: 1 wrong answers" in done.output


def test_errors_are_named_with_a_hint_and_give_no_latency(pings: str, tmp_path: Path) -> None:
    with answering(lambda request: [error(request, "rate_limited")]) as server:
        done = run_against(server.url, pings, tmp_path)
    assert done.exit_code == 1
    assert "PERSONA_LIMITS_RATE_LIMIT_PER_MINUTE=0" in done.output
    assert "system.ping" not in done.output
    assert "nothing was answered" in done.output


def test_a_threshold_that_does_not_hold_is_the_exit_code(tmp_path: Path) -> None:
    with answering() as server:
        done = run_against(server.url, scenario(tmp_path, at_least=10**9), tmp_path)
    assert done.exit_code == 1
    assert "FAILED: answered is" in done.output


def test_a_server_that_is_down_is_an_error(pings: str, tmp_path: Path) -> None:
    with answering() as server:
        url = server.url
    done = run_against(url, pings, tmp_path)
    assert done.exit_code == 1
    assert "connection_refused: 3: is the server running?" in done.output


def test_the_token_is_read_from_a_file(pings: str, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("secret\nnot this\n")
    with answering() as server:
        done = run_against(server.url, pings, tmp_path, "--token-file", str(file))
        assert all("Authorization: Bearer secret" in head for head in server.heads[:3])
    assert "secret" not in (tmp_path / "out/pings-1.json").read_text()
    assert done.exit_code == 0


def test_list_names_every_scenario() -> None:
    done = invoke("list")
    assert [line.split()[0] for line in done.output.splitlines()] == scenario_names()


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["nothing"], "no scenario 'nothing'"),
        (["soak", "--rate", "5"], "closed model only"),
        (["ramp", "--duration", "4", "--warmup", "9"], "leaves nothing"),
        (["ramp", "--url", "ws://192.0.2.1:8000/mcp"], "--allow-remote"),
    ],
)
def test_what_cannot_be_run_is_a_usage_error(args: list[str], complaint: str) -> None:
    done = invoke("run", *args)
    assert done.exit_code == 2
    assert complaint in done.output


def test_a_url_that_is_none_is_an_error(pings: str, tmp_path: Path) -> None:
    done = run_against("http://127.0.0.1:1/", pings, tmp_path)
    assert done.exit_code == 1
    assert "http://127.0.0.1:1/ is no ws:// URL" in done.output


def test_another_machine_is_loaded_when_asked_to(
    monkeypatch: pytest.MonkeyPatch, pings: str, tmp_path: Path
) -> None:
    urls = []

    def never(_plan: object, *, url: str, **_options: object) -> None:
        urls.append(url)
        raise RuntimeError("not in a test")

    monkeypatch.setattr(cli, "run", never)
    run_against("ws://192.0.2.1:8000/mcp", pings, tmp_path, "--allow-remote")
    assert urls == ["ws://192.0.2.1:8000/mcp"]


def test_an_interrupted_run_gives_no_figures(
    monkeypatch: pytest.MonkeyPatch, pings: str, tmp_path: Path
) -> None:
    def interrupt(*_args: object, **_options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cli, "run", interrupt)
    done = run_against("ws://127.0.0.1:1/", pings, tmp_path)
    assert done.exit_code == 1
    assert "answered" not in done.output
    assert not list((tmp_path / "out").iterdir())


def test_a_folder_that_cannot_be_made_is_known_before_the_run(pings: str, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with answering() as server:
        done = invoke("run", pings, "--url", server.url, "--out", str(tmp_path / "out" / "inner"))
        assert server.heads == []
    assert done.exit_code == 2
    assert "cannot keep runs in" in done.output


def test_a_script_that_breaks_is_named_with_its_line(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(
        "from loadgen.requests import ping\nfrom loadgen.scenario import Scenario, Stage\n"
        "def user(user):\n    answer = yield ping(user, 0)\n    int(answer.result['payload'])\n"
        "SCENARIO = Scenario(name='mine', summary='', stages=(Stage(seconds=1, connections=1),), user=user)\n"
    )
    with answering() as server:
        done = run_against(server.url, str(file), tmp_path)
    assert done.exit_code == 2
    assert "the script of user 0: ValueError: invalid literal" in done.output
    assert "mine.py, line 5)" in done.output.replace("\n", "")


@pytest.mark.parametrize(
    "url",
    [
        "ws://127.0.0.1:8000/mcp",
        "ws://127.9.9.9/",
        "ws://[::1]:8000/mcp",
        "ws://localhost:8000",
        "ws://LOCALHOST",
    ],
)
def test_what_is_loopback(url: str) -> None:
    assert is_loopback(url)


@pytest.mark.parametrize(
    "url",
    [
        "ws://192.168.1.2:8000/mcp",
        "ws://0.0.0.0:8000/mcp",
        "ws://example.org/mcp",
        "ws://localhost.example.org/mcp",
        "ws://127.0.0.1@example.org/mcp",
        "ws://127.0.0.1.example.org/mcp",
        "ws://[::1",
        "127.0.0.1:8000",
        "",
    ],
)
def test_what_is_not(url: str) -> None:
    assert not is_loopback(url)


def started(*args: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "loadgen", *args], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
    )


def wait_for(what: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not what():
        assert time.monotonic() < end
        time.sleep(0.02)


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_one_that_is_told_to_end_ends_its_server(pings: str, tmp_path: Path, number: signal.Signals) -> None:
    # These tests themselves may be run by `nohup`, which children inherit.
    before = signal.signal(number, signal.SIG_DFL)
    try:
        process = started("run", pings, "--server", "sansio", "--duration", "60", "--out", str(tmp_path))
    finally:
        signal.signal(number, before)
    with process:
        children = psutil.Process(process.pid).children
        wait_for(lambda: bool(children()))
        (server,) = children()
        process.send_signal(number)
        assert process.wait(30) == 128 + number
    assert is_gone(server.pid)


@pytest.mark.slow
def test_one_that_is_told_to_end_removes_the_files_that_it_measures(tmp_path: Path) -> None:
    with started("bench", "storage", "--folder", str(tmp_path), "--seconds", "60") as process:
        wait_for(lambda: any(tmp_path.glob("*/run.db-wal")))
        process.terminate()
        _, complaint = process.communicate(timeout=30)
    # In an event loop it is the same as Ctrl-C.
    assert (process.returncode, b"Aborted!" in complaint, b"Traceback" in complaint) == (1, True, False)
    assert list(tmp_path.iterdir()) == []


def test_signals_are_as_they_were_afterwards() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert invoke("list").exit_code == 0
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_goes_on_without_its_terminal_goes_on() -> None:
    """As `nohup` starts it."""
    seen = []
    main.add_command(click.Command("look", callback=lambda: seen.append(signal.getsignal(signal.SIGHUP))))
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        invoke("look")
    finally:
        signal.signal(signal.SIGHUP, before)
        del main.commands["look"]
    assert seen == [signal.SIG_IGN]
