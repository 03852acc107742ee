"""Topics and their subscribers. `publish` is synchronous and never waits for anyone.

The hub knows no connections: a `Subscriber` takes bytes or refuses them. Each event is encoded
once, whatever the number of subscribers. A subscriber that refuses is unsubscribed and counted;
closing it is its own connection's business.
"""

from collections.abc import Callable
from typing import Any

import attrs

from persona.errors import Overloaded
from persona.model import isoformat
from persona.service.subscriber import Subscriber

Encode = Callable[[str, dict[str, Any]], bytes]

MAX_TOPICS = 1000
"""Topic names come from clients and a topic's `seq` is kept for good, so their number is bounded."""


@attrs.frozen
class Delivery:
    """How many subscribers took an event, and how many refused it."""

    delivered: int
    dropped: int


@attrs.define
class _Topic:
    seq: int = 0
    # A dict, not a set: delivery in the order of subscription, which tests can rely on.
    subscribers: dict[Subscriber, None] = attrs.field(factory=dict)


class Hub:
    """Publish and subscribe by topic name.

    A topic's `seq` rises by one with each event and goes on rising while nobody listens, so a
    subscriber that keeps up sees no gap.
    """

    def __init__(self, *, encode: Encode, now: Callable[[], float]) -> None:
        self._encode = encode
        self._now = now
        self._topics: dict[str, _Topic] = {}

    def subscribe(self, subscriber: Subscriber, topic: str) -> None:
        """Add `subscriber` to `topic`; twice is once. Raises `Overloaded` at `MAX_TOPICS`."""
        if topic not in self._topics and len(self._topics) >= MAX_TOPICS:
            raise Overloaded("there are too many topics")
        self._topics.setdefault(topic, _Topic()).subscribers[subscriber] = None

    def unsubscribe(self, subscriber: Subscriber, topic: str) -> None:
        """Remove `subscriber` from `topic`; harmless when it is not there."""
        if (entry := self._topics.get(topic)) is not None:
            entry.subscribers.pop(subscriber, None)

    def forget(self, subscriber: Subscriber) -> None:
        """Remove `subscriber` from every topic."""
        for entry in self._topics.values():
            entry.subscribers.pop(subscriber, None)

    def topics_of(self, subscriber: Subscriber) -> list[str]:
        """The topics `subscriber` is on, sorted."""
        return sorted(name for name, entry in self._topics.items() if subscriber in entry.subscribers)

    def publish(self, topic: str, event_type: str, data: Any) -> Delivery:
        """Offer one event to every subscriber of `topic`."""
        entry = self._topics.setdefault(topic, _Topic())
        entry.seq += 1
        if not entry.subscribers:
            return Delivery(0, 0)
        message = self._encode(
            "event",
            {
                "topic": topic,
                "type": event_type,
                "data": data,
                "seq": entry.seq,
                "timestamp": isoformat(self._now()),
            },
        )
        refused = [s for s in tuple(entry.subscribers) if not s.offer(message)]
        delivered = len(entry.subscribers) - len(refused)
        for subscriber in refused:
            self.forget(subscriber)
        return Delivery(delivered, len(refused))
