"""Hours of coming and going: does anything grow? `--duration 3600` and more is what it is for."""

from loadgen.requests import ping, stream
from loadgen.scenario import NO_ERRORS, Scenario, Stage, Threshold
from loadgen.script import Pause, Reconnect, Script, User

STAY_CALLS = 20
"""After about so many calls a user leaves, one in two without a word, and comes back."""


def come_and_go(user: User) -> Script:
    """Ping, chat now and then, leave, come back."""
    n = 0
    while True:
        yield (stream if user.random.random() < 0.1 else ping)(user, n)
        yield Pause(user.random.expovariate(2.0))
        n += 1
        if user.random.random() < 1 / STAY_CALLS:
            yield Reconnect(abruptly=user.random.random() < 0.5, after_s=user.random.random())


SCENARIO = Scenario(
    name="soak",
    summary="100 users who come and go: slopes of memory, descriptors, threads and tasks",
    stages=(Stage(seconds=600, connections=100),),
    user=come_and_go,
    warm_up_s=30,
    server={"llm.scripted_tokens_per_s": 0, "llm.scripted_first_token_s": 0},
    # Turns are kept on disk, and SQLite's cache fills; a leaked connection would cost far more.
    thresholds=(
        NO_ERRORS,
        Threshold("server.memory_mb_per_minute", at_most=2),
        Threshold("server.descriptors_per_minute", at_most=5),
        Threshold("server.threads_per_minute", at_most=1),
        Threshold("server.tasks_per_minute", at_most=5),
    ),
)
