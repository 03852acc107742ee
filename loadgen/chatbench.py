"""`loadgen bench chat`: whole turns a second, model and disk included, by number of clients."""

from collections.abc import Callable, Iterator

from loadgen.bench import Scenario, rows
from loadgen.driver import Driver
from loadgen.link import Target
from loadgen.requests import chat
from loadgen.results import figures_of, measured
from loadgen.scenario import Scenario as Load
from loadgen.scenario import Stage
from loadgen.servers import OURS, ServerProcess
from loadgen.tables import BenchPlan, Row
from loadgen.wire import WrongAnswer

INSTANT = {
    "llm.max_concurrency": 1000,
    "llm.max_queue": 10_000,
    "llm.scripted_tokens_per_s": 0,
    "llm.scripted_first_token_s": 0,
}
"""A model that takes no time and has a slot for everybody, so that the rest is what is measured."""
WARM_UP_S = 0.5


def load_figures(server: ServerProcess, load: Load, *, timeout_s: float = 60.0) -> dict[str, float]:
    """Run a load against a server and give its figures. Raises `WrongAnswer`."""
    driver = Driver(load, Target.of(server.url), timeout_s=timeout_s)
    driver.run()
    if driver.recorder.wrong_answers:
        raise WrongAnswer(driver.recorder.wrong_answers[0])
    document = {
        **measured(driver),
        "expected": sorted(load.expected),
        "warm_up_s": load.warm_up_s,
    }
    return dict(figures_of(document))


def chats(connections: int) -> Callable[[ServerProcess, float], dict[str, float]]:
    """So many clients that chat as fast as they are answered."""

    def measure_chats(server: ServerProcess, seconds: float) -> dict[str, float]:
        load = Load(
            name="chats",
            summary="",
            stages=(Stage(seconds=WARM_UP_S + seconds, connections=connections),),
            request=chat,
            warm_up_s=WARM_UP_S,
        )
        figures = load_figures(server, load)
        if figures["errors"]:
            raise WrongAnswer(f"{figures['errors']:.0f} of the chats were refused")
        return {"turns/s": figures["rate"], "p99_ms": figures["response.p99_ms"]}

    return measure_chats


def measure(plan: BenchPlan) -> Iterator[Row]:
    """See `tables.TABLES`."""
    lines = (
        Scenario(
            f"persona.chat, {connections} connections, closed loop",
            OURS,
            "turns/s",
            chats(connections),
            (),
            more_is_better=True,
            settings=INSTANT,
        )
        for connections in (10, 50, 200)
    )
    yield from rows(lines, plan)
