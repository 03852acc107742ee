"""`python -m loadgen.overhead`: what the monitor and the counting of calls cost, as a share of a ping.

The same server with and without them takes turns, in pairs of short rounds within one run, each pair in the
other order than the one before, so that a machine that speeds up or slows down favours neither. The median of
the pairs' ratios counts, of processor time a message: it says the same whether the client or the server was
the bottleneck.
"""

import math
import statistics
import time
from collections.abc import Callable, Iterable, Sequence

import attrs
import click

from loadgen.servers import running
from loadgen.wire import WrongAnswer, connected, ping_loop

WITH, WITHOUT = "sansio", "sansio, unmonitored"
CONNECTIONS = 50
WARM_UP_S = 0.5
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


def ping_us(name: str, seconds: float, in_flight: int) -> float:
    """Microseconds of processor time that this server takes for a ping. Raises as `running` does."""
    with running(name) as server, connected(server.url, CONNECTIONS) as clients:
        ping_loop(clients, seconds=WARM_UP_S, in_flight=in_flight)
        before, cpu_s = sum(client.answered for client in clients), server.cpu_s()
        ping_loop(clients, seconds=seconds, in_flight=in_flight)
        cpu_s = server.cpu_s() - cpu_s
        return cpu_s / (sum(client.answered for client in clients) - before) * 1e6


def measure(rounds: int, measured: Callable[[str], float]) -> Iterable[Pair]:
    """So many pairs; `measured` gives the microseconds of one server."""
    for number in range(rounds):
        names = (WITH, WITHOUT) if number % 2 else (WITHOUT, WITH)
        figures = {name: measured(name) for name in names}
        yield Pair(figures[WITH], figures[WITHOUT])


def summary(pairs: Sequence[Pair]) -> tuple[float, float]:
    """The median cost, and its standard error as the spread of the pairs gives it (1.25 is a median's, in
    units of a mean's, where values are spread normally)."""
    costs = [pair.cost for pair in pairs]
    spread = statistics.stdev(costs) if len(costs) > 1 else math.inf
    return statistics.median(costs), 1.25 * spread / math.sqrt(len(costs))


def sample_s(connections: int, seconds: float) -> dict[str, float]:
    """What a look of the monitor takes with so many connections and somebody who watches: percentiles, in
    seconds, as the server tells them. Raises as `running` does."""
    with running(WITH) as server, connected(server.url, connections) as clients:
        clients[0].call("events.subscribe", {"topics": ["system.metrics"]})
        time.sleep(seconds)
        figures: dict[str, float] = clients[-1].call("system.metrics", {})["monitor"]["sample_s"]
        return figures


@click.command(context_settings={"show_default": True})
@click.option("--rounds", type=click.IntRange(2), default=10, help="Pairs that are measured.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), default=2.0, help="Length of one round.")
@click.option("--in-flight", type=click.IntRange(1), default=1, help="Pings under way on each connection.")
@click.option("--connections", type=click.IntRange(2), default=2000, help="For the length of a sample.")
def main(rounds: int, seconds: float, in_flight: int, connections: int) -> None:
    """Measure what the monitor and the metrics cost."""
    pairs: list[Pair] = []
    try:
        for pair in measure(rounds, lambda name: ping_us(name, seconds, in_flight)):
            pairs.append(pair)
            click.echo(f"{pair.with_us:8.2f} us with {pair.without_us:8.2f} us without {pair.cost:8.1%}")
        looks = sample_s(connections, SAMPLES_S)
    except (WrongAnswer, RuntimeError) as exc:
        raise click.ClickException(str(exc)) from None
    cost, error = summary(pairs)
    verdict = "ok" if cost <= MARK else "MISSED"
    click.echo(f"cost {cost:.1%} +- {error:.1%} (mark {MARK:.0%}) {verdict}")
    shown = ", ".join(f"{name} {value * 1000:.1f} ms" for name, value in looks.items())
    verdict = "ok" if looks["p95"] < SAMPLE_MARK_S else "MISSED"
    click.echo(
        f"a sample with {connections} connections: {shown} (mark {SAMPLE_MARK_S * 1000:.0f} ms) {verdict}"
    )


if __name__ == "__main__":
    main(prog_name="python -m loadgen.overhead")
