"""People who chat: they think, read the answer as it comes, and sometimes interrupt it."""

from loadgen.requests import persona_of, stream
from loadgen.scenario import NO_ERRORS, Scenario, Stage, Threshold
from loadgen.script import Call, Pause, Script, User

THINK_S = 5.0
"""On average; exponential, so that some write two lines at once and some go for coffee."""
CANCEL_SHARE = 0.1


def chatter(user: User) -> Script:
    """Switch to a persona, then think and talk for ever."""
    yield Call("persona.switch", {"persona_id": persona_of(user)})
    n = 0
    while True:
        yield Pause(user.random.expovariate(1 / THINK_S))
        cancel_after = 2 if user.random.random() < CANCEL_SHARE else None
        answer = yield stream(user, n, cancel_after=cancel_after)
        if answer.retry_after_s is not None:
            yield Pause(answer.retry_after_s)
        n += 1


SCENARIO = Scenario(
    name="chat",
    summary="100 people with think time, streamed turns, one in ten cancelled",
    stages=(Stage(seconds=60, connections=100),),
    user=chatter,
    request=stream,
    warm_up_s=5,
    # Eight answers at once at this pace are what 100 people with 5 s of thought need.
    server={"llm.max_concurrency": 32, "llm.scripted_tokens_per_s": 100},
    thresholds=(NO_ERRORS, Threshold("first_token.p95_ms", at_most=2000)),
)
