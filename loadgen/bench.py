"""`loadgen bench transport`: ours beside the peers, in one run, as ratios.

Servers take turns within a round, so that a machine that slows down slows all of them; the median over the
rounds is shown. Rates depend on the machine; ratios carry over.
"""

import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

import attrs

from loadgen.servers import OURS, PEERS, ServerProcess, running
from loadgen.tables import BenchPlan, Mark, Row, TableError
from loadgen.wire import WrongAnswer, broadcast, connected, ping_loop

WARM_UP_S = 0.5
BROADCAST_BYTES = 500
BROADCASTS = 20
ECHO = "trio-websocket echo"


@attrs.frozen
class Scenario:
    """One line of the table. `measure` gives figures by name, the first being the one compared."""

    name: str
    servers: tuple[str, ...]
    unit: str
    measure: Callable[[ServerProcess, float], dict[str, float]]
    marks: tuple[tuple[str, str, float], ...]
    """Server, the one it is compared with, and the ratio that is the mark."""
    more_is_better: bool = False
    settings: Mapping[str, object] = attrs.field(factory=dict)
    """Ours, as `servers.running` takes them."""
    note: str = ""


def pings(connections: int, in_flight: int) -> Callable[[ServerProcess, float], dict[str, float]]:
    def measure(server: ServerProcess, seconds: float) -> dict[str, float]:
        is_echo = server.name == ECHO
        with connected(server.url, connections) as clients:
            ping_loop(clients, seconds=WARM_UP_S, in_flight=in_flight, is_echo=is_echo)
            before = sum(client.answered for client in clients)
            cpu_s = server.cpu_s()
            latencies = ping_loop(clients, seconds=seconds, in_flight=in_flight, is_echo=is_echo)
            cpu_s = server.cpu_s() - cpu_s
            count = sum(client.answered for client in clients) - before
        return {
            "us": cpu_s / count * 1e6,
            "rate": count / seconds,
            "p99_ms": statistics.quantiles(latencies, n=100)[98] * 1000,
        }

    return measure


def fan_out(subscribers: int) -> Callable[[ServerProcess, float], dict[str, float]]:
    def measure(server: ServerProcess, _seconds: float) -> dict[str, float]:
        with connected(server.url, subscribers + 1) as clients:
            times = broadcast(clients, size_bytes=BROADCAST_BYTES, rounds=BROADCASTS)
        return {"ms": statistics.median(times) * 1000, "worst_ms": max(times) * 1000}

    return measure


def idle_memory(connections: int) -> Callable[[ServerProcess, float], dict[str, float]]:
    def measure(server: ServerProcess, _seconds: float) -> dict[str, float]:
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
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in scenario.servers}
    for _ in range(rounds):
        for name in scenario.servers:
            with running(name, scenario.settings) as server:
                seen[name].append(scenario.measure(server, seconds))
    return seen


def row(scenario: Scenario, seen: dict[str, list[dict[str, float]]]) -> Row:
    """A line of the table."""
    others = {
        name: {
            key: statistics.median(figures[key] for figures in all_)
            for key in all_[0]
            if key != scenario.unit
        }
        for name, all_ in seen.items()
    }
    return Row(
        name=scenario.name,
        unit=scenario.unit,
        rounds={name: [figures[scenario.unit] for figures in all_] for name, all_ in seen.items()},
        more_is_better=scenario.more_is_better,
        marks=tuple(Mark(*mark) for mark in scenario.marks),
        bounds={other: float(other.split()[0]) for _, other, _ in scenario.marks if other not in seen},
        extra=others,
        note=scenario.note,
    )


def rows(lines: Iterable[Scenario], plan: BenchPlan) -> Iterator[Row]:
    """Measure what the plan wants of a table."""
    unknown = set(plan.servers) - {*OURS, *PEERS}
    if unknown:
        raise TableError(f"no such server: {', '.join(sorted(unknown))}")
    for scenario in lines:
        if plan.only in scenario.name:
            chosen = _only(scenario, plan.servers) if plan.servers else scenario
            try:
                yield row(chosen, run(chosen, rounds=plan.rounds, seconds=plan.seconds))
            except (WrongAnswer, RuntimeError) as exc:
                raise TableError(f"{scenario.name}: {exc}") from None


def measure(plan: BenchPlan) -> Iterator[Row]:
    """See `tables.TABLES`."""
    yield from rows(scenarios(), plan)


def _only(scenario: Scenario, servers: Sequence[str]) -> Scenario:
    chosen = tuple(name for name in scenario.servers if name in servers)
    return attrs.evolve(scenario, servers=chosen, marks=())
