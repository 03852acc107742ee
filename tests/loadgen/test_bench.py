"""Measuring servers in turns, and the rows that come of it."""

import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import attrs
import orjson
import pytest

from loadgen import bench
from loadgen.bench import TURNS, InTurns, Prepared, Scenario, rows, scenarios
from loadgen.servers import OURS, PEERS, running_all
from loadgen.tables import BenchPlan, TableError
from loadgen.wire import WireConnection, WrongAnswer
from tests.loadgen.answering import answering, error


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
        self.settings: object = None
        monkeypatch.setattr(bench, "running", self._running)

    def _running(self, name: str, settings: object) -> "Played":
        self.order.append(name)
        self.settings = settings
        return self

    def __enter__(self) -> str:
        return self.order[-1]

    def __exit__(self, *_: object) -> None: ...

    def measure(self, name: str, _seconds: float) -> dict[str, float]:
        return {"us": self.figures[name].pop(0), "p99_ms": 7.0}


def test_servers_take_turns_and_the_median_of_the_rounds_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played(monkeypatch, {"sansio": [10.0, 99.0, 12.0], "aiohttp": [20.0, 24.0, 1.0]})
    line = scenario(measure=played.measure, settings={"llm.max_queue": 1})
    (row,) = rows([line], BenchPlan(rounds=3))
    assert played.order == ["sansio", "aiohttp"] * 3
    assert played.settings == {"llm.max_queue": 1}
    assert (row.value("sansio"), row.value("aiohttp")) == (12.0, 20.0)
    assert row.extra == {"sansio": {"p99_ms": 7.0}, "aiohttp": {"p99_ms": 7.0}}


def test_where_turns_are_short_all_servers_are_up_and_nobody_is_always_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[tuple[str, float]] = []
    up: list[str] = []

    @contextmanager
    def running_all(names: tuple[str, ...], settings: object) -> Iterator[list[Any]]:
        yield [SimpleNamespace(name=name, settings=settings) for name in names]

    @contextmanager
    def prepare(server: Any) -> Iterator[Prepared]:
        assert server.settings == {"llm.max_queue": 1}
        up.append(server.name)

        def turn(seconds: float) -> dict[str, float]:
            assert sorted(up) == ["aiohttp", "sansio"]
            asked.append((server.name, seconds))
            return {"us": float(len(asked)), "p99_ms": 7.0, "worst_ms": float(len(asked))}

        yield Prepared(turn, [])
        up.remove(server.name)

    monkeypatch.setattr(bench, "running_all", running_all)
    line = scenario(measure=InTurns(prepare), settings={"llm.max_queue": 1})
    (row,) = rows([line], BenchPlan(rounds=2, seconds=3.0))
    assert [seconds for _, seconds in asked] == [3.0 / TURNS] * (2 * 2 * TURNS)
    assert [name for name, _ in asked[:5]] == ["sansio", "aiohttp", "aiohttp", "sansio", "sansio"]
    assert up == []
    # The median of each round's turns, and of the rounds.
    assert (row.value("sansio"), row.value("aiohttp")) == (20.5, 20.5)
    assert len(row.rounds["sansio"]) == 2
    # Of what is the worst, the worst.
    assert row.extra == {
        "sansio": {"p99_ms": 7.0, "worst_ms": 40.0},
        "aiohttp": {"p99_ms": 7.0, "worst_ms": 39.0},
    }


def served(frame: bytes) -> tuple[WireConnection, socket.socket]:
    """An open connection, and the server's end of it, where this was sent."""
    client, server = socket.socketpair()
    client.setblocking(False)
    server.settimeout(5)
    server.sendall(frame)
    return WireConnection(client), server


def test_who_waits_for_a_turn_answers_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers close connections from which no pong comes, and another's turn may be long."""
    waiting, its_server = served(b"\x89\x02hi")
    pongs: list[bytes] = []

    @contextmanager
    def running_all(names: tuple[str, ...], settings: object) -> Iterator[list[Any]]:
        yield [SimpleNamespace(name=name) for name in names]

    @contextmanager
    def prepare(server: Any) -> Iterator[Prepared]:
        def turn(_seconds: float) -> dict[str, float]:
            # The ping came before the first turn of all.
            if server.name == "aiohttp" and not pongs:
                pongs.append(its_server.recv(100))
            return {"us": 1.0}

        yield Prepared(turn, [waiting] if server.name == "sansio" else [])

    monkeypatch.setattr(bench, "running_all", running_all)
    with waiting, its_server:
        list(rows([scenario(measure=InTurns(prepare), servers=("aiohttp", "sansio"))], BenchPlan(rounds=1)))
    assert pongs == [b"\x8a\x82\x00\x00\x00\x00hi"]


def test_what_nobody_asked_for_is_a_wrong_answer() -> None:
    client, server = served(b'\x81\x08{"id":1}')
    with client, server, pytest.raises(WrongAnswer, match="'id': 1"):
        bench.answer_pings([client])


def test_servers_measured_in_turns_share_a_core_and_the_client_has_the_others() -> None:
    if not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2:
        pytest.skip("there is nothing to share out")
    before = os.sched_getaffinity(0)
    with running_all(("sansio", "trio-websocket")) as servers:
        assert [server.name for server in servers] == ["sansio", "trio-websocket"]
        cores = [os.sched_getaffinity(server.pid) for server in servers]
        assert cores == [{min(before)}] * 2
        assert os.sched_getaffinity(0) == before - {min(before)}
    assert os.sched_getaffinity(0) == before


