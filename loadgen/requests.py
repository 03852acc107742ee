"""Requests that scenarios have in common, with the checks of their answers."""

import time
from typing import Any

from loadgen.exchange import PUBLISH, TOPIC
from loadgen.script import Call, Script, Stream, User

PADDING = "x" * 40
"""Makes a ping about 120 bytes, like a short chat line."""
PERSONAS = ("Aria", "Kira")
"""They exist on a fresh database."""
LINES = (
    "What is new?",
    "Tell me of the road you came by.",
    "Do you know a song about rain?",
    "What would you read, had you one evening only?",
    "Who taught you what you know best?",
)


def ping(user: User, n: int) -> Call:
    """`system.ping`, with a payload that no other request has, so that a mixed-up answer shows."""
    payload = f"{user.nonce}-{n}-{PADDING}"

    def check(result: Any) -> bool:
        return isinstance(result, dict) and result.get("pong") is True and result.get("payload") == payload

    return Call("system.ping", {"payload": payload}, check)


def persona_of(user: User) -> str:
    """Users take turns."""
    return PERSONAS[user.index % len(PERSONAS)]


def chat(user: User, n: int, *, token_budget: int = 50) -> Call:
    """`persona.chat`: a whole turn, model and disk included, answered by the persona that was asked."""
    persona = persona_of(user)

    def check(result: Any) -> bool:
        return (
            isinstance(result, dict)
            and isinstance(result.get("response"), str)
            and bool(result["response"])
            and result.get("persona_name", persona) == persona
        )

    message = f"{LINES[n % len(LINES)]} ({user.nonce}, {n})"
    params = {"message": message, "persona_id": persona, "token_budget": token_budget}
    return Call("persona.chat", params, check)


def stream(user: User, n: int, *, token_budget: int = 50, cancel_after: int | None = None) -> Stream:
    """The same, streamed."""
    message = f"{LINES[n % len(LINES)]} ({user.nonce}, {n})"
    params = {"message": message, "persona_id": persona_of(user), "token_budget": token_budget}
    return Stream(params, cancel_after)


def subscribe(_user: User) -> Script:
    """Take the events that `publish` sends. For `set_up`."""
    yield Call("events.subscribe", {"topics": [TOPIC]}, lambda result: TOPIC in result["topics"])


def publish(user: User, n: int, *, size_bytes: int = 500) -> Call:
    """`system.broadcast` to all who subscribed; the event tells when it was sent."""
    data = {"sent_at": time.perf_counter(), "from": f"{user.nonce}-{n}", "text": "x" * size_bytes}
    params = {"topic": TOPIC, "type": "loadgen", "data": data}
    return Call(PUBLISH, params, lambda result: result["dropped"] == 0)
