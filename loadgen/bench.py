"""`loadgen bench transport`: ours beside the peers, in one run, as ratios.

Servers take turns within a round, so that a machine that slows down slows all of them; the median over the
rounds is shown. Pings and broadcasts are measured in turns of a fraction of a second, with all servers up on
the same core and one at a time asked: in the seconds of a whole round a shared machine may change its speed
by a quarter. Rates depend on the machine; ratios carry over.
"""

import statistics
import time
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

import attrs

from loadgen.driver import raise_descriptor_limit
from loadgen.servers import OURS, PEERS, ServerProcess, running, running_all
from loadgen.tables import BenchPlan, Mark, Row, TableError
from loadgen.wire import WireConnection, WrongAnswer, broadcast, connected, ping_loop, subscribe

Figures = dict[str, float]
Measure = Callable[[ServerProcess, float], Figures]
"""Measures a server for so many seconds."""
Turn = Callable[[float], Figures]
"""The same of a server that is prepared."""

WARM_UP_S = 0.5
TURNS = 10
"""Of each server in a round, where they are short."""
SETTLE_S = 0.02
"""Of each turn, before it is measured."""
BROADCAST_BYTES = 500
BROADCASTS = 2
"""Measured in a turn, after one that is not."""
TOPIC = "bench"
ECHO = "trio-websocket echo"


@attrs.frozen
class Prepared:
    """A server that can be measured in turns, and the connections that are open to it meanwhile."""

    turn: Turn
    clients: list[WireConnection]


@attrs.frozen
class InTurns:
    """How to measure where many short turns are fairer than a long one."""

    prepare: Callable[[ServerProcess], AbstractContextManager[Prepared]]


@attrs.frozen
class Scenario:
    """One line of the table. `measure` gives figures by name, the first being the one compared."""

    name: str
    servers: tuple[str, ...]
    unit: str
    measure: Measure | InTurns
    marks: tuple[tuple[str, str, float], ...]
    """Server, the one it is compared with, and the ratio that is the mark."""
    more_is_better: bool = False
    in_steps: bool = False
    """See `tables.Row`."""
    settings: Mapping[str, object] = attrs.field(factory=dict)
    """Ours, as `servers.running` takes them."""
    also: tuple[tuple[str, tuple[tuple[str, str, float], ...]], ...] = ()
    """Figures that have a line of their own below, and their marks; less of them is better."""
    note: str = ""


def pings(connections: int, in_flight: int) -> InTurns:
    @contextmanager
    def prepare(server: ServerProcess) -> Iterator[Prepared]:
        def ping(seconds: float) -> "array[float]":
            return ping_loop(clients, seconds=seconds, in_flight=in_flight, is_echo=server.name == ECHO)

        def turn(seconds: float) -> Figures:
            ping(SETTLE_S)
            before, cpu_s = sum(client.answered for client in clients), server.loop_cpu_s()
            started = time.perf_counter()
            latencies = ping(seconds)
            # What is under way at the end is waited for.
            took_s = time.perf_counter() - started
            cpu_s = server.loop_cpu_s() - cpu_s
            count = sum(client.answered for client in clients) - before
            return {
                "us": cpu_s / count * 1e6,
                "rate": count / took_s,
                "p99_ms": statistics.quantiles(latencies, n=100)[98] * 1000,
            }

        with connected(server.url, connections) as clients:
            ping(WARM_UP_S)
            yield Prepared(turn, clients)

    return InTurns(prepare)


def fan_out(subscribers: int) -> InTurns:
    @contextmanager
    def prepare(server: ServerProcess) -> Iterator[Prepared]:
        def turn(_seconds: float) -> Figures:
            _, *times = broadcast(clients, TOPIC, size_bytes=BROADCAST_BYTES, rounds=1 + BROADCASTS)
            return {"ms": statistics.median(times) * 1000, "worst_ms": max(times) * 1000}

        with connected(server.url, subscribers + 1) as clients:
            subscribe(clients, TOPIC)
            yield Prepared(turn, clients)

    return InTurns(prepare)


def idle_memory(connections: int) -> Measure:
    def measure(server: ServerProcess, _seconds: float) -> Figures:
        # What a first client brings into memory is the server's, and not the connections'.
        with connected(server.url, 50) as clients:
            ping_loop(clients, seconds=WARM_UP_S, is_echo=server.name == ECHO)
        before = server.resident_bytes()
        with connected(server.url, connections) as clients:
            for client in clients:
                client.call("system.ping", {"payload": None})
            return {"kB": (server.resident_bytes() - before) / connections / 1000}

    return measure


