"""Topics: encoded once, offered to all, waiting for none."""

from typing import Any

import attrs
import pytest

from persona.errors import InvalidParams, Overloaded
from persona.service import hub as hub_module
from persona.service.hub import SERVER_TOPICS, Delivery, Hub


@attrs.define(eq=False)
class Listener:
    takes: bool = True
    got: list[bytes] = attrs.field(factory=list)

    def offer(self, message: bytes) -> bool:
        if self.takes:
            self.got.append(message)
        return self.takes


class Encoder:
    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def __call__(self, method: str, params: dict[str, Any]) -> bytes:
        assert method == "event"
        self.events.append(params)
        return b"%d" % len(self.events)


@pytest.fixture
def encoder() -> Encoder:
    return Encoder()


@pytest.fixture
def hub(encoder: Encoder) -> Hub:
    return Hub(encode=encoder, now=lambda: 0.0)


def test_an_event_is_encoded_once_for_all(hub: Hub, encoder: Encoder) -> None:
    listeners = [Listener() for _ in range(3)]
    for listener in listeners:
        hub.subscribe(listener, ["news"])
    assert hub.publish("news", "rain", {"mm": 3}) == Delivery(3, 0)
    assert encoder.events == [
        {
            "topic": "news",
            "type": "rain",
            "data": {"mm": 3},
            "seq": 1,
            "timestamp": "1970-01-01T00:00:00.000Z",
        }
    ]
    assert [listener.got for listener in listeners] == [[b"1"]] * 3


def test_seq_rises_per_topic_also_while_nobody_listens(hub: Hub, encoder: Encoder) -> None:
    hub.publish("a", "x", None)
    hub.subscribe(Listener(), ["a"])
    hub.subscribe(Listener(), ["b"])
    hub.publish("a", "x", None)
    hub.publish("b", "x", None)
    assert [(event["topic"], event["seq"]) for event in encoder.events] == [("a", 2), ("b", 1)]


def test_who_refuses_is_counted_and_forgotten(hub: Hub) -> None:
    slow, quick = Listener(takes=False), Listener()
    hub.subscribe(slow, ["a", "b"])
    hub.subscribe(quick, ["a"])
    assert hub.publish("a", "x", None) == Delivery(1, 1)
    assert hub.topics_of(slow) == []
    assert hub.publish("a", "x", None) == Delivery(1, 0)


def test_subscribing_twice_is_once_and_unsubscribing_is_harmless(hub: Hub) -> None:
    listener = Listener()
    hub.subscribe(listener, ["b"])
    hub.subscribe(listener, ["b"])
    hub.subscribe(listener, ["a"])
    assert hub.topics_of(listener) == ["a", "b"]
    assert hub.publish("b", "x", None) == Delivery(1, 0)
    hub.unsubscribe(listener, ["b"])
    hub.unsubscribe(listener, ["never heard of"])
    assert hub.topics_of(listener) == ["a"]
    hub.forget(listener)
    assert hub.publish("a", "x", None) == Delivery(0, 0)


def test_the_number_of_topics_is_bounded_but_for_the_servers_own(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub_module, "MAX_TOPICS", len(SERVER_TOPICS) + 2)
    greedy, other = Listener(), Listener()
    hub.subscribe(greedy, ["a", "b"])
    with pytest.raises(Overloaded) as caught:
        hub.subscribe(other, ["a", "c"])
    assert caught.value.retry_after_s
    assert hub.topics_of(other) == []
    hub.subscribe(other, ["a", *SERVER_TOPICS])
    assert hub.publish("c", "x", None) == Delivery(0, 0)
    hub.forget(greedy)
    hub.subscribe(other, ["c"])
    assert hub.topics_of(other) == sorted(["a", "c", *SERVER_TOPICS])


def test_one_subscriber_has_a_bound_of_its_own(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "MAX_TOPICS_EACH", 3)
    listener = Listener()
    hub.subscribe(listener, ["a", "b"])
    hub.subscribe(listener, ["b", "c"])
    with pytest.raises(InvalidParams) as caught:
        hub.subscribe(listener, ["d"])
    assert caught.value.field == "topics"
    hub.unsubscribe(listener, ["a"])
    hub.subscribe(listener, ["d"])
    assert hub.topics_of(listener) == ["b", "c", "d"]


def test_a_topic_stays_if_it_ever_had_an_event(hub: Hub, encoder: Encoder) -> None:
    listener = Listener()
    hub.subscribe(listener, ["spoken of", "silent"])
    hub.publish("spoken of", "x", None)
    hub.forget(listener)
    hub.subscribe(listener, ["spoken of"])
    hub.publish("spoken of", "x", None)
    assert [event["seq"] for event in encoder.events] == [1, 2]


def test_it_says_whether_anybody_would_hear(hub: Hub) -> None:
    listener = Listener()
    assert not hub.has_subscribers("news")
    hub.subscribe(listener, ["news", "system.metrics"])
    assert hub.has_subscribers("news")
    assert hub.has_subscribers("system.metrics")
    assert not hub.has_subscribers("system")
    hub.publish("other", "x", None)
    assert not hub.has_subscribers("other")
    hub.forget(listener)
    assert not hub.has_subscribers("news")
    assert not hub.has_subscribers("system.metrics")
