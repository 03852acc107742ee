"""`python -m loadgen.bench`: ours beside the peers, in one run, as ratios.

Servers take turns within a round, so that a machine that slows down slows all of them; the median over the
rounds is shown. Rates depend on the machine; ratios carry over.
"""

import statistics
from collections.abc import Callable, Iterator, Sequence

import attrs
import click

from loadgen.servers import OURS, PEERS, ServerProcess, running
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


def _pings(connections: int, in_flight: int) -> Callable[[ServerProcess, float], dict[str, float]]:
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


def _broadcast(subscribers: int) -> Callable[[ServerProcess, float], dict[str, float]]:
    def measure(server: ServerProcess, _seconds: float) -> dict[str, float]:
        with connected(server.url, subscribers + 1) as clients:
            times = broadcast(clients, size_bytes=BROADCAST_BYTES, rounds=BROADCASTS)
        return {"ms": statistics.median(times) * 1000, "worst_ms": max(times) * 1000}

    return measure


def _memory(connections: int) -> Callable[[ServerProcess, float], dict[str, float]]:
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
            _pings(connections, 1),
            (("sansio", "uvicorn", 1.0), ("sansio", "aiohttp", 0.6), ("trio-websocket", ECHO, 0.7)),
        )
    yield Scenario(
        "ping, 10 connections, 16 in flight",
        (*web, "trio-websocket", ECHO),
        "us",
        _pings(10, 16),
        (("sansio", "aiohttp", 1.0),),
    )
    for subscribers in (500, 2000):
        yield Scenario(
            f"broadcast of {BROADCAST_BYTES} bytes to {subscribers}, last receipt",
            (*web, "trio-websocket"),
            "ms",
            _broadcast(subscribers),
            (("sansio", "aiohttp", 1 / 1.3),),
        )
    yield Scenario(
        "memory of an idle connection, 2000 connections",
        (*web, "trio-websocket"),
        "kB",
        _memory(2000),
        (("sansio", "20 kB", 1.0), ("trio-websocket", "30 kB", 1.0)),
    )


def run(scenario: Scenario, *, rounds: int, seconds: float) -> dict[str, dict[str, float]]:
    """The medians over the rounds, by server. Raises `WrongAnswer`, `RuntimeError`."""
    seen: dict[str, list[dict[str, float]]] = {name: [] for name in scenario.servers}
    for _ in range(rounds):
        for name in scenario.servers:
            with running(name) as server:
                seen[name].append(scenario.measure(server, seconds))
    return {
        name: {key: statistics.median(figures[key] for figures in all_) for key in all_[0]}
        for name, all_ in seen.items()
    }


def lines(scenario: Scenario, figures: dict[str, dict[str, float]]) -> Iterator[str]:
    """One scenario's part of the report."""
    yield f"## {scenario.name}"
    for name, values in figures.items():
        yield f"  {name:20}" + "".join(f"{value:12.1f} {key}" for key, value in values.items())
    for ours, other, mark in scenario.marks:
        bound = float(other.split()[0]) if other not in figures else figures[other][scenario.unit]
        ratio = bound / figures[ours][scenario.unit]
        yield f"  {ours} / {other}: {ratio:.2f} (mark {mark:.2f}) {'ok' if ratio >= mark else 'MISSED'}"


@click.command(context_settings={"show_default": True})
@click.option("--rounds", type=click.IntRange(1), default=3, help="Times each server is measured.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=2.0, help="Length of one.")
@click.option("--only", default="", help="Scenarios whose names hold this.")
@click.option("--server", "servers", multiple=True, help="Only these, and without ratios.")
def main(rounds: int, seconds: float, only: str, servers: Sequence[str]) -> None:
    """Measure ours and the peers, and compare."""
    unknown = set(servers) - {*OURS, *PEERS}
    if unknown:
        raise click.UsageError(f"no such server: {', '.join(sorted(unknown))}")
    for scenario in scenarios():
        if only not in scenario.name:
            continue
        chosen = _only(scenario, servers) if servers else scenario
        try:
            figures = run(chosen, rounds=rounds, seconds=seconds)
        except (WrongAnswer, RuntimeError) as exc:
            raise click.ClickException(f"{scenario.name}: {exc}") from None
        for line in lines(chosen, figures):
            click.echo(line)


def _only(scenario: Scenario, servers: Sequence[str]) -> Scenario:
    chosen = tuple(name for name in scenario.servers if name in servers)
    return attrs.evolve(scenario, servers=chosen, marks=())


if __name__ == "__main__":
    main(prog_name="python -m loadgen.bench")
