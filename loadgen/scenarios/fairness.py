"""A few who ask for much at once, beside many who ask for little: who waits?"""

import attrs

from loadgen.requests import chat
from loadgen.scenario import NO_ERRORS, Scenario, Stage, Threshold
from loadgen.script import Pause, Script, Together, User

GREEDY_EVERY = 10
"""One user in ten is greedy."""
AT_ONCE = 8
THINK_S = 2.0


def user(user: User) -> Script:
    """A greedy user keeps eight chats on the way; a modest one has one, and thinks."""
    is_greedy = user.index % GREEDY_EVERY == 0
    n = 0
    while True:
        if is_greedy:
            chats = (chat(user, n + k, token_budget=20) for k in range(AT_ONCE))
            yield Together(tuple(attrs.evolve(each, label="greedy") for each in chats))
            n += AT_ONCE
        else:
            yield attrs.evolve(chat(user, n, token_budget=20), label="modest")
            n += 1
            yield Pause(user.random.expovariate(1 / THINK_S))


SCENARIO = Scenario(
    name="fairness",
    summary="2 greedy users with 8 chats at once beside 18 modest ones: the modest must not wait longer",
    stages=(Stage(seconds=30, connections=20),),
    user=user,
    server={"llm.scripted_first_token_s": 0.05, "llm.scripted_tokens_per_s": 200},
    thresholds=(NO_ERRORS, Threshold("modest.p95_ms", relative_to="greedy.p95_ms", at_most=1)),
)