def test_a_mark_may_be_a_figure_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played(monkeypatch, {"sansio": [16.0]})
    line = scenario(measure=played.measure, servers=("sansio",), marks=(("sansio", "20 us", 1.0),))
    (row,) = rows([line], BenchPlan(rounds=1))
    assert row.ratio(row.marks[0]) == 1.25


def test_other_figures_may_have_lines_and_marks_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played(monkeypatch, {"sansio": [16.0, 17.0]})
    line = scenario(
        measure=played.measure,
        servers=("sansio",),
        marks=(),
        more_is_better=True,
        also=(("p99_ms", (("sansio", "5 ms", 1.0),)),),
    )
    first, second = rows([line], BenchPlan(rounds=2))
    assert (first.title, second.title) == ("pings, us", "pings, p99_ms")
    assert second.rounds == {"sansio": [7.0, 7.0]}
    # Less is better of a figure beside.
    assert second.is_missed(second.marks[0])
    # They stand together, so once is enough.
    assert (first.extra, second.extra) == ({"sansio": {"p99_ms": 7.0}}, {})
    played.figures["sansio"] = [16.0]
    alone = list(rows([line], BenchPlan(rounds=1, servers=("sansio",))))
    assert [row.marks for row in alone] == [(), ()]


def test_the_table_is_of_servers_that_there_are() -> None:
    names = [each.name for each in scenarios()]
    assert len(set(names)) == len(names) == 6
    for each in scenarios():
        assert set(each.servers) <= {*OURS, *PEERS}
        assert {ours for ours, _, _ in each.marks} <= set(each.servers)
        assert {other for _, other, _ in each.marks if not other.endswith(" kB")} <= set(each.servers)


def test_a_server_that_nobody_knows_is_an_error() -> None:
    with pytest.raises(TableError, match="no such server: nginx"):
        list(rows([scenario()], BenchPlan(servers=("nginx",))))


def test_steps_stay_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played(monkeypatch, {"sansio": [100.0, 300.0]})
    line = scenario(measure=played.measure, servers=("sansio",), marks=(), in_steps=True)
    (row,) = rows([line], BenchPlan(rounds=2))
    assert row.value("sansio") == 100.0


def test_only_the_chosen_servers_run_and_without_ratios(monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played(monkeypatch, {"sansio": [1.0, 2.0]})
    (row,) = rows([scenario(measure=played.measure)], BenchPlan(rounds=2, servers=("sansio",)))
    assert set(played.order) == {"sansio"}
    assert row.value("sansio") == 1.5
    assert row.marks == ()


def test_a_row_without_any_of_the_chosen_servers_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    Played(monkeypatch, {})
    assert list(rows([scenario()], BenchPlan(servers=("picows",)))) == []


def test_only_the_wanted_rows_are_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    played = Played(monkeypatch, {"sansio": [1.0], "aiohttp": [1.0]})
    lines = [scenario(), scenario(name="broadcast", measure=played.measure)]
    assert [row.name for row in rows(lines, BenchPlan(rounds=1, only="broad"))] == ["broadcast"]


def test_descriptors_are_raised_before_a_server_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is started has the same limit, and thousands of connections to hold, in turns or not."""
    played = Played(monkeypatch, {"sansio": [1.0], "aiohttp": [1.0]})
    monkeypatch.setattr(bench, "raise_descriptor_limit", lambda: played.order.append("raised"))
    list(rows([scenario(measure=played.measure)], BenchPlan(rounds=1)))
    assert played.order == ["raised", "sansio", "aiohttp"]


def test_a_server_that_answers_wrongly_ends_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def measure(_server: object, _seconds: float) -> dict[str, float]:
        raise WrongAnswer("{'id': 7}")

    Played(monkeypatch, {})
    with pytest.raises(TableError, match=r"pings: \{'id': 7\}"):
        list(rows([scenario(measure=measure)], BenchPlan()))


@pytest.mark.parametrize(
    ("broken", "complaint"),
    [
        (KeyError("result"), "pings: KeyError: 'result'"),
        (TypeError("list indices"), "pings: TypeError: list indices"),
        (ConnectionResetError(104, "reset by peer"), "pings: ConnectionResetError: .*reset by peer"),
        (AttributeError("'list' object has no attribute 'get'"), "pings: AttributeError: 'list'"),
        (orjson.JSONDecodeError("no JSON", "", 0), "pings: JSONDecodeError: no JSON"),
    ],
)
def test_an_answer_that_is_none_names_the_row(
    monkeypatch: pytest.MonkeyPatch, broken: Exception, complaint: str
) -> None:
    def measure(_server: object, _seconds: float) -> dict[str, float]:
        raise broken

    Played(monkeypatch, {})
    with pytest.raises(TableError, match=complaint):
        list(rows([scenario(measure=measure)], BenchPlan()))


def test_a_peer_that_answers_with_errors_names_the_row(monkeypatch: pytest.MonkeyPatch) -> None:
    @contextmanager
    def running_all(_names: object, _settings: object) -> Iterator[list[Any]]:
        with answering(lambda request: [error(request, "overloaded")]) as server:
            yield [SimpleNamespace(name="sansio", url=server.url)]

    monkeypatch.setattr(bench, "running_all", running_all)
    with pytest.raises(TableError, match="pings: "):
        list(rows([scenario(measure=bench.pings(2, 1), servers=("sansio",))], BenchPlan(rounds=1)))
