"""`loadgen bench chat`: whole turns, model and disk included: how many a second by number of clients, what
the server adds to one, and to the first token of many."""

from collections.abc import Callable, Iterator
from itertools import count

from loadgen.bench import Measure, Scenario, rows
from loadgen.driver import Driver
from loadgen.link import Target
from loadgen.requests import chat, stream
from loadgen.results import figures_of, measured
from loadgen.scenario import Scenario as Load
from loadgen.scenario import Stage
from loadgen.script import Call, Script, User
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
STEADY = {
    "llm.max_concurrency": 1000,
    "llm.max_queue": 10_000,
    "llm.scripted_tokens_per_s": 50,
    "llm.scripted_first_token_s": 0.05,
}
"""A small local model that has a slot for everybody."""
WARM_UP_S = 0.5
TALK_TURNS = 10
STREAMS = 200
STREAM_S = 1.05
"""About how long one is: fifty tokens, or what the script says in fewer."""


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


def chats(connections: int, user: Callable[[User], Script] | None = None) -> Measure:
    """So many clients that chat as fast as they are answered, as `user` does, or each in one conversation.

    With one client, and a model that takes no time, what is left is the server's own, and the disk's.
    """

    def measure_chats(server: ServerProcess, seconds: float) -> dict[str, float]:
        load = Load(
            name="chats",
            summary="",
            stages=(Stage(seconds=WARM_UP_S + seconds, connections=connections),),
            request=None if user else chat,
            user=user,
            warm_up_s=WARM_UP_S,
        )
        figures = load_figures(server, load)
        if figures["errors"]:
            raise WrongAnswer(f"{figures['errors']:.0f} of the chats were refused")
        return {
            "turns/s": figures["rate"],
            "ms": figures["persona.chat.p50_ms"],
            "p99_ms": figures["persona.chat.p99_ms"],
        }

    return measure_chats


def talks(user: User) -> Script:
    """Conversations of `TALK_TURNS`, one after the other."""
    for n in count():
        if n and n % TALK_TURNS == 0:
            yield Call("session.clear")
        yield chat(user, n)


def first_tokens(server: ServerProcess, seconds: float) -> dict[str, float]:
    """So many streams under way at any time, begun one after the other: what the server adds to the model's
    own time to its first token, from when each was due. Every stream is checked to be whole."""
    load = Load(
        name="streams",
        summary="",
        # Not in a closed loop: streams of one length would all begin at the same moment, again and again.
        stages=(Stage(seconds=STREAM_S + seconds, connections=STREAMS, rate=STREAMS / STREAM_S),),
        request=stream,
        warm_up_s=STREAM_S,
    )
    figures = load_figures(server, load)
    if figures["errors"]:
        raise WrongAnswer(f"{figures['errors']:.0f} of the streams were refused")
    model_ms = STEADY["llm.scripted_first_token_s"] * 1000
    return {
        "ms": figures["first_token.p95_ms"] - model_ms,
        "p50_ms": figures["first_token.p50_ms"] - model_ms,
    }


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
    own_time = (
        Scenario(
            f"persona.chat of one client, conversations of {TALK_TURNS} lines, median",
            OURS,
            "ms",
            chats(1, talks),
            tuple((name, "2 ms", 1.0) for name in OURS),
            settings=INSTANT,
        ),
        Scenario(
            "the same, one conversation of hundreds of lines",
            OURS,
            "ms",
            chats(1),
            (),
            settings=INSTANT,
        ),
        Scenario(
            f"{STREAMS} streams at once, first token beyond the model's 50 ms, 95th percentile",
            OURS,
            "ms",
            first_tokens,
            tuple((name, "10 ms", 1.0) for name in OURS),
            settings=STEADY,
        ),
    )
    yield from rows(own_time, plan)
