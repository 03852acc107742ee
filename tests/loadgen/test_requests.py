"""What is asked, and which answers are right."""

from random import Random
from typing import Any

import pytest

from loadgen.exchange import TOPIC
from loadgen.requests import chat, ping, publish, stream, subscribe
from loadgen.script import Answer, User

ANNA, BEN = User(0, Random(0), "run-0"), User(1, Random(0), "run-1")


def test_a_ping_takes_no_others_answer() -> None:
    call = ping(ANNA, 3)
    right = {"pong": True, "payload": call.params["payload"]}
    assert call.check(right)
    wrong: list[Any] = [
        None,
        {},
        {**right, "pong": False},
        {**right, "payload": ping(BEN, 3).params["payload"]},
        {**right, "payload": ping(ANNA, 4).params["payload"]},
    ]
    for result in wrong:
        assert not call.check(result)


def test_chats_go_to_the_personas_in_turn() -> None:
    assert [chat(user, 0).params["persona_id"] for user in (ANNA, BEN)] == ["Aria", "Kira"]
    assert chat(ANNA, 0).params["message"] != chat(ANNA, 1).params["message"]
    assert stream(BEN, 0, cancel_after=2).cancel_after == 2


@pytest.mark.parametrize(
    ("result", "is_right"),
    [
        ({"response": "Hello", "persona_name": "Aria"}, True),
        ({"response": "Hello"}, True),
        ({"response": "Hello", "persona_name": "Kira"}, False),
        ({"response": "", "persona_name": "Aria"}, False),
        ({"response": 1, "persona_name": "Aria"}, False),
        (None, False),
        ({}, False),
    ],
)
def test_a_chat_is_answered_by_the_persona_that_was_asked(result: Any, is_right: bool) -> None:
    assert chat(ANNA, 0).check(result) is is_right


def test_an_event_says_when_it_was_sent_to_those_who_subscribed() -> None:
    call = publish(ANNA, 0, size_bytes=100)
    assert isinstance(call.params["data"]["sent_at"], float)
    assert call.check({"delivered": 5, "dropped": 0})
    assert not call.check({"delivered": 5, "dropped": 1})
    script = subscribe(ANNA)
    asked = script.send(None)
    assert asked.params == {"topics": [call.params["topic"]]} == {"topics": [TOPIC]}
    assert not asked.check({"topics": []})
    with pytest.raises(StopIteration):
        script.send(Answer())
