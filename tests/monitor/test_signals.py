"""SIGUSR1: the tree, in the log or on the terminal."""

import io
import signal
import sys
from collections.abc import Iterator

import pytest
import structlog
import trio
from structlog.testing import capture_logs
from trio.testing import wait_all_tasks_blocked

from persona.monitor.signals import report_on_signal
from persona.monitor.tree import TaskNode

TREE = TaskNode(name="root", age_s=None, waits_for="Event.wait", requests=(), nurseries=())


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _harmless() -> Iterator[None]:
    """A signal that nobody takes would end the test run."""
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    yield
    signal.signal(signal.SIGUSR1, before)


async def raised(times: int) -> None:
    async with trio.open_nursery() as nursery:
        await nursery.start(report_on_signal, lambda: TREE)
        for _ in range(times):
            signal.raise_signal(signal.SIGUSR1)
            await wait_all_tasks_blocked(0.01)
        nursery.cancel_scope.cancel()


async def test_each_signal_is_one_event_in_the_log() -> None:
    structlog.reset_defaults()
    with capture_logs() as events:
        await raised(2)
    assert (
        events
        == [
            {
                "event": "tasks",
                "log_level": "warning",
                "tree": {"name": "root", "age_s": None, "waits_for": "Event.wait"},
            }
        ]
        * 2
    )


async def test_on_a_terminal_it_is_text(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    await raised(1)
    assert terminal.getvalue() == "root: Event.wait\n"


async def test_afterwards_the_signal_is_as_it_was() -> None:
    before = signal.getsignal(signal.SIGUSR1)
    await raised(1)
    assert signal.getsignal(signal.SIGUSR1) == before
