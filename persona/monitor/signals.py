"""SIGUSR1: the tree of tasks, for an operator who is at the machine and cannot or will not connect."""

import signal
import sys
from collections.abc import Callable

import structlog
import trio

from persona.monitor.tree import TaskNode, as_json, as_text

log = structlog.get_logger()


async def report_on_signal(
    read: Callable[[], TaskNode], *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    """Show the tree on each SIGUSR1 until cancelled; ends at once where there is no such signal.

    Only for the main thread, as all of Python's signal handling.
    """
    if not hasattr(signal, "SIGUSR1"):
        task_status.started()
        return
    with trio.open_signal_receiver(signal.SIGUSR1) as signals:
        task_status.started()
        async for _ in signals:
            show(read())


def show(tree: TaskNode) -> None:
    """As text where somebody looks at a terminal, and as one event where programs read the log. A warning,
    so that it is seen at most levels: it comes only when it was asked for."""
    if sys.stderr.isatty():
        sys.stderr.write(as_text(tree))
        sys.stderr.flush()
    else:
        log.warning("tasks", tree=as_json(tree))
