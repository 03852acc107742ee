"""How fairly slots are shared: the figures, and a small crowd on a real server."""

import pytest
from click.testing import CliRunner

from loadgen import fairness
from loadgen.fairness import Crowd, Run, Turn, equals_table, greedy_table, measure
from loadgen.wire import WrongAnswer


def run(*waits_s: tuple[float, ...], greedy: int = 0, meanwhile: int = 0, took_s: float = 10.0) -> Run:
    """Single clients with their waits, beside so many turns of a greedy one. `meanwhile` is what was served
    while the last one waited, and nothing while the others did."""
    turns = [
        Turn(True, n, wait_s, meanwhile if waits is waits_s[-1] else 0)
        for waits in waits_s
        for n, wait_s in enumerate(waits)
    ]
    turns += [Turn(False, n, 99.0, 99) for n in range(greedy)]
    return Run(Crowd(singles=len(waits_s), turns=len(waits_s[0])), tuple(turns), took_s)


def test_a_round_is_as_long_as_a_turn_of_each() -> None:
    # 8 turns in 10 s, and 2 clients.
    assert run((1, 2), (3, 4), greedy=4).round_s == 2.5


def test_waits_are_compared_where_clients_asked_for_the_nth_time() -> None:
    both = run((1, 9), (4, 10), greedy=2, meanwhile=3)
    assert both.spreads_s() == [3, 1]
    assert both.rounds_apart() == 1.5
    assert both.waits_s() == [1, 4, 9, 10]
    assert both.greedy_share() == pytest.approx(2 / 6)


@pytest.mark.parametrize(("meanwhile", "verdict"), [(2, "1.00 rounds (mark 1: ok)"), (3, "1.50 rounds")])
def test_the_tables_say_whether_the_mark_was_met(meanwhile: int, verdict: str) -> None:
    head, _, row = equals_table(run((1, 9), (5, 9), meanwhile=meanwhile), slots=4)
    assert verdict in row
    assert ("**missed**" in row) == (meanwhile == 3)
    assert "| 4.00 s, 0.00 s |" in row
    assert head.count("|") == row.count("|")
    lines = list(greedy_table([(run((1,), greedy=1), run((2,), greedy=3))]))
    assert "clients in turn | 1.00 s | 1.00 s | 50% |" in lines[2]
    assert "first come, first served | 2.00 s | 2.00 s | 75% |" in lines[3]
    # Every row has as many cells as the head.
    assert {line.count("|") for line in lines} == {lines[0].count("|")}


@pytest.mark.parametrize(("meanwhile", "status"), [(2, 0), (3, 1)])
def test_the_command_fails_where_the_mark_is_missed(
    meanwhile: int, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[Crowd, bool]] = []

    def played(_engine: str, crowd: Crowd, *, slots: int, in_order_of_coming: bool = False) -> Run:
        assert slots == 3
        asked.append((crowd, in_order_of_coming))
        return run((1.0,), (5.0,), meanwhile=meanwhile)

    monkeypatch.setattr(fairness, "measure", played)
    result = CliRunner().invoke(fairness.main, ["--clients=7", "--slots=3", "--singles=20", "--turns=1"])
    assert result.exit_code == status
    assert [(c.singles, c.greedy, fifo) for c, fifo in asked] == [
        (7, 0, False),
        (20, 1, False),
        (20, 1, True),
        (2, 10, False),
        (2, 10, True),
    ]
    assert "| clients | slots |" in result.output


def test_a_server_that_answers_something_else_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(*_: object, **__: object) -> Run:
        raise WrongAnswer("overloaded")

    monkeypatch.setattr(fairness, "measure", wrong)
    result = CliRunner().invoke(fairness.main, [])
    assert result.exit_code == 1
    assert result.output == "Error: overloaded\n"


@pytest.mark.slow
@pytest.mark.parametrize("engine", fairness.OURS)
def test_equal_clients_on_a_real_server_are_no_more_than_a_round_apart(engine: str) -> None:
    found = measure(engine, Crowd(singles=40, turns=2), slots=4)
    assert len(found.turns) == 80
    # Give or take the slots that are granted while a message is on its way.
    assert found.rounds_apart() <= 1 + 4 / 40


@pytest.mark.slow
def test_a_greedy_client_gets_what_a_single_one_gets_and_more_where_first_come_is_first_served() -> None:
    crowd = Crowd(singles=10, turns=2, greedy=1)
    fair = measure("sansio", crowd, slots=2)
    fifo = measure("sansio", crowd, slots=2, in_order_of_coming=True)
    # One party of eleven, and ten requests of twenty; the ends of a run blur both.
    assert fair.greedy_share() < 0.25 < fifo.greedy_share()
    assert sum(fair.waits_s()) < sum(fifo.waits_s())
