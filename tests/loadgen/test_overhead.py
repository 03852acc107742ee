"""What the monitor costs: pairs in turns, and the median of their ratios."""

import pytest
from click.testing import CliRunner

from loadgen import overhead
from loadgen.overhead import WITH, WITHOUT, Pair, measure, sample_s, summary
from loadgen.wire import WrongAnswer


def test_the_cost_is_the_throughput_that_is_lost() -> None:
    assert Pair(20.0, 19.0).cost == pytest.approx(0.05)
    assert Pair(19.0, 19.0).cost == 0


def test_each_pair_is_in_the_other_order_than_the_one_before() -> None:
    order: list[str] = []

    def measured(name: str) -> float:
        order.append(name)
        return float(len(order))

    pairs = list(measure(2, measured))
    assert order == [WITHOUT, WITH, WITH, WITHOUT]
    assert pairs == [Pair(2.0, 1.0), Pair(3.0, 4.0)]


def test_the_median_counts_and_the_spread_is_said() -> None:
    cost, error = summary([Pair(100.0, 99.0), Pair(100.0, 98.0), Pair(100.0, 10.0)])
    assert cost == pytest.approx(0.02)
    assert error > 0.3
    _, calm = summary([Pair(100.0, 98.0)] * 5)
    assert calm == pytest.approx(0)


@pytest.mark.parametrize(
    ("with_us", "p95", "verdicts"), [(101.0, 0.004, ["ok", "ok"]), (110.0, 0.006, ["MISSED", "MISSED"])]
)
def test_it_says_whether_the_marks_are_met(
    with_us: float, p95: float, verdicts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(overhead, "ping_us", lambda name, *_: with_us if name == WITH else 100.0)
    monkeypatch.setattr(overhead, "sample_s", lambda *_: {"p50": 0.001, "p95": p95, "p99": 0.009})
    done = CliRunner().invoke(overhead.main, ["--rounds", "2"])
    assert [line.split()[-1] for line in done.output.splitlines()[-2:]] == verdicts


def test_a_server_that_answers_wrongly_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def ping_us(*_: object) -> float:
        raise WrongAnswer("{'id': 7}")

    monkeypatch.setattr(overhead, "ping_us", ping_us)
    done = CliRunner().invoke(overhead.main, ["--rounds", "2"])
    assert done.exit_code == 1
    assert "{'id': 7}" in done.output


@pytest.mark.slow
def test_it_measures_real_servers() -> None:
    for name in (WITH, WITHOUT):
        assert overhead.ping_us(name, 0.3, 1) > 0
    assert sample_s(20, 2.5)["p50"] > 0
