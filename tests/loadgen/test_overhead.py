"""What the monitor costs: pairs in turns, and the median of their ratios."""

import os
import signal

import pytest
from click.testing import CliRunner

from loadgen import overhead
from loadgen.overhead import SERVER, Pair, lines, measure, sample_s, summary
from loadgen.servers import running
from loadgen.wire import WireConnection, WrongAnswer, connected, ping_loop


def test_the_cost_is_the_throughput_that_is_lost() -> None:
    assert Pair(20.0, 19.0).cost == pytest.approx(0.05)
    assert Pair(19.0, 19.0).cost == 0


def test_the_median_counts_and_the_spread_is_said() -> None:
    cost, error = summary([Pair(100.0, 99.0), Pair(100.0, 98.0), Pair(100.0, 10.0)])
    assert cost == pytest.approx(0.02)
    assert error > 0.3
    _, calm = summary([Pair(100.0, 98.0)] * 5)
    assert calm == pytest.approx(0)


@pytest.mark.parametrize(
    ("with_us", "look_s", "p95", "verdicts"),
    [
        (101.0, 0.001, 0.004, ["ok", "ok"]),
        (110.0, 0.001, 0.006, ["MISSED", "MISSED"]),
        (101.0, 0.03, 0.004, ["MISSED", "ok"]),
    ],
)
def test_it_says_whether_the_marks_are_met(
    with_us: float, look_s: float, p95: float, verdicts: list[str]
) -> None:
    many = {"p50": 0.001, "p95": p95, "p99": 0.009}
    told = list(lines([Pair(with_us, 100.0)] * 3, {"p50": look_s}, many, 2000))
    assert [line.split()[-1] for line in told[1:]] == verdicts


def test_a_server_that_answers_wrongly_fails_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> list[Pair]:
        raise WrongAnswer("{'id': 7}")

    monkeypatch.setattr(overhead, "measure", fail)
    done = CliRunner().invoke(overhead.main, ["--rounds", "2"])
    assert done.exit_code == 1
    assert "{'id': 7}" in done.output


@pytest.mark.slow
def test_it_switches_a_real_server() -> None:
    def counted(client: WireConnection) -> int:
        by_method = client.call("system.metrics", {})["requests"]["by_method"]
        return int(by_method["system.ping"]["count"])

    with running(SERVER) as server:
        pairs = list(measure(server, 3, 0.1, 1))
        assert all(pair.with_us > 0 and pair.without_us > 0 for pair in pairs)
        with connected(server.url, 1) as (client,):
            before = counted(client)
            assert before > 0
            # It was switched off three times and on twice.
            ping_loop([client], seconds=0.1)
            assert counted(client) == before
            os.kill(server.pid, signal.SIGUSR2)
            ping_loop([client], seconds=0.1)
            assert counted(client) > before
        assert sample_s(server, 20, 2.5)["p50"] > 0
