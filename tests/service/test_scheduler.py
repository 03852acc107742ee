"""The model's slots, shared fairly."""

import itertools
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from persona.errors import LLMUnavailable, Overloaded
from persona.metrics import Metrics
from persona.service.scheduler import (
    MAX_RETRY_AFTER_S,
    POSITION_INTERVAL_S,
    WALK_INTERVAL_S,
    Scheduler,
)


def ignore(_position: int) -> None: ...


def make(slots: int = 1, max_queue: int = 512, **more: Any) -> Scheduler:
    return Scheduler(slots=slots, max_queue=max_queue, **{"metrics": Metrics(), **more})


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


async def take_turn(
    scheduler: Scheduler, conversation: str, name: str, served: list[str], *, save_s: float = 0.0
) -> None:
    """As a chat does it, in seconds: a slot for 1, then the saving."""
    with scheduler.line(conversation) as standing:
        await standing.reach_front()
        await hold(scheduler, "p", [])
        served.append(name)
        await trio.sleep(save_s)


@asynccontextmanager
async def telling(scheduler: Scheduler) -> AsyncIterator[trio.Nursery]:
    """With its service running."""
    async with trio.open_nursery() as service:
        await service.start(scheduler.run)
        async with trio.open_nursery() as nursery:
            yield nursery
        service.cancel_scope.cancel()


async def test_a_free_slot_is_given_at_once_and_says_no_position(autojump_clock: MockClock) -> None:
    positions: list[int] = []
    async with make().slot("a", positions.append):
        pass
    assert positions == []
    assert trio.current_time() == 0


# Fairness


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


async def test_a_party_gets_as_many_slots_a_round_as_it_weighs(autojump_clock: MockClock) -> None:
    scheduler, served = make(weight_of=lambda party: {"crowd": 3}.get(party, 1)), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold, scheduler, "first", [])
        await wait_all_tasks_blocked()
        for party in ("crowd", "one", "two"):
            for _ in range(6):
                nursery.start_soon(hold, scheduler, party, served)
            await wait_all_tasks_blocked()
    in_a_round = ["crowd"] * 3 + ["one", "two"]
    assert served == in_a_round * 2 + ["one", "two"] * 4


async def test_conversations_of_one_user_take_turns(autojump_clock: MockClock) -> None:
    """However many lines wait in one of them."""
    scheduler, served = make(), []
    async with trio.open_nursery() as nursery:
        for n in range(4):
            nursery.start_soon(take_turn, scheduler, "long", f"long {n}", served)
            await wait_all_tasks_blocked()
        for n in range(2):
            nursery.start_soon(take_turn, scheduler, "short", f"short {n}", served)
            await wait_all_tasks_blocked()
    assert served == ["long 0", "short 0", "long 1", "short 1", "long 2", "long 3"]


# Positions


async def test_positions_count_down_to_the_grant(autojump_clock: MockClock) -> None:
    scheduler, served, positions = make(), [], []
    async with telling(scheduler) as nursery:
        for party in ("a", "b", "c"):
            nursery.start_soon(hold, scheduler, party, served)
            await wait_all_tasks_blocked()
        await hold(scheduler, "d", served, on_position=lambda p: positions.append((p, trio.current_time())))
    # Each within the time of one walk.
    assert [position for position, _ in positions] == [3, 2, 1]
    assert [at for _, at in positions] == [pytest.approx(at, abs=WALK_INTERVAL_S) for at in (0, 1, 2)]
    assert served == ["a", "b", "c", "d"]


async def test_a_position_is_told_in_the_waiters_own_task(autojump_clock: MockClock) -> None:
    """So what goes wrong in telling it is that turn's, and no other's."""
    scheduler, served = make(), []

    def fails(_position: int) -> None:
        raise ZeroDivisionError

    async with telling(scheduler) as nursery:
        nursery.start_soon(hold, scheduler, "a", served)
        nursery.start_soon(hold, scheduler, "b", served)
        await wait_all_tasks_blocked()
        with pytest.raises(ZeroDivisionError):
            await hold(scheduler, "c", served, on_position=fails)
        assert trio.current_time() <= WALK_INTERVAL_S
        assert scheduler.queued == 1
    assert sorted(served) == ["a", "b"]


