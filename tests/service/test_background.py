"""Work nobody waits for."""

from collections.abc import Awaitable, Callable

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from persona.errors import MemoryFailure
from persona.metrics import Metrics
from persona.service.background import Background, Importance

LOW, NORMAL = Importance.LOW, Importance.NORMAL


def job(done: list[str], name: str) -> Callable[[], Awaitable[None]]:
    async def run() -> None:
        await trio.lowlevel.checkpoint()
        done.append(name)

    return run


async def test_full_means_the_least_important_gives_way() -> None:
    metrics, done = Metrics(), []
    background = Background(queue_size=2, workers=1, metrics=metrics)
    assert background.submit("low", job(done, "low 1"), LOW)
    assert background.submit("low", job(done, "low 2"), LOW)
    assert not background.submit("low", job(done, "low 3"), LOW)
    assert background.submit("normal", job(done, "normal 1"), NORMAL)
    assert background.submit("normal", job(done, "normal 2"), NORMAL)
    assert not background.submit("normal", job(done, "normal 3"), NORMAL)
    assert background.queued == 2
    async with trio.open_nursery() as nursery:
        await nursery.start(background.run)
        await background.finish()
    assert done == ["normal 1", "normal 2"]
    assert metrics.value("background_dropped_total", job="low") == 3
    assert metrics.value("background_dropped_total", job="normal") == 1


async def test_who_gives_way_later_hears_of_it() -> None:
    background, heard = Background(queue_size=1, workers=1, metrics=Metrics()), []
    assert background.submit("low", job([], "low"), LOW, on_dropped=lambda: heard.append("low"))
    # Refused at once: its answer says so.
    assert not background.submit("late", job([], "late"), LOW, on_dropped=lambda: heard.append("late"))
    assert heard == []
    assert background.submit("normal", job([], "normal"), NORMAL, on_dropped=lambda: heard.append("normal"))
    assert heard == ["low"]


async def test_a_failing_job_takes_nothing_with_it(capsys: pytest.CaptureFixture[str]) -> None:
    metrics, done = Metrics(), []
    background = Background(queue_size=10, workers=1, metrics=metrics)

    async def refused() -> None:
        raise MemoryFailure("no disk")

    async def crashes() -> None:
        raise ZeroDivisionError

    async with trio.open_nursery() as nursery:
        await nursery.start(background.run)
        background.submit("refused", refused, NORMAL)
        background.submit("crashes", crashes, NORMAL)
        background.submit("fine", job(done, "fine"), NORMAL)
        await background.finish()
    assert done == ["fine"]
    assert metrics.value("background_failed_total", job="refused") == 1
    assert metrics.value("background_failed_total", job="crashes") == 1


async def test_workers_run_side_by_side(autojump_clock: MockClock) -> None:
    background = Background(queue_size=100, workers=4, metrics=Metrics())

    async def nap() -> None:
        await trio.sleep(1)

    async with trio.open_nursery() as nursery:
        await nursery.start(background.run)
        await wait_all_tasks_blocked()
        for _ in range(8):
            background.submit("nap", nap, NORMAL)
        await background.finish()
    assert trio.current_time() == pytest.approx(2)


async def test_after_finish_nothing_is_taken() -> None:
    background = Background(queue_size=10, workers=1, metrics=Metrics())
    async with trio.open_nursery() as nursery:
        await nursery.start(background.run)
        await background.finish()
    assert not background.submit("late", job([], "late"), NORMAL)
