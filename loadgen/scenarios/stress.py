"""Past every limit, then back: what is too much is refused, and what comes after is served as before."""

from loadgen.requests import chat, ping
from loadgen.scenario import Scenario, Stage, Threshold
from loadgen.script import Call, Stream, User

LIMITS = {
    "limits.max_connections": 100,
    "limits.max_handshakes": 50,
    "limits.rate_limit_per_minute": 600,
    "limits.rate_limit_burst": 20,
    "limits.max_in_flight": 4,
    "llm.max_concurrency": 2,
    "llm.max_queue": 20,
    "llm.scripted_tokens_per_s": 200,
}
"""Low, so that they are reached with little."""


def mixed(user: User, n: int) -> Call | Stream:
    """Mostly pings, and more chats than the model takes."""
    return chat(user, n, token_budget=20) if n % 10 == 0 else ping(user, n)


SCENARIO = Scenario(
    name="stress",
    summary="past the limits of connections, rate, model and queues, then back: does it recover?",
    stages=(
        Stage(seconds=10, connections=20, rate=20, name="before"),
        Stage(seconds=15, connections=200, rate=2000, name="too much"),
        Stage(seconds=5, connections=20, rate=20, name="settling"),
        Stage(seconds=10, connections=20, rate=20, name="after"),
    ),
    request=mixed,
    connecting=10_000,
    reconnect_s=1.0,
    # `closed_1008` is how a connection ends that goes on over its rate.
    expected=frozenset(
        {"http_503", "rate_limited", "overloaded", "closed_1008", "unanswered", "no_connection"}
    ),
    server=LIMITS,
    thresholds=(
        Threshold("errors", at_most=0),
        Threshold("expected_errors", at_least=1),
        Threshold("stage4.all_errors", at_most=0),
        Threshold("stage4.response.p50_ms", relative_to="stage1.response.p50_ms", at_most=3),
    ),
)