async def test_a_position_also_gets_worse(autojump_clock: MockClock) -> None:
    """Where somebody else's first turn comes before one's own second."""
    scheduler, positions = make(), []
    async with telling(scheduler) as nursery:
        nursery.start_soon(hold, scheduler, "a", [])
        await wait_all_tasks_blocked()
        nursery.start_soon(hold, scheduler, "mine", [])
        await wait_all_tasks_blocked()

        async def second() -> None:
            await hold(scheduler, "mine", [], on_position=positions.append)

        nursery.start_soon(second)
        await wait_all_tasks_blocked()
        await trio.sleep(0.1)
        nursery.start_soon(hold, scheduler, "b", [])
    assert positions == [2, 3, 2, 1]


async def test_many_grants_a_second_are_told_as_few_positions(autojump_clock: MockClock) -> None:
    scheduler, told = make(slots=2), []
    async with telling(scheduler) as nursery:
        for n in range(402):
            nursery.start_soon(hold_briefly, scheduler, f"p{n}")
        await wait_all_tasks_blocked()
        await hold(scheduler, "last", [], on_position=lambda p: told.append((p, trio.current_time())))
    positions, times = zip(*told, strict=True)
    assert 401 - 200 * WALK_INTERVAL_S <= positions[0] <= 401
    # 200 grants a second, for two seconds.
    assert 2 <= len(told) <= 1 + 2.0 / POSITION_INTERVAL_S
    assert list(positions) == sorted(positions, reverse=True)
    assert all(b - a >= POSITION_INTERVAL_S for a, b in itertools.pairwise(times))


async def hold_briefly(scheduler: Scheduler, party: str) -> None:
    await hold(scheduler, party, [], seconds=0.01)


# Bounds


async def test_a_full_queue_refuses_with_an_estimate(autojump_clock: MockClock) -> None:
    metrics = Metrics()
    scheduler, served = make(max_queue=2, metrics=metrics), []
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(hold, scheduler, "a", served)
        await wait_all_tasks_blocked()
        assert scheduler.queued == 2
        with pytest.raises(Overloaded) as caught:
            await hold(scheduler, "b", served)
        assert caught.value.retry_after_s is not None
        assert caught.value.retry_after_s >= 1
        assert metrics.value("llm_refused_total", reason="max_queue") == 1
    assert served == ["a"] * 3


async def test_the_estimate_follows_how_long_slots_were_held(autojump_clock: MockClock) -> None:
    scheduler = make(slots=2)
    # Nothing is known yet: a second for each.
    assert scheduler.estimated_wait_s() == 1.0
    await hold(scheduler, "a", [], seconds=10.0)
    assert scheduler.estimated_wait_s() == pytest.approx(10 / 2)
    await hold(scheduler, "a", [], seconds=20.0)
    assert scheduler.estimated_wait_s() == pytest.approx((10 + 0.2 * 10) / 2)
    async with trio.open_nursery() as nursery:
        for _ in range(5):
            nursery.start_soon(hold, scheduler, "a", [])
        await wait_all_tasks_blocked()
        assert scheduler.queued == 3
        assert scheduler.estimated_wait_s() == pytest.approx(12 * (3 + 1) / 2)
        nursery.cancel_scope.cancel()


async def test_a_model_that_hangs_shows_in_the_estimate_though_no_slot_is_given_back(
    autojump_clock: MockClock,
) -> None:
    scheduler = make(slots=2)
    await hold(scheduler, "a", [], seconds=1.0)
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(hold_for_ever, scheduler)
        await trio.sleep(100)
        assert scheduler.estimated_wait_s() == pytest.approx(100 * (1 + 1) / 2)
        await trio.sleep(10_000)
        assert scheduler.estimated_wait_s() == MAX_RETRY_AFTER_S
        nursery.cancel_scope.cancel()


async def hold_for_ever(scheduler: Scheduler) -> None:
    await hold(scheduler, "a", [], seconds=1e9)


async def test_who_waits_too_long_is_sent_away(autojump_clock: MockClock) -> None:
    metrics = Metrics()
    scheduler, served = make(max_queue_wait_s=30.0, metrics=metrics), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold_for_ever, scheduler)
        await wait_all_tasks_blocked()
        with pytest.raises(Overloaded, match="30 s") as caught:
            await hold(scheduler, "b", served)
        assert trio.current_time() == 30
        # It still stands there itself while the estimate is made, and the slot is held for 30 s by then.
        assert caught.value.retry_after_s == pytest.approx(60)
        assert scheduler.queued == 0
        assert metrics.value("llm_refused_total", reason="max_queue_wait_s") == 1
        nursery.cancel_scope.cancel()
    assert scheduler.running == 0


