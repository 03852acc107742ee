"""`python -m loadgen.overhead`: what the monitor and the counting of calls cost, as a share of a ping.

One server under load counts and does not, in turns of a fraction of a second, so that a machine that
speeds up or slows down favours neither. Each pair of turns has the other order than the one before. The
median of the pairs' ratios counts, of processor time a message: it says the same whether the client or the
server was the bottleneck. To that comes the share of a second that the monitor's look takes, of which there
is one a second.
"""

import math
import os
import signal
import statistics
import time
from collections.abc import Iterator, Mapping, Sequence

import attrs
import click

from loadgen.servers import ServerProcess, running
from loadgen.wire import WrongAnswer, connected, ping_loop

SERVER = "sansio, switched"
CONNECTIONS = 50
WARM_UP_S = 0.5
SETTLE_S = 0.02
"""After the switch, before a turn is measured."""
MARK = 0.03
"""What they may cost."""
SAMPLE_MARK_S = 0.005
"""What 95 of 100 looks of the monitor may take; the machine itself is away for longer now and then."""
SAMPLES_S = 20.0
"""A look a second."""


@attrs.frozen
class Pair:
    """Microseconds of the server's processor time a ping, with and without, measured side by side."""

    with_us: float
    without_us: float

    @property
    def cost(self) -> float:
        """The share of throughput that is lost: of pings a second of processor time."""
        return 1 - self.without_us / self.with_us


def measure(server: ServerProcess, rounds: int, seconds: float, in_flight: int) -> Iterator[Pair]:
    """So many pairs of turns, each of so many seconds. Raises `WrongAnswer`."""
    with connected(server.url, CONNECTIONS) as clients:

        def ping_us() -> float:
            ping_loop(clients, seconds=SETTLE_S, in_flight=in_flight)
            before, cpu_s = sum(client.answered for client in clients), server.loop_cpu_s()
            ping_loop(clients, seconds=seconds, in_flight=in_flight)
            cpu_s = server.loop_cpu_s() - cpu_s
            return cpu_s / (sum(client.answered for client in clients) - before) * 1e6

        ping_loop(clients, seconds=WARM_UP_S, in_flight=in_flight)
        counts = True
        for _ in range(rounds):
            # Goes on as it is, and is switched in the middle of the pair.
            first = ping_us()
            os.kill(server.pid, signal.SIGUSR2)
            second = ping_us()
            yield Pair(first, second) if counts else Pair(second, first)
            counts = not counts


def summary(pairs: Sequence[Pair]) -> tuple[float, float]:
    """The median cost, and its standard error as the spread of the pairs gives it (1.25 is a median's, in
    units of a mean's, where values are spread normally)."""
    costs = [pair.cost for pair in pairs]
    spread = statistics.stdev(costs) if len(costs) > 1 else math.inf
    return statistics.median(costs), 1.25 * spread / math.sqrt(len(costs))


def sample_s(server: ServerProcess, connections: int, seconds: float) -> dict[str, float]:
    """What a look of the monitor takes with so many connections and somebody who watches: percentiles, in
    seconds, as the server tells them."""
    with connected(server.url, connections) as clients:
        clients[0].call("events.subscribe", {"topics": ["system.metrics"]})
        time.sleep(seconds)
        figures: dict[str, float] = clients[-1].call("system.metrics", {})["monitor"]["sample_s"]
        return figures


@click.command(context_settings={"show_default": True})
@click.option("--rounds", type=click.IntRange(2), default=200, help="Pairs of turns that are measured.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=0.2, help="Length of one turn.")
@click.option("--in-flight", type=click.IntRange(1), default=1, help="Pings under way on each connection.")
@click.option("--connections", type=click.IntRange(2), default=2000, help="For the length of a look.")
def main(rounds: int, seconds: float, in_flight: int, connections: int) -> None:
    """Measure what the monitor and the metrics cost."""
    try:
        with running(SERVER) as server:
            pairs = list(measure(server, rounds, seconds, in_flight))
        looks = {}
        for number in (CONNECTIONS, connections):
            with running(SERVER) as server:
                looks[number] = sample_s(server, number, SAMPLES_S)
    except (WrongAnswer, RuntimeError) as exc:
        raise click.ClickException(str(exc)) from None
    for line in lines(pairs, looks[CONNECTIONS], looks[connections], connections):
        click.echo(line)


def lines(
    pairs: Sequence[Pair], few: Mapping[str, float], many: Mapping[str, float], connections: int
) -> Iterator[str]:
    """What was measured, and whether it is within the marks."""
    counting, error = summary(pairs)
    with_us = statistics.median(pair.with_us for pair in pairs)
    cost = counting + few["p50"]
    verdict = "ok" if cost <= MARK else "MISSED"
    yield f"a ping, {CONNECTIONS} connections: {with_us:.1f} us; counting it {counting:.1%} +- {error:.1%}"
    yield f"with a look a second of {few['p50'] * 1000:.1f} ms: {cost:.1%} (mark {MARK:.0%}) {verdict}"
    shown = ", ".join(f"{name} {value * 1000:.1f} ms" for name, value in many.items())
    verdict = "ok" if many["p95"] < SAMPLE_MARK_S else "MISSED"
    yield f"a look with {connections} connections: {shown} (mark {SAMPLE_MARK_S * 1000:.0f} ms) {verdict}"


if __name__ == "__main__":
    main(prog_name="python -m loadgen.overhead")
