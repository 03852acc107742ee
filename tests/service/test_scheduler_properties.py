"""The scheduler: what holds whatever happens."""

import itertools
from collections import Counter, defaultdict

import attrs
import trio
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from persona.errors import Overloaded
from persona.service.scheduler import (
    POSITION_INTERVAL_S,
    Scheduler,
)
from tests.service.test_scheduler import hold, hold_briefly, ignore, make, telling

WEIGHTS = {"a": 1, "b": 1, "c": 2, "d": 3}
PARTIES = st.sampled_from(sorted(WEIGHTS))


@attrs.frozen
class Turn:
    """A turn of a script. Times are seconds."""

    party: str
    conversation: str
    at: float
    held_s: float
    saved_s: float
    patience_s: float | None


TURNS = st.builds(
    Turn,
    party=PARTIES,
    conversation=st.sampled_from("xyz"),
    # Coarse, so that much falls into the same instant.
    at=st.integers(0, 10).map(lambda n: n / 2),
    held_s=st.integers(1, 6).map(lambda n: n / 4),
    saved_s=st.integers(0, 2).map(lambda n: n / 4),
    patience_s=st.none() | st.integers(0, 12).map(lambda n: n / 4),
)


class Auditor(trio.abc.Instrument):
    """Checks, after each step of any task, what must hold at every moment."""

    def __init__(self, scheduler: Scheduler, slots: int, max_queue: int) -> None:
        self._scheduler, self._slots, self._max_queue = scheduler, slots, max_queue
        self.faults: list[str] = []

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        running, queued = self._scheduler.running, self._scheduler.queued
        if not 0 <= running <= self._slots:
            self.faults.append(f"{running} slots in use")
        if queued and running < self._slots:
            self.faults.append(f"{queued} wait beside a free slot")
        if not 0 <= queued <= self._max_queue or not 0 <= self._scheduler.lined_up <= self._max_queue:
            self.faults.append(f"{queued} in the queue, {self._scheduler.lined_up} in lines")


@settings(max_examples=150, deadline=None)
@given(
    slots=st.integers(1, 4),
    max_queue=st.integers(1, 8),
    max_queue_wait_s=st.sampled_from([0.0, 1.0, 5.0]),
    script=st.lists(TURNS, min_size=1, max_size=25),
)
def test_no_slot_leaks_no_turn_starves_and_work_is_conserved(
    slots: int, max_queue: int, max_queue_wait_s: float, script: list[Turn]
) -> None:
    """Whatever arrives and leaves, and whenever: everybody is served, refused, or left; no more than `slots`
    run, none is free while somebody waits; and a conversation has one generation at a time, in order."""
    outcomes: Counter[str] = Counter()
    stood: dict[str, list[int]] = defaultdict(list)
    begun: dict[str, list[int]] = defaultdict(list)
    in_conversation: Counter[str] = Counter()

    async def one(scheduler: Scheduler, number: int, turn: Turn) -> None:
        await trio.sleep(turn.at)
        conversation = f"{turn.party}:{turn.conversation}"
        with trio.move_on_after(1e9 if turn.patience_s is None else turn.patience_s) as scope:
            try:
                with scheduler.line(conversation) as standing:
                    stood[conversation].append(number)
                    await standing.reach_front()
                    async with scheduler.slot(turn.party, ignore):
                        begun[conversation].append(number)
                        in_conversation[conversation] += 1
                        assert in_conversation[conversation] == 1
                        try:
                            await trio.sleep(turn.held_s)
                        finally:
                            in_conversation[conversation] -= 1
                    await trio.sleep(turn.saved_s)
                outcomes["served"] += 1
            except Overloaded as exc:
                assert exc.retry_after_s is not None
                assert exc.retry_after_s >= 1
                outcomes["refused"] += 1
        outcomes["left"] += scope.cancelled_caught

    async def main() -> None:
        scheduler = make(slots, max_queue, max_queue_wait_s=max_queue_wait_s, weight_of=WEIGHTS.__getitem__)
        auditor = Auditor(scheduler, slots, max_queue)
        trio.lowlevel.add_instrument(auditor)
        async with telling(scheduler) as clients:
            for number, turn in enumerate(script):
                clients.start_soon(one, scheduler, number, turn)
        trio.lowlevel.remove_instrument(auditor)
        assert auditor.faults == []
        assert scheduler.running == scheduler.queued == scheduler.lined_up == 0
        # Nothing is left behind that would bar the way of those who come later.
        with trio.fail_after(0.1):
            async with trio.open_nursery() as nursery:
                for _ in range(slots):
                    nursery.start_soon(hold_briefly, scheduler, "a")

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert outcomes.total() == len(script)
    for conversation, numbers in begun.items():
        assert numbers == [number for number in stood[conversation] if number in set(numbers)]


