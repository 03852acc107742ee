"""`loadgen bench scale`: is the load generator itself fast enough? Against the fastest peer there is."""

from collections.abc import Iterator

from loadgen.bench import Measure, Scenario, rows
from loadgen.chatbench import load_figures
from loadgen.requests import ping
from loadgen.scenario import Scenario as Load
from loadgen.scenario import Stage
from loadgen.servers import ServerProcess
from loadgen.tables import BenchPlan, Row

CONNECTIONS = 2000
RATE = 10_000.0
WARM_UP_S = 1.0


def pings_at(rate: float) -> Measure:
    """So many a second, whatever becomes of those before."""

    def measure_rate(server: ServerProcess, seconds: float) -> dict[str, float]:
        load = Load(
            name="scale",
            summary="",
            stages=(Stage(seconds=WARM_UP_S + seconds, connections=CONNECTIONS, rate=rate),),
            request=ping,
            warm_up_s=WARM_UP_S,
        )
        figures = load_figures(server, load)
        return {
            "answered/s": figures["rate"],
            "busy_percent": figures["generator.busy"] * 100,
            "lag_p99_ms": figures["generator.lag_p99_ms"],
            "p99_ms": figures["response.p99_ms"],
            "errors": figures["errors"],
        }

    return measure_rate


def measure(plan: BenchPlan) -> Iterator[Row]:
    """See `tables.TABLES`."""
    line = Scenario(
        f"{RATE:.0f} pings a second arrive on {CONNECTIONS} connections, one process",
        ("picows", "sansio"),
        "answered/s",
        pings_at(RATE),
        # Poisson arrivals of a few seconds are within two in a hundred of their rate.
        (("picows", f"{RATE:.0f} asked", 0.98),),
        more_is_better=True,
        also=(
            # More than that spoils a run: see `selfwatch.what_is_spoiled`.
            ("busy_percent", (("picows", "90 %", 1.0),)),
            # Answers that are late by more have waited for others, and not only for their turn.
            ("p99_ms", (("picows", "500 ms", 1.0),)),
        ),
    )
    yield from rows([line], plan)
