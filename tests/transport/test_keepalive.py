"""Who is asked, and when."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from persona.transport.keepalive import Keepalive


class Peer:
    def __init__(self, name: str, asked: list[tuple[str, float]]) -> None:
        self.name = name
        self._asked = asked

    def ask(self) -> None:
        self._asked.append((self.name, trio.current_time()))


class Crowd:
    def __init__(self, interval_s: float) -> None:
        self.keepalive = Keepalive(interval_s)
        self.asked: list[tuple[str, float]] = []

    def join(self, *names: str) -> list[Peer]:
        peers = [Peer(name, self.asked) for name in names]
        for peer in peers:
            self.keepalive.add(peer)
        return peers

    def since(self, time: float) -> list[tuple[str, float]]:
        return [(name, at) for name, at in self.asked if at >= time]


@asynccontextmanager
async def crowd(interval_s: float) -> AsyncIterator[Crowd]:
    running = Crowd(interval_s)
    async with trio.open_nursery() as nursery:
        await nursery.start(running.keepalive.run)
        yield running
        nursery.cancel_scope.cancel()


async def test_each_is_asked_an_interval_after_it_came_and_then_each_interval(
    autojump_clock: MockClock,
) -> None:
    async with crowd(10.0) as there:
        there.join("a")
        await trio.sleep(4)
        there.join("b", "c")
        await trio.sleep(2)
        there.join("d")
        await trio.sleep(20.5)
    assert there.asked == [
        ("a", 10),
        ("b", 14),
        ("c", 14),
        ("d", 16),
        ("a", 20),
        ("b", 24),
        ("c", 24),
        ("d", 26),
    ]


async def test_who_has_left_is_asked_no_more(autojump_clock: MockClock) -> None:
    async with crowd(10.0) as there:
        first, middle, last = there.join("first", "middle", "last")
        await trio.sleep(10.5)
        assert [name for name, _ in there.asked] == ["first", "middle", "last"]
        there.keepalive.remove(middle)
        await trio.sleep(10)
        assert [name for name, _ in there.since(11)] == ["first", "last"]
        # The one whose turn it is: who comes next keeps its time.
        await trio.sleep(1)
        there.join("new")
        there.keepalive.remove(first)
        there.keepalive.remove(last)
        await trio.sleep(11)
        assert there.since(21) == [("new", 31.5)]
        there.keepalive.remove(last)  # no error


async def test_it_waits_while_there_is_nobody(autojump_clock: MockClock) -> None:
    async with crowd(10.0) as there:
        await trio.sleep(100)
        (peer,) = there.join("a")
        await trio.sleep(11)
        there.keepalive.remove(peer)
        await trio.sleep(100)
        there.join("b")
        await trio.sleep(11)
    assert there.asked == [("a", 110), ("b", 221)]


async def test_one_that_leaves_when_it_is_asked(autojump_clock: MockClock) -> None:
    async with crowd(10.0) as there:

        class Shy(Peer):
            def ask(self) -> None:
                super().ask()
                there.keepalive.remove(self)
                there.join("its friend")

        there.keepalive.add(Shy("shy", there.asked))
        there.join("other")
        await trio.sleep(21)
    assert there.asked == [("shy", 10), ("other", 10), ("its friend", 20), ("other", 20)]


async def test_an_interval_of_0_asks_nobody(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        there = Crowd(0.0)
        await nursery.start(there.keepalive.run)
        there.join("a")
        await wait_all_tasks_blocked()
        await trio.sleep(1000)
    # And it is over by itself.
    assert there.asked == []
