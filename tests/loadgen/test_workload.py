from typing import Any

import pytest

from loadgen.workload import WORKLOADS, Chat, Ping


def test_workloads_go_by_their_method() -> None:
    assert {name: workload.method for name, workload in WORKLOADS.items()} == {
        "system.ping": "system.ping",
        "persona.chat": "persona.chat",
    }


def test_no_two_pings_are_alike() -> None:
    pings = [Ping(), Ping()]
    payloads = [ping.params(c, n)["payload"] for ping in pings for c in range(12) for n in range(12)]
    assert len(set(payloads)) == len(payloads)


def test_a_ping_is_answered_with_its_payload() -> None:
    ping = Ping()
    params = ping.params(1, 2)
    assert ping.is_right(params, {"pong": True, "payload": params["payload"], "time": "now"})


@pytest.mark.parametrize("wrong", [None, [], "pong", {}, {"pong": True}, {"pong": True, "payload": "other"}])
def test_anything_else_is_no_pong(wrong: Any) -> None:
    ping = Ping()
    assert not ping.is_right(ping.params(0, 0), wrong)
    assert not ping.is_right(ping.params(0, 0), {"payload": ping.params(0, 0)["payload"]})
    assert not ping.is_right(ping.params(0, 0), {"pong": True, "payload": ping.params(1, 0)["payload"]})


def test_chats_go_to_the_personas_in_turn() -> None:
    chat = Chat()
    assert [chat.params(c, 0)["persona_id"] for c in range(3)] == ["Aria", "Kira", "Aria"]
    assert chat.params(0, 0)["message"] != chat.params(0, 1)["message"]


def test_a_chat_is_answered_by_the_persona_that_was_asked() -> None:
    chat = Chat()
    params = chat.params(0, 0)
    assert chat.is_right(params, {"response": "Hello", "persona_name": "Aria"})
    for wrong in (
        None,
        {},
        {"response": "", "persona_name": "Aria"},
        {"response": 1, "persona_name": "Aria"},
        {"response": "Hello"},
        {"response": "Hello", "persona_name": "Kira"},
    ):
        assert not chat.is_right(params, wrong)
