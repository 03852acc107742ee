"""The model's slots, shared fairly."""

from collections.abc import Callable

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from persona.errors import Overloaded
from persona.metrics import Metrics
from persona.service.scheduler import Scheduler


def ignore(_position: int) -> None: ...


def make(slots: int = 1, max_queue: int = 512) -> Scheduler:
    return Scheduler(slots=slots, max_queue=max_queue, metrics=Metrics())


async def hold(
    scheduler: Scheduler,
    party: str,
    served: list[str],
    *,
    seconds: float = 1.0,
    on_position: Callable[[int], None] = ignore,
) -> None:
    async with scheduler.slot(party, on_position):
        served.append(party)
        await trio.sleep(seconds)


async def test_a_free_slot_is_given_at_once_and_says_no_position(autojump_clock: MockClock) -> None:
    positions: list[int] = []
    async with make().slot("a", positions.append):
        pass
    assert positions == []
    assert trio.current_time() == 0


async def test_one_clients_many_turns_do_not_delay_anothers_first(autojump_clock: MockClock) -> None:
    scheduler, served = make(), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold, scheduler, "greedy", served)
        await wait_all_tasks_blocked()
        for _ in range(10):
            nursery.start_soon(hold, scheduler, "greedy", served)
        await wait_all_tasks_blocked()
        nursery.start_soon(hold, scheduler, "modest", served)
    assert served.index("modest") <= 2
    assert len(served) == 12


async def test_positions_count_down_to_the_grant(autojump_clock: MockClock) -> None:
    scheduler, served, positions = make(), [], []
    async with trio.open_nursery() as nursery:
        for party in ("a", "b", "c"):
            nursery.start_soon(hold, scheduler, party, served)
            await wait_all_tasks_blocked()
        await hold(scheduler, "d", served, on_position=positions.append)
    assert positions == [3, 2, 1]
    assert served == ["a", "b", "c", "d"]


async def test_a_full_queue_refuses_with_an_estimate(autojump_clock: MockClock) -> None:
    scheduler, served = make(max_queue=2), []
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(hold, scheduler, "a", served)
        await wait_all_tasks_blocked()
        assert scheduler.queued == 2
        with pytest.raises(Overloaded) as caught:
            await hold(scheduler, "b", served)
        assert caught.value.retry_after_s is not None
        assert caught.value.retry_after_s >= 1
    assert served == ["a"] * 3


async def test_leaving_the_queue_frees_the_place_at_once(autojump_clock: MockClock) -> None:
    scheduler, served = make(max_queue=1), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold, scheduler, "a", served)
        await wait_all_tasks_blocked()
        with trio.move_on_after(0.1):
            await hold(scheduler, "b", served)
        assert scheduler.queued == 0
        await hold(scheduler, "c", served)
    assert served == ["a", "c"]


async def test_a_slot_granted_to_a_cancelled_turn_goes_on() -> None:
    scheduler, served = make(), []
    scope = trio.CancelScope()

    async def cancelled() -> None:
        with scope:
            await hold(scheduler, "b", served)

    async with trio.open_nursery() as nursery, scheduler.slot("a", ignore):
        nursery.start_soon(cancelled)
        await wait_all_tasks_blocked()
        nursery.start_soon(hold, scheduler, "c", served)
        await wait_all_tasks_blocked()
        # b is on its way out, but still stands in the queue when the slot falls free.
        scope.cancel()
    assert served == ["c"]
    assert scheduler.running == scheduler.queued == 0


@settings(max_examples=60, deadline=None)
@given(
    slots=st.integers(1, 4),
    turns=st.lists(
        st.tuples(st.sampled_from("abc"), st.floats(0, 5), st.floats(0.1, 2), st.none() | st.floats(0, 3)),
        min_size=1,
        max_size=25,
    ),
)
def test_no_slot_leaks_no_turn_starves_and_work_is_conserved(
    slots: int, turns: list[tuple[str, float, float, float | None]]
) -> None:
    """Whatever arrives and leaves: everybody is served or left, no more than `slots` run at a
    time, and no slot idles while somebody waits."""
    outcomes: list[str] = []

    async def one(
        scheduler: Scheduler, party: str, at: float, seconds: float, patience: float | None
    ) -> None:
        await trio.sleep(at)
        with trio.move_on_after(1e9 if patience is None else patience) as scope:
            async with scheduler.slot(party, ignore):
                assert 1 <= scheduler.running <= slots
                await trio.sleep(seconds)
            outcomes.append("served")
        if scope.cancelled_caught:
            outcomes.append("left")

    async def watch(scheduler: Scheduler) -> None:
        while True:
            await trio.sleep(0.05)
            assert scheduler.running == slots or scheduler.queued == 0

    async def main() -> None:
        scheduler = make(slots)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch, scheduler)
            async with trio.open_nursery() as clients:
                for turn in turns:
                    clients.start_soon(one, scheduler, *turn)
            nursery.cancel_scope.cancel()
        assert scheduler.running == scheduler.queued == 0

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert len(outcomes) == len(turns)