async def test_a_slot_in_the_last_instant_is_no_wait_too_long(autojump_clock: MockClock) -> None:
    scheduler, served = make(max_queue_wait_s=1.0), []
    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(hold_or_not, scheduler, served)
    # Either may come first; if it was refused, its slot was not given to it.
    assert len(served) in (1, 2)
    assert scheduler.running == scheduler.queued == 0
    assert trio.current_time() == len(served)


async def hold_or_not(scheduler: Scheduler, served: list[str]) -> None:
    try:
        await hold(scheduler, "a", served)
    except Overloaded:
        assert len(served) == 1


async def test_without_a_bound_a_turn_waits_as_long_as_it_takes(autojump_clock: MockClock) -> None:
    scheduler, served = make(max_queue_wait_s=0.0), []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(hold_long, scheduler)
        await wait_all_tasks_blocked()
        await hold(scheduler, "b", served)
    assert trio.current_time() == 100_001


async def hold_long(scheduler: Scheduler) -> None:
    await hold(scheduler, "a", [], seconds=100_000.0)


async def test_where_it_is_in_vain_nobody_waits(autojump_clock: MockClock) -> None:
    def refuse() -> None:
        raise LLMUnavailable("the model is down")

    scheduler = make(admit=refuse)
    with pytest.raises(LLMUnavailable):
        await hold(scheduler, "a", [])
    assert scheduler.running == scheduler.queued == 0


# Leaving


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


# Lines


async def test_turns_of_one_conversation_are_taken_in_order_and_hold_no_slot_meanwhile(
    autojump_clock: MockClock,
) -> None:
    scheduler, served = make(slots=3), []
    async with trio.open_nursery() as nursery:
        for name in "123":
            nursery.start_soon(in_conversation, scheduler, name, served)
            await wait_all_tasks_blocked()
        assert (scheduler.running, scheduler.queued, scheduler.lined_up) == (1, 0, 2)
        # The slot is free while the first is saved, and its conversation is not.
        await trio.sleep(1.5)
        assert (scheduler.running, scheduler.lined_up) == (0, 2)
    assert served == ["1", "2", "3"]
    assert trio.current_time() == 6
    assert scheduler.lined_up == 0


async def in_conversation(scheduler: Scheduler, name: str, served: list[str]) -> None:
    await take_turn(scheduler, "c", name, served, save_s=1.0)


async def test_lines_are_bounded_together(autojump_clock: MockClock) -> None:
    metrics = Metrics()
    scheduler, served = make(slots=2, max_queue=2, metrics=metrics), []
    async with trio.open_nursery() as nursery:
        for conversation in "aabb":
            nursery.start_soon(take_turn, scheduler, conversation, conversation, served)
            await wait_all_tasks_blocked()
        assert scheduler.lined_up == metrics.value("llm_lined_up") == 2
        with pytest.raises(Overloaded):
            await take_turn(scheduler, "a", "late", served)
        # A conversation that nobody speaks in has no line.
        with scheduler.line("c") as standing:
            await standing.reach_front()
        assert metrics.value("llm_refused_total", reason="max_queue") == 1
    assert sorted(served) == ["a", "a", "b", "b"]
    assert scheduler.lined_up == 0


async def test_who_leaves_a_line_holds_up_nobody(autojump_clock: MockClock) -> None:
    scheduler, reached = make(), []

    async def stand(name: str, scope: trio.CancelScope) -> None:
        with scope, scheduler.line("c") as standing:
            await standing.reach_front()
            reached.append(name)
            await trio.sleep_forever()

    scopes = {name: trio.CancelScope() for name in "abcd"}
    async with trio.open_nursery() as nursery:
        for name, scope in scopes.items():
            nursery.start_soon(stand, name, scope)
            await wait_all_tasks_blocked()
        assert (reached, scheduler.lined_up) == (["a"], 3)
        for leaves, then in (("b", ["a"]), ("a", ["a", "c"]), ("c", ["a", "c", "d"])):
            scopes[leaves].cancel()
            await wait_all_tasks_blocked()
            assert reached == then
        assert scheduler.lined_up == 0
        scopes["d"].cancel()
