"""Topics and their subscribers. `publish` is synchronous and never waits for anyone.

The hub knows no connections: a `Subscriber` takes bytes or refuses them. Each event is encoded
once, whatever the number of subscribers. A subscriber that refuses is unsubscribed and counted;
closing it is its own connection's business.
"""

from collections.abc import Callable, Iterable
from typing import Any

import attrs

from persona.errors import InvalidParams, Overloaded
from persona.model import isoformat
from persona.service.subscriber import Subscriber

Encode = Callable[[str, dict[str, Any]], bytes]

SERVER_TOPICS = ("personas", "system", "system.metrics")
"""What the server itself tells of; there is always room for these."""
MAX_TOPICS = 10_000
"""Topic names come from clients, so their number is bounded."""
MAX_TOPICS_EACH = 100
"""For one subscriber, so that it takes many to fill the house."""


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
    subscriber that keeps up sees no gap. A topic that never had an event goes with its last
    subscriber.
    """

    def __init__(self, *, encode: Encode, now: Callable[[], float]) -> None:
        self._encode = encode
        self._now = now
        self._topics = {name: _Topic() for name in SERVER_TOPICS}
        self._names: dict[Subscriber, set[str]] = {}
        """The topics of each subscriber that has any."""

    def subscribe(self, subscriber: Subscriber, topics: Iterable[str]) -> None:
        """Add `subscriber` to all of `topics`, or to none; twice is once.

        Raises `InvalidParams` above `MAX_TOPICS_EACH`, and `Overloaded` above `MAX_TOPICS`.
        """
        names = self._names.get(subscriber, set()) | set(topics)
        if len(names) > MAX_TOPICS_EACH:
            raise InvalidParams(f"a connection may have {MAX_TOPICS_EACH} topics", field="topics")
        new = names - self._topics.keys()
        if new and len(self._topics) + len(new) > MAX_TOPICS:
            raise Overloaded("there are too many topics", retry_after_s=60.0)
        self._names[subscriber] = names
        for name in names:
            self._topics.setdefault(name, _Topic()).subscribers[subscriber] = None

    def unsubscribe(self, subscriber: Subscriber, topics: Iterable[str]) -> None:
        """Remove `subscriber` from `topics`; harmless where it is not there."""
        names = self._names.get(subscriber, set())
        for name in names.intersection(topics):
            self._leave(subscriber, name)
        names.difference_update(topics)
        if not names:
            self._names.pop(subscriber, None)

    def forget(self, subscriber: Subscriber) -> None:
        """Remove `subscriber` from every topic."""
        for name in self._names.pop(subscriber, ()):
            self._leave(subscriber, name)

    def _leave(self, subscriber: Subscriber, name: str) -> None:
        topic = self._topics[name]
        del topic.subscribers[subscriber]
        if not topic.subscribers and not topic.seq and name not in SERVER_TOPICS:
            del self._topics[name]

    def topics_of(self, subscriber: Subscriber) -> list[str]:
        """The topics `subscriber` is on, sorted."""
        return sorted(self._names.get(subscriber, ()))

    def has_subscribers(self, topic: str) -> bool:
        """Whether anybody would get an event of `topic`: what is dear to make need not be made for nobody."""
        entry = self._topics.get(topic)
        return entry is not None and bool(entry.subscribers)

    def publish(self, topic: str, event_type: str, data: Any) -> Delivery:
        """Offer one event to every subscriber of `topic`."""
        entry = self._topics.get(topic)
        if entry is None:
            if len(self._topics) >= MAX_TOPICS:
                return Delivery(0, 0)
            entry = self._topics[topic] = _Topic()
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
