"""What is due, and when."""

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from persona.timeouts import BURST, TimeoutQueue


@asynccontextmanager
async def queue(after_s: float, on_due: Callable[[str], None]) -> AsyncIterator[TimeoutQueue[str]]:
    running = TimeoutQueue(after_s, on_due)
    async with trio.open_nursery() as nursery:
        await nursery.start(running.run)
        yield running
        nursery.cancel_scope.cancel()


async def test_each_is_due_once_and_in_its_time(autojump_clock: MockClock) -> None:
    seen: list[tuple[str, float]] = []
    async with queue(10.0, lambda item: seen.append((item, trio.current_time()))) as due:
        await trio.sleep(100)
        due.add("a")
        await trio.sleep(4)
        due.add("b")
        due.add("gone")
        due.remove("gone")
        due.remove("never there")
        await trio.sleep(100)
    assert seen == [("a", 110), ("b", 114)]


async def test_one_that_is_added_again_waits_anew(autojump_clock: MockClock) -> None:
    seen: list[tuple[str, float]] = []
    async with queue(10.0, lambda item: seen.append((item, trio.current_time()))) as due:
        due.add("a")
        await trio.sleep(1)
        due.add("b")
        await trio.sleep(4)
        due.add("a")
        await trio.sleep(100)
    assert seen == [("b", 11), ("a", 15)]


async def test_what_is_due_may_add_and_remove(autojump_clock: MockClock) -> None:
    seen: list[tuple[str, float]] = []

    def on_due(item: str) -> None:
        seen.append((item, trio.current_time()))
        due.remove("b")
        if len(seen) < 3:
            due.add(item)

    async with queue(10.0, on_due) as due:
        due.add("a")
        due.add("b")
        await trio.sleep(100)
    assert seen == [("a", 10), ("a", 20), ("a", 30)]


@pytest.mark.parametrize("size", [BURST - 1, BURST, BURST + 1, 20 * BURST])
async def test_others_run_while_a_crowd_is_due(size: int, mock_clock: MockClock) -> None:
    """All are due at one moment; between two bursts everybody else has a turn."""
    seen: list[str] = []
    async with queue(10.0, seen.append) as due:
        for number in range(size):
            due.add(str(number))
        await wait_all_tasks_blocked()
        mock_clock.jump(10)
        counts = [0]
        while counts[-1] < size:
            await trio.lowlevel.checkpoint()
            counts.append(len(seen))
    # In a turn of the loop each task runs once, in any order.
    assert max(later - earlier for earlier, later in itertools.pairwise(counts)) <= 2 * BURST
    assert seen == [str(number) for number in range(size)]
