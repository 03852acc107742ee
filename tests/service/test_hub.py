"""Topics: encoded once, offered to all, waiting for none."""

from typing import Any

import attrs
import pytest

from persona.errors import Overloaded
from persona.service import hub as hub_module
from persona.service.hub import Delivery, Hub


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
        hub.subscribe(listener, "news")
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
    hub.subscribe(Listener(), "a")
    hub.subscribe(Listener(), "b")
    hub.publish("a", "x", None)
    hub.publish("b", "x", None)
    assert [(event["topic"], event["seq"]) for event in encoder.events] == [("a", 2), ("b", 1)]


def test_who_refuses_is_counted_and_forgotten(hub: Hub) -> None:
    slow, quick = Listener(takes=False), Listener()
    for topic in ("a", "b"):
        hub.subscribe(slow, topic)
    hub.subscribe(quick, "a")
    assert hub.publish("a", "x", None) == Delivery(1, 1)
    assert hub.topics_of(slow) == []
    assert hub.publish("a", "x", None) == Delivery(1, 0)


def test_subscribing_twice_is_once_and_unsubscribing_is_harmless(hub: Hub) -> None:
    listener = Listener()
    hub.subscribe(listener, "b")
    hub.subscribe(listener, "b")
    hub.subscribe(listener, "a")
    assert hub.topics_of(listener) == ["a", "b"]
    assert hub.publish("b", "x", None) == Delivery(1, 0)
    hub.unsubscribe(listener, "b")
    hub.unsubscribe(listener, "never heard of")
    assert hub.topics_of(listener) == ["a"]
    hub.forget(listener)
    assert hub.publish("a", "x", None) == Delivery(0, 0)


def test_the_number_of_topics_is_bounded(hub: Hub, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hub_module, "MAX_TOPICS", 2)
    listener = Listener()
    hub.subscribe(listener, "a")
    hub.subscribe(listener, "b")
    with pytest.raises(Overloaded):
        hub.subscribe(listener, "c")
    hub.subscribe(Listener(), "a")
