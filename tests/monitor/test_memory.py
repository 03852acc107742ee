"""The marks of memory: who is let in, what is dropped, who is shed."""

from typing import Any

import attrs
import pytest

from persona.metrics import Metrics
from persona.monitor.memory import SHED_PER_SAMPLE, MemoryGuard


@attrs.define
class House:
    """A process of so many megabytes; `shed` is what the guard asked for."""

    soft_limit_mb: float = 100
    hard_limit_mb: float = 200
    resident_mb: float = 50
    error: OSError | None = None
    shed: list[int] = attrs.field(factory=list)
    metrics: Metrics = attrs.field(factory=Metrics)
    caches_dropped: int = 0
    guard: MemoryGuard = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.guard = MemoryGuard(
            soft_limit_mb=self.soft_limit_mb,
            hard_limit_mb=self.hard_limit_mb,
            resident_bytes=self._resident_bytes,
            shed=self._shed,
            drop_caches=self._drop_caches,
            metrics=self.metrics,
        )

    def _resident_bytes(self) -> int:
        if self.error is not None:
            raise self.error
        return int(self.resident_mb * 1_000_000)

    def _shed(self, count: int) -> int:
        self.shed.append(count)
        return count

    def _drop_caches(self) -> None:
        self.caches_dropped += 1

    def sample(self, resident_mb: float) -> tuple[bool, bool]:
        """Whether there is room for new connections at this size, and whether some were shed."""
        self.resident_mb = resident_mb
        before = len(self.shed)
        self.guard.look()
        return self.guard.has_memory(), len(self.shed) > before


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


def test_a_look_that_fails_changes_nothing_and_is_no_end() -> None:
    """To look takes a descriptor, and those can run out when many clients come."""
    house = House(resident_mb=150)
    assert house.guard.look() == 150_000_000
    house.error, house.resident_mb = OSError(24, "Too many open files"), 50
    assert house.guard.look() is None
    assert not house.guard.has_memory()
    house.error = None
    assert house.guard.look() == 50_000_000
    assert house.guard.has_memory()


def test_caches_are_dropped_when_memory_runs_short_and_not_at_each_look() -> None:
    house = House()
    counts = []
    for size in (100, 101, 150, 250, 100, 101):
        house.sample(size)
        counts.append(house.caches_dropped)
    assert counts == [0, 1, 1, 1, 1, 2]
    assert house.metrics.value("caches_dropped_total") == 2


def test_the_marks_are_logged_when_they_are_crossed_not_at_each_look(
    capsys: pytest.CaptureFixture[str],
) -> None:
    house = House()
    for size in (50, 150, 151, 150, 50, 50):
        house.sample(size)
    logged = capsys.readouterr().out
    assert logged.count("memory_short") == logged.count("memory_recovered") == 1
