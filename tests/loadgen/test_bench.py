"""The comparison: medians, ratios, and what the command takes."""

import attrs
import pytest
from click.testing import CliRunner

from loadgen import bench
from loadgen.bench import Scenario, lines, scenarios
from loadgen.servers import OURS, PEERS
from loadgen.wire import WrongAnswer


def scenario(**changes: object) -> Scenario:
    plain = Scenario(
        name="pings",
        servers=("sansio", "aiohttp"),
        unit="us",
        measure=lambda _server, _seconds: {"us": 1.0},
        marks=(("sansio", "aiohttp", 1.5),),
    )
    return attrs.evolve(plain, **changes)


class Played:
    """Servers that are only names; each is measured as the test says."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, figures: dict[str, list[float]]) -> None:
        self.figures = figures
        self.order: list[str] = []
        monkeypatch.setattr(bench, "running", self._running)

    def _running(self, name: str) -> "Played":
        self.order.append(name)
        return self

    def __enter__(self) -> str:
        return self.order[-1]

    def __exit__(self, *_: object) -> None: ...

    def measure(self, name: str, _seconds: float) -> dict[str, float]:
        return {"us": self.figures[name].pop(0)}


def test_servers_take_turns_and_the_median_of_the_rounds_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played(monkeypatch, {"sansio": [10.0, 99.0, 12.0], "aiohttp": [20.0, 24.0, 1.0]})
    figures = bench.run(scenario(measure=played.measure), rounds=3, seconds=1)
    assert played.order == ["sansio", "aiohttp"] * 3
    assert figures == {"sansio": {"us": 12.0}, "aiohttp": {"us": 20.0}}


@pytest.mark.parametrize(
    ("ours", "verdict"), [(10.0, "2.00 (mark 1.50) ok"), (16.0, "1.25 (mark 1.50) MISSED")]
)
def test_a_ratio_above_one_is_in_our_favour(ours: float, verdict: str) -> None:
    *_, last = lines(scenario(), {"sansio": {"us": ours}, "aiohttp": {"us": 20.0}})
    assert last.strip() == f"sansio / aiohttp: {verdict}"


def test_a_mark_may_be_a_figure_of_its_own() -> None:
    memory = scenario(unit="kB", marks=(("sansio", "20 kB", 1.0),))
    *_, last = lines(memory, {"sansio": {"kB": 16.0}})
    assert last.strip() == "sansio / 20 kB: 1.25 (mark 1.00) ok"


def test_the_table_is_of_servers_that_there_are() -> None:
    names = [each.name for each in scenarios()]
    assert len(set(names)) == len(names) == 6
    for each in scenarios():
        assert set(each.servers) <= {*OURS, *PEERS}
        assert {ours for ours, _, _ in each.marks} <= set(each.servers)
        assert {other for _, other, _ in each.marks if not other.endswith(" kB")} <= set(each.servers)


def invoke(*arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(bench.main, arguments)
    return done.exit_code, done.output


def test_a_server_that_nobody_knows_is_a_usage_error() -> None:
    code, output = invoke("--server", "nginx")
    assert code == 2
    assert "no such server: nginx" in output


def test_only_the_chosen_servers_run_and_without_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played(monkeypatch, {"sansio": [1.0, 2.0]})
    monkeypatch.setattr(bench, "scenarios", lambda: iter([scenario(measure=played.measure)]))
    code, output = invoke("--server", "sansio", "--rounds", "2")
    assert code == 0
    assert set(played.order) == {"sansio"}
    assert "1.5 us" in output
    assert "mark" not in output


def test_a_server_that_answers_wrongly_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(_server: object, _seconds: float) -> dict[str, float]:
        raise WrongAnswer("{'id': 7}")

    Played(monkeypatch, {})
    monkeypatch.setattr(bench, "scenarios", lambda: iter([scenario(measure=measure)]))
    code, output = invoke()
    assert code == 1
    assert "pings: {'id': 7}" in output
