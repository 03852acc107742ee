"""Memory and the event loop, looked at once a second."""

from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from persona.metrics import Metrics
from persona.monitor import SHED_PER_SAMPLE, Monitor


@attrs.define
class House:
    """A process of so many megabytes; `shed` is what the monitor asked for."""

    soft_limit_mb: float = 100
    hard_limit_mb: float = 200
    resident_mb: float = 50
    samples: int = 0
    error: OSError | None = None
    shed: list[int] = attrs.field(factory=list)
    metrics: Metrics = attrs.field(factory=Metrics)
    monitor: Monitor = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.monitor = Monitor(
            soft_limit_mb=self.soft_limit_mb,
            hard_limit_mb=self.hard_limit_mb,
            resident_bytes=self._resident_bytes,
            shed=self._shed,
            metrics=self.metrics,
        )

    def _resident_bytes(self) -> int:
        self.samples += 1
        if self.error is not None:
            raise self.error
        return int(self.resident_mb * 1_000_000)

    def _shed(self, count: int) -> int:
        self.shed.append(count)
        return count

    def sample(self, resident_mb: float) -> tuple[bool, bool]:
        """Whether there is room for new connections at this size, and whether some were shed."""
        self.resident_mb = resident_mb
        before = len(self.shed)
        self.monitor.sample()
        return self.monitor.has_memory(), len(self.shed) > before


def test_nobody_is_let_in_above_the_soft_mark_nor_cut_below_the_hard_one() -> None:
    house = House()
    sizes = (50, 100, 101, 200, 99)
    assert [house.sample(size) for size in sizes] == [
        (True, False),
        (True, False),
        (False, False),
        (False, False),
        (True, False),
    ]


def test_above_the_hard_mark_connections_are_shed_until_memory_is_below_the_soft_one() -> None:
    house = House()
    sizes = (201, 150, 101, 100, 150, 300)
    assert [house.sample(size) for size in sizes] == [
        (False, True),
        (False, True),
        (False, True),
        (True, False),
        (False, False),
        (False, True),
    ]
    assert set(house.shed) == {SHED_PER_SAMPLE}


@pytest.mark.parametrize(
    ("limits", "expected"),
    [
        ({"soft_limit_mb": 0, "hard_limit_mb": 0}, (True, False)),
        ({"soft_limit_mb": 0}, (True, True)),
        ({"hard_limit_mb": 0}, (False, False)),
    ],
)
def test_a_limit_that_is_off_does_nothing(limits: dict[str, Any], expected: tuple[bool, bool]) -> None:
    house = House(**limits)
    assert house.sample(10_000) == expected
    # Without a soft mark to wait for, shedding ends below the hard one.
    assert house.sample(50) == (True, False)


def test_the_size_is_a_metric() -> None:
    house = House()
    house.sample(123)
    assert house.metrics.value("resident_memory_bytes") == 123_000_000


async def test_a_look_that_fails_changes_nothing_and_is_no_end(autojump_clock: MockClock) -> None:
    """To look takes a descriptor, and those can run out when many clients come."""
    house = House(resident_mb=150)
    async with trio.open_nursery() as nursery:
        await nursery.start(house.monitor.run)
        for error, resident_mb in ((OSError(24, "Too many open files"), 50), (None, 50)):
            house.error, house.resident_mb = error, resident_mb
            await trio.sleep(1.5)
            assert house.monitor.has_memory() == (error is None)
        nursery.cancel_scope.cancel()


async def test_it_has_looked_when_it_has_started_and_looks_once_a_second(autojump_clock: MockClock) -> None:
    house = House(resident_mb=150)
    async with trio.open_nursery() as nursery:
        await nursery.start(house.monitor.run)
        assert not house.monitor.has_memory()
        assert (house.samples, trio.current_time()) == (1, 0)
        await trio.sleep(3.5)
        assert house.samples == 4
        nursery.cancel_scope.cancel()


async def test_how_late_it_woke_is_a_metric(mock_clock: MockClock) -> None:
    house = House()
    async with trio.open_nursery() as nursery:
        await nursery.start(house.monitor.run)
        for passed, lag in ((1.25, 0.25), (1.0, 0.0)):
            await wait_all_tasks_blocked()
            mock_clock.jump(passed)
            await wait_all_tasks_blocked()
            assert house.metrics.value("loop_lag_seconds") == lag
        nursery.cancel_scope.cancel()


def test_the_marks_are_logged_when_they_are_crossed_not_at_each_look(
    capsys: pytest.CaptureFixture[str],
) -> None:
    house = House()
    for size in (50, 150, 151, 150, 50, 50):
        house.sample(size)
    logged = capsys.readouterr().out
    assert logged.count("memory_short") == logged.count("memory_recovered") == 1
