"""Scenarios: those there are, one's own, and made larger or smaller."""

from pathlib import Path

import attrs
import pytest

from loadgen.requests import ping
from loadgen.scenario import (
    Scenario,
    ScenarioError,
    Stage,
    Threshold,
    load_scenario,
    scenario_names,
)

PLAN = Scenario(
    name="test",
    summary="a test",
    stages=(Stage(seconds=10, connections=50, rate=10), Stage(seconds=30, connections=200, rate=40)),
    request=ping,
    warm_up_s=2.0,
)

OWN = """
from loadgen.requests import ping
from loadgen.scenario import Scenario, Stage

SCENARIO = Scenario(name="mine", summary="", stages=(Stage(seconds=1, connections=2),), request=ping)
"""


def own(field: str) -> str:
    """The same, with one more field."""
    return OWN.replace("Scenario, Stage", "Scenario, Stage, Threshold").replace(
        "request=ping)", f"request=ping, {field})"
    )


def test_the_scenarios_that_come_with_it() -> None:
    assert set(scenario_names()) == {
        *("ramp", "chat", "broadcast", "soak", "spike", "stress"),
        *("slow-readers", "reconnect-storm", "storage", "fairness"),
    }
    for name in scenario_names():
        scenario = load_scenario(name)
        assert scenario.name == name
        assert scenario.summary
        assert scenario.thresholds


def test_the_ramp_has_the_guides_stages() -> None:
    assert [stage.connections for stage in load_scenario("ramp").stages] == [10, 50, 100, 500, 1000, 2000]


def test_ones_own_file(tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(OWN)
    assert load_scenario(str(file)).name == "mine"


@pytest.mark.parametrize(
    ("text", "complaint"),
    [
        (None, "there is no file"),
        ("x = 1", "has no `SCENARIO = Scenario"),
        ("1 / 0", "ZeroDivisionError: division by zero"),
        ("def", "SyntaxError"),
        (OWN.replace("request=ping", ""), "needs a `user` or a `request`"),
        (OWN.replace("(Stage(seconds=1, connections=2),)", "()"), "needs a stage"),
        (
            OWN.replace("connections=2", "connections=2, rate=3").replace("request=ping", "user=ping"),
            "a `request` where a stage has a rate",
        ),
        (OWN.replace("seconds=1", "seconds=0"), "'seconds' must be > 0"),
        ("import sys; sys.exit(0)", "SystemExit: 0"),
        (OWN.replace("=(Stage(", "=Stage(").replace("),)", ")"), "TypeError: 'stages' must be"),
        (own("thresholds=Threshold('errors', at_most=0)"), "TypeError: 'thresholds' must be"),
        (own("thresholds=(Threshold('errors'),)"), "a threshold of errors needs `at_most` or `at_least`"),
        (own("arrivals='bursts'"), "'arrivals' must be in"),
        (own("set_up='subscribe'"), "'set_up' must be callable"),
        (own("warm_up_s=-1"), "'warm_up_s' must be >= 0"),
        (own("expected='timeout'"), "'expected' must be"),
        (own("server={'llm.nosuch': 1}"), "the server has no setting 'llm.nosuch'"),
        (own("server={'llm.max_concurrency': -1}"), "llm.max_concurrency = -1 must be an integer from"),
        (OWN.replace('"mine"', '"a/b"'), "ValueError: 'name' must match regex"),
        (OWN.replace("connections=2", "connections=0, rate=5"), "a rate of 5 needs connections"),
        (OWN.replace("connections=2", "connections=2.5"), "'connections' must be <class 'int'>"),
    ],
)
def test_a_file_that_cannot_be_run_is_named(tmp_path: Path, text: str | None, complaint: str) -> None:
    file = tmp_path / "mine.py"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ScenarioError, match=r"mine\.py") as caught:
        load_scenario(str(file))
    assert complaint in str(caught.value)


