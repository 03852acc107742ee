"""Turns written and histories read as fast as the disk takes them; the model costs nothing."""

from loadgen.requests import chat, persona_of
from loadgen.scenario import NO_ERRORS, Scenario, Stage, Threshold
from loadgen.script import Call, Script, User

READ_SHARE = 0.5


def write_and_read(user: User) -> Script:
    """A turn that is on disk before it is answered, and half of the time the history that it is in."""
    yield Call("persona.switch", {"persona_id": persona_of(user)})
    n = 0
    while True:
        answer = yield chat(user, n, token_budget=20)
        n += 1
        if answer.error is None and user.random.random() < READ_SHARE:
            said = answer.result["response"]

            def holds_it(result: object, said: str = said) -> bool:
                return isinstance(result, dict) and any(turn["content"] == said for turn in result["turns"])

            yield Call("conversation.history", {"limit": 20}, holds_it)


SCENARIO = Scenario(
    name="storage",
    summary="50 users write turns and read them back, with a model that takes no time",
    stages=(Stage(seconds=20, connections=50),),
    user=write_and_read,
    server={
        "llm.max_concurrency": 100,
        "llm.scripted_tokens_per_s": 0,
        "llm.scripted_first_token_s": 0,
    },
    thresholds=(NO_ERRORS, Threshold("rate", at_least=50)),
)
