"""What workers say, and what their scenarios say beside it."""

import os
from pathlib import Path

import pytest

from loadgen.run import Plan
from loadgen.scenario import ScenarioError
from loadgen.workers import Workers
from tests.loadgen.answering import answering

TALKS = """
import os
from loadgen.requests import ping
from loadgen.scenario import Scenario, Stage

print("imported")
os.write(1, b"and so")

def request(user, n):
    print("asked", n)
    return {request}

SCENARIO = Scenario(name="t", summary="", stages=(Stage(seconds=0.4, connections=2),), request=request)
"""


def crowd(folder: Path, url: str, request: str) -> Workers:
    file = folder / "talks.py"
    file.write_text(TALKS.format(request=request))
    return Workers(Plan(scenario=str(file), warm_up_s=0).as_json(), url, 2)


def test_what_a_scenario_prints_is_no_line_of_its_worker(tmp_path: Path) -> None:
    with answering() as server, crowd(tmp_path, server.url, "ping(user, n)") as workers:
        documents = workers.run(dict, lambda _: None)
    assert all(document["stages"][0]["answered"] for document in documents)


def test_a_key_that_interrupts_is_the_parents(tmp_path: Path) -> None:
    with answering() as server, crowd(tmp_path, server.url, "ping(user, n)") as workers:
        pids = [process.pid for process in workers._processes]
        # Not of the terminal's group, which is what Ctrl-C goes to.
        assert [os.getsid(pid) for pid in pids] == pids


def test_a_mistake_of_a_scenario_is_told_by_whoever_met_it(tmp_path: Path) -> None:
    with (
        answering() as server,
        crowd(tmp_path, server.url, "None") as workers,
        pytest.raises(ScenarioError, match="`request` gave None"),
    ):
        workers.run(dict, lambda _: None)