def test_a_name_that_there_is_not_lists_those_there_are() -> None:
    with pytest.raises(ScenarioError, match="no scenario 'rampp'; there are broadcast"):
        load_scenario("rampp")


def test_nothing_asked_for_changes_nothing() -> None:
    assert PLAN.fitted() == PLAN


def test_stages_keep_their_share() -> None:
    fitted = PLAN.fitted(connections=20, seconds=4, rate=8)
    assert [(s.seconds, s.connections, s.rate) for s in fitted.stages] == [(1, 5, 2), (3, 20, 8)]


def test_a_stage_never_shrinks_to_no_connection() -> None:
    assert [stage.connections for stage in PLAN.fitted(connections=1).stages] == [1, 1]


def test_a_rate_makes_a_closed_model_open_and_users_only_hold_connections() -> None:
    closed = attrs.evolve(PLAN, stages=(Stage(seconds=10, connections=5),), user=lambda _: iter(()))
    assert not closed.is_open
    fitted = closed.fitted(rate=7)
    assert (fitted.stages[0].rate, fitted.user) == (7, None)
    # Where requests arrive beside the users anyway, they still do.
    assert attrs.evolve(PLAN, user=closed.user).fitted(rate=7).user is closed.user


def test_rates_follow_the_connections_unless_they_are_named_or_are_nobodys() -> None:
    assert [stage.rate for stage in PLAN.fitted(connections=20).stages] == [1, 4]
    assert [stage.rate for stage in PLAN.fitted(connections=20, rate=8).stages] == [2, 8]
    mixed = attrs.evolve(PLAN, stages=(*PLAN.stages, Stage(seconds=1, connections=50)))
    assert [stage.rate for stage in mixed.fitted(connections=20).stages] == [1, 4, None]
    empty = attrs.evolve(PLAN, stages=(Stage(seconds=1, connections=0), Stage(seconds=1, connections=50)))
    assert [stage.rate for stage in empty.fitted(rate=4).stages] == [None, 4]
    alone = attrs.evolve(PLAN, rate_by_connection=False)
    assert [stage.rate for stage in alone.fitted(connections=20).stages] == [10, 40]


@pytest.mark.parametrize(("name", "rates"), [("ramp", [0.1, 0.5, 1, 5, 10, 20]), ("broadcast", [5])])
def test_a_small_ramp_asks_little_and_a_small_broadcast_as_often(name: str, rates: list[float]) -> None:
    fitted = load_scenario(name).fitted(connections=20)
    assert [stage.rate for stage in fitted.stages] == rates
    assert not any("2000" in stage.name for stage in fitted.stages)


def test_a_rate_needs_requests() -> None:
    closed = attrs.evolve(PLAN, request=None, user=lambda _: iter(()))
    with pytest.raises(ScenarioError, match="closed model only"):
        closed.fitted(rate=1)


def test_a_short_run_is_not_all_warm_up() -> None:
    assert PLAN.fitted(seconds=4).warm_up_s == 0.5
    with pytest.raises(ScenarioError, match="leaves nothing"):
        PLAN.fitted(seconds=4, warm_up_s=4)


@pytest.mark.parametrize(
    ("threshold", "holds"),
    [
        (Threshold("errors", at_most=0), True),
        (Threshold("response.p99_ms", at_most=99.9), False),
        (Threshold("response.p99_ms", at_least=100, at_most=100), True),
        (Threshold("rate", at_least=1), False),
        (Threshold("response.p99_ms", relative_to="response.p50_ms", at_most=9), False),
        (Threshold("response.p99_ms", relative_to="response.p50_ms", at_most=10), True),
        (Threshold("response.p99_ms", relative_to="errors", at_most=10), False),
    ],
)
def test_thresholds(threshold: Threshold, holds: bool) -> None:
    figures = {"errors": 0.0, "response.p99_ms": 100.0, "response.p50_ms": 10.0}
    verdict, line = threshold.verdict(figures)
    assert verdict is holds
    assert threshold.figure in line