@settings(max_examples=100, deadline=None)
@given(
    slots=st.integers(1, 4),
    turns=st.dictionaries(PARTIES, st.integers(1, 12), min_size=2),
    held_s=st.lists(st.integers(1, 8).map(lambda n: n / 4), min_size=1, max_size=7),
)
def test_parties_that_wait_get_their_shares(slots: int, turns: dict[str, int], held_s: list[float]) -> None:
    """At no moment do two parties that both have waited since the beginning differ by more than a round; and
    nobody's next turn waits for longer than one."""
    granted: list[str] = []
    waiting = Counter(turns)
    durations = itertools.cycle(held_s)

    async def one(scheduler: Scheduler, party: str) -> None:
        async with scheduler.slot(party, ignore):
            granted.append(party)
            waiting[party] -= 1
            # Those that were granted a slot in the same instant begin in any order.
            await wait_all_tasks_blocked()
            so_far = Counter(granted)
            rounds = [so_far[other] / WEIGHTS[other] for other in turns if waiting[other]]
            assert not rounds or max(rounds) - min(rounds) <= 1
            await trio.sleep(next(durations))

    async def main() -> None:
        scheduler = make(slots, weight_of=WEIGHTS.__getitem__)
        async with trio.open_nursery() as nursery:
            for _ in range(slots):
                nursery.start_soon(hold, scheduler, "a", [])
            await wait_all_tasks_blocked()
            for party, count in turns.items():
                for _ in range(count):
                    nursery.start_soon(one, scheduler, party)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert Counter(granted) == turns
    # Give or take those of one instant, at either end.
    one_round = sum(WEIGHTS.values()) + 2 * (slots - 1)
    for party in turns:
        places = [n for n, name in enumerate(granted) if name == party]
        assert all(b - a <= one_round for a, b in itertools.pairwise([0, *places]))


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(PARTIES, st.booleans()), min_size=1, max_size=30))
def test_a_position_is_the_number_of_grants_to_come(joiners: list[tuple[str, bool]]) -> None:
    """If nobody else comes or leaves."""
    last_told: dict[int, int] = {}
    at_last: dict[int, int] = {}
    """Before the first of them is served."""
    granted: list[int] = []

    async def one(scheduler: Scheduler, number: int, party: str, scope: trio.CancelScope) -> None:
        def told(position: int) -> None:
            last_told[number] = position

        with scope:
            async with scheduler.slot(party, told):
                granted.append(number)

    async def main() -> None:
        scheduler = make(weight_of=WEIGHTS.__getitem__)
        async with telling(scheduler) as nursery, scheduler.slot("a", ignore):
            scopes = [trio.CancelScope() for _ in joiners]
            for number, (party, _) in enumerate(joiners):
                nursery.start_soon(one, scheduler, number, party, scopes[number])
                await wait_all_tasks_blocked()
            for (_, leaves), scope in zip(joiners, scopes, strict=True):
                if leaves:
                    scope.cancel()
            await trio.sleep(2 * POSITION_INTERVAL_S)
            at_last.update(last_told)

    trio.run(main, clock=MockClock(autojump_threshold=0))
    assert [at_last[number] for number in granted] == list(range(1, len(granted) + 1))
    assert set(granted) == {number for number, (_, leaves) in enumerate(joiners) if not leaves}
