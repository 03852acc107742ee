"""What is due, and when."""

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from persona.timeouts import BURST, TICK_S, Sleepers, TimeoutQueue


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


@asynccontextmanager
async def sleepers() -> AsyncIterator[Sleepers]:
    running = Sleepers()
    async with trio.open_nursery() as nursery:
        await nursery.start(running.run)
        yield running
        nursery.cancel_scope.cancel()


async def test_each_sleeps_until_its_own_time(autojump_clock: MockClock) -> None:
    woken: list[tuple[float, float]] = []

    async def sleep(when: float, begins_at: float) -> None:
        await trio.sleep_until(begins_at)
        await asleep.sleep_until(when)
        woken.append((when, trio.current_time()))

    start = trio.current_time()
    async with sleepers() as asleep, trio.open_nursery() as nursery:
        # The second is due before the first, and comes when the first is waited for.
        for when, begins_at in ((9, 0), (5, 1), (5, 2), (7, 6), (2, 3)):
            nursery.start_soon(sleep, start + when, start + begins_at)
    # What is past is no sleep.
    assert woken == [(start + when, start + at) for when, at in ((2, 3), (5, 5), (5, 5), (7, 7), (9, 9))]


async def test_whoever_is_due_within_a_tick_of_the_last_wakes_after_it(autojump_clock: MockClock) -> None:
    woken: list[float] = []

    async def sleep(when: float) -> None:
        await asleep.sleep_until(when)
        woken.append(trio.current_time() - start)

    start = trio.current_time()
    async with sleepers() as asleep, trio.open_nursery() as nursery:
        for number in range(10):
            nursery.start_soon(sleep, start + 1 + number * TICK_S / 5)
        await trio.sleep(1)
        nursery.start_soon(sleep, start + 1 + TICK_S / 10)
    assert woken == sorted(woken)
    assert {round((at - 1) / TICK_S, 6) for at in woken} == {0, 1, 2}


async def test_a_sleep_that_is_cancelled_is_over_at_once_and_wakes_nobody_later(
    autojump_clock: MockClock,
) -> None:
    async with sleepers() as asleep:
        with trio.move_on_after(1) as scope:
            await asleep.sleep_until(trio.current_time() + 5)
        assert scope.cancelled_caught
        # Woken for it, this would end at 5.
        with trio.move_on_after(100) as scope:
            await trio.sleep_forever()
        assert trio.current_time() == 101
        await asleep.sleep_until(trio.current_time() + 1)
        assert trio.current_time() == 102