def scenarios() -> Iterator[Scenario]:
    """The table's lines."""
    web = ("sansio", "aiohttp", "uvicorn")
    for connections in (50, 500):
        yield Scenario(
            f"ping, {connections} connections, closed loop",
            (*web, "trio-websocket", ECHO),
            "us",
            pings(connections, 1),
            (("sansio", "uvicorn", 1.0), ("sansio", "aiohttp", 0.6), ("trio-websocket", ECHO, 0.7)),
        )
    yield Scenario(
        "ping, 10 connections, 16 in flight",
        (*web, "trio-websocket", ECHO),
        "us",
        pings(10, 16),
        (("sansio", "aiohttp", 1.0),),
    )
    for subscribers in (500, 2000):
        yield Scenario(
            f"broadcast of {BROADCAST_BYTES} bytes to {subscribers}, last receipt",
            (*web, "trio-websocket"),
            "ms",
            fan_out(subscribers),
            (("sansio", "aiohttp", 1 / 1.3),),
        )
    yield Scenario(
        "memory of an idle connection, 2000 connections",
        (*web, "trio-websocket"),
        "kB",
        idle_memory(2000),
        (("sansio", "20 kB", 1.0), ("trio-websocket", "30 kB", 1.0)),
    )


def run(scenario: Scenario, *, rounds: int, seconds: float) -> dict[str, list[dict[str, float]]]:
    """The figures of each round, by server. Raises `WrongAnswer`, `RuntimeError`."""
    # Every server's connections may be open here at once; what is started has the same limit.
    raise_descriptor_limit()
    seen: dict[str, list[Figures]] = {name: [] for name in scenario.servers}
    for _ in range(rounds):
        if isinstance(scenario.measure, InTurns):
            for name, turns in _turns(scenario, scenario.measure, seconds).items():
                seen[name].append(medians(turns))
            continue
        for name in scenario.servers:
            with running(name, scenario.settings) as server:
                seen[name].append(scenario.measure(server, seconds))
    return seen


def _turns(scenario: Scenario, in_turns: InTurns, seconds: float) -> dict[str, list[Figures]]:
    """A round in which all servers are up; `seconds` are those of each in all."""
    seen: dict[str, list[Figures]] = {name: [] for name in scenario.servers}
    with ExitStack() as stack:
        servers = stack.enter_context(running_all(scenario.servers, scenario.settings))
        prepared = [(server.name, stack.enter_context(in_turns.prepare(server))) for server in servers]
        clients = [client for _, each in prepared for client in each.clients]
        for _ in range(TURNS):
            for name, each in prepared:
                answer_pings(clients)
                seen[name].append(each.turn(seconds / TURNS))
            # Nobody always comes after the same one.
            prepared.reverse()
    return seen


def answer_pings(clients: Iterable[WireConnection]) -> None:
    """While it was others' turn, the server may have asked whether they are still there. Raises
    `WrongAnswer`."""
    for client in clients:
        for message in client.receive():
            raise WrongAnswer(f"nobody asked for {message}")


def medians(all_: Sequence[Figures]) -> Figures:
    """Of each figure; of what is the worst of something, the worst."""
    return {
        key: (max if key.startswith("worst_") else statistics.median)(figures[key] for figures in all_)
        for key in all_[0]
    }


def lines(scenario: Scenario, seen: dict[str, list[Figures]]) -> Iterator[Row]:
    """Of the table."""
    yield row(scenario, seen)
    for unit, marks in scenario.also:
        beside = attrs.evolve(scenario, unit=unit, marks=marks, more_is_better=False, note="")
        yield attrs.evolve(row(beside, seen), extra={})


def row(scenario: Scenario, seen: dict[str, list[Figures]]) -> Row:
    """The line of the figure that is compared."""
    others = {
        name: {key: value for key, value in medians(all_).items() if key != scenario.unit}
        for name, all_ in seen.items()
    }
    return Row(
        name=scenario.name,
        unit=scenario.unit,
        rounds={name: [figures[scenario.unit] for figures in all_] for name, all_ in seen.items()},
        more_is_better=scenario.more_is_better,
        in_steps=scenario.in_steps,
        marks=tuple(Mark(*mark) for mark in scenario.marks),
        bounds={other: float(other.split()[0]) for _, other, _ in scenario.marks if other not in seen},
        extra=others,
        note=scenario.note,
    )


def rows(scenarios: Iterable[Scenario], plan: BenchPlan) -> Iterator[Row]:
    """Measure what the plan wants of a table. Raises `TableError`, which names the row that it was at."""
    unknown = set(plan.servers) - {*OURS, *PEERS}
    if unknown:
        raise TableError(f"no such server: {', '.join(sorted(unknown))}")
    for scenario in scenarios:
        chosen = _only(scenario, plan.servers) if plan.servers else scenario
        if plan.only not in scenario.name or not chosen.servers:
            continue
        try:
            seen = run(chosen, rounds=plan.rounds, seconds=plan.seconds)
        except (WrongAnswer, RuntimeError) as exc:
            raise TableError(f"{scenario.name}: {exc}") from None
        except (LookupError, TypeError, AttributeError, ValueError, OSError) as exc:
            # What a server says may have any shape, and it may go away at any time.
            raise TableError(f"{scenario.name}: {type(exc).__name__}: {exc}") from exc
        yield from lines(chosen, seen)


def measure(plan: BenchPlan) -> Iterator[Row]:
    """See `tables.TABLES`."""
    yield from rows(scenarios(), plan)


def _only(scenario: Scenario, servers: Sequence[str]) -> Scenario:
    chosen = tuple(name for name in scenario.servers if name in servers)
    also = tuple((unit, ()) for unit, _ in scenario.also)
    return attrs.evolve(scenario, servers=chosen, marks=(), also=also)
