"""The tree of tasks as it is at this moment: names, ages, deadlines, and what each task waits for.

Only trio's public introspection is used, and only when somebody asks. Ages need the time at which a task
was born, which trio does not keep: an instrument notes it. One that hears of nothing but births and deaths
costs nothing when tasks switch, which is what makes other instruments dear.

Equal siblings are summarised: of thousands of connections the oldest few are shown, and the rest counted.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from types import FrameType
from typing import Any

import attrs
import trio

from persona.service.sessions import RunningRequest

MAX_NODES = 2000
"""Tasks shown in all: some 400 kB of JSON."""
MAX_DEPTH = 40
"""Of tasks within tasks; the server has fewer than ten."""
MAX_NAME_CHARS = 80
PARTIAL = r"^functools\.partial\(<(?:bound method|function) ([\w.]+).*"

SHORT_NAMES = {
    "persona.storage.pool._run_lanes": "database",
    "persona.storage.pool._work": "database lane",
    "persona.storage.pool._write": "database lane",
    "persona.storage.pool._nudge_when_idle": "database upkeep",
    "persona.storage.queue.CallQueue.watch": "database watch",
    "persona.service.background.Background._work": "background worker",
    "trio._highlevel_serve_listeners._run_handler": "handshake",
    "persona.transport.connection.Connection._work": "worker",
    "persona.timeouts.Sleepers.run": "scripted model",
    "persona.transport.connection.Connection._write": "writer",
    "persona.transport.connection.Connection._ping": "ping",
    "trio_websocket._impl.WebSocketConnection._reader_task": "websocket reader",
    "persona.transport.sockets.Readiness.run": "readiness",
    "persona.app.run_server": "run_server",
    "trio.serve_listeners": "accept loops",
    "trio._highlevel_serve_listeners._serve_one_listener": "accept loop",
}
"""What tasks are called that nobody named when they were started. Others go by their function's name."""

RequestsOf = Callable[[str], Sequence["RequestNode"]]
"""The requests that run in the session of that id."""


class Births(trio.abc.Instrument):
    """Notes when tasks are born, on trio's clock."""

    def __init__(self) -> None:
        self._born_at: dict[trio.lowlevel.Task, float] = {}

    def task_spawned(self, task: trio.lowlevel.Task) -> None:
        """See `trio.abc.Instrument`."""
        self._born_at[task] = trio.current_time()

    def task_exited(self, task: trio.lowlevel.Task) -> None:
        """See `trio.abc.Instrument`."""
        self._born_at.pop(task, None)

    def of(self, task: trio.lowlevel.Task) -> float:
        """When it was born; minus infinity for one that is older than this instrument."""
        return self._born_at.get(task, -math.inf)

    def __len__(self) -> int:
        return len(self._born_at)


@contextmanager
def noting_births() -> Iterator[Births]:
    """Note births while the block runs. Tasks that are there already are older than all that come."""
    births = Births()
    trio.lowlevel.add_instrument(births)
    try:
        yield births
    finally:
        trio.lowlevel.remove_instrument(births)


@attrs.frozen(kw_only=True)
class RequestNode:
    """A request that runs; it is no task of its own, but what a worker is busy with."""

    method: str
    age_s: float
    deadline_s: float | None
    """From now; `None` where there is none."""

    @classmethod
    def of(cls, request: RunningRequest, *, method: str) -> "RequestNode":
        """`request` as it stands now."""
        now = trio.current_time()
        return cls(
            method=method,
            age_s=round(now - request.accepted_at, 3),
            deadline_s=from_now(request.deadline, now),
        )


@attrs.frozen(kw_only=True)
class NurseryNode:
    """A nursery that a task has open. `more` counts the tasks not shown, by kind."""

    deadline_s: float | None
    tasks: tuple["TaskNode", ...]
    more: dict[str, int]


@attrs.frozen(kw_only=True)
class TaskNode:
    """A task. `age_s` is `None` for one that is older than the server."""

    name: str
    age_s: float | None
    waits_for: str
    requests: tuple[RequestNode, ...]
    nurseries: tuple[NurseryNode, ...]


def read_tree(births: Births, *, siblings: int, requests_of: RequestsOf) -> TaskNode:
    """The tree from trio's main task down, with at most `siblings` of a kind in each nursery."""
    root = trio.lowlevel.current_root_task()
    assert root is not None
    return _Reader(births, siblings, requests_of).task(root, 0)


class _Reader:
    def __init__(self, births: Births, siblings: int, requests_of: RequestsOf) -> None:
        self._births = births
        self._siblings = siblings
        self._requests_of = requests_of
        self._now = trio.current_time()
        self._left = MAX_NODES

    def task(self, task: trio.lowlevel.Task, depth: int) -> TaskNode:
        self._left -= 1
        name = short_name(task.name)
        born_at = self._births.of(task)
        return TaskNode(
            name=name,
            age_s=None if born_at == -math.inf else round(self._now - born_at, 3),
            waits_for=waits_for(task),
            requests=tuple(self._requests_of(_session_id(name))),
            nurseries=tuple(self._nursery(nursery, depth) for nursery in task.child_nurseries),
        )

    def _nursery(self, nursery: trio.Nursery, depth: int) -> NurseryNode:
        shown: list[TaskNode] = []
        seen, more = Counter[str](), Counter[str]()
        # Oldest first, so that what is shown is the same from one look to the next.
        for task in sorted(nursery.child_tasks, key=lambda task: (self._births.of(task), task.name)):
            kind = _kind(short_name(task.name))
            seen[kind] += 1
            if seen[kind] > self._siblings or self._left <= 0 or depth >= MAX_DEPTH:
                more[kind] += 1
            else:
                shown.append(self.task(task, depth + 1))
        return NurseryNode(
            deadline_s=from_now(nursery.cancel_scope.deadline, self._now), tasks=tuple(shown), more=dict(more)
        )


def from_now(deadline: float, now: float) -> float | None:
    """Seconds until `deadline`; `None` where there is none."""
    return None if math.isinf(deadline) else round(deadline - now, 3)


def short_name(name: str) -> str:
    """A task's name in a few words, on one line."""
    known = SHORT_NAMES.get(name)
    if known is not None:
        return known
    if name.startswith("functools.partial("):
        # It has its arguments in its name, and they may be anything.
        name = re.sub(PARTIAL, r"\1", name, flags=re.DOTALL)
    name = name.removeprefix("persona.").replace(".<locals>", "")[:MAX_NAME_CHARS]
    return name if name.isprintable() else "".join(c if c.isprintable() else "?" for c in name)


def _kind(name: str) -> str:
    """What equal siblings have in common: `connection s12` is a connection."""
    return name.partition(" s")[0] if name.startswith("connection ") else name


def _session_id(name: str) -> str:
    return name.removeprefix("connection ") if name.startswith("connection ") else ""


def waits_for(task: trio.lowlevel.Task) -> str:
    """What a task waits for, and where: `CapacityLimiter.acquire in transport.listener:serve (88)`."""
    if task is trio.lowlevel.current_task():
        return "running"
    ours, foreign, primitive = "", "", ""
    for frame, line in task.iter_await_frames():
        module = str(frame.f_globals.get("__name__", "?"))
        function = _qualname(frame)
        if module.startswith("persona."):
            ours, foreign, primitive = f"{module.removeprefix('persona.')}:{function} ({line})", "", ""
        elif module.startswith("trio."):
            # The first step into trio says more than the trap at the bottom of it.
            primitive = primitive or function
        else:
            foreign = foreign or f"{module}:{function}"
    what = primitive or foreign
    return f"{what} in {ours}" if what and ours else what or ours


def _qualname(frame: FrameType) -> str:
    return frame.f_code.co_qualname.replace(".<locals>", "")


def as_json(node: TaskNode) -> dict[str, Any]:
    """The tree as plain values; what is empty is left out."""
    value: dict[str, Any] = {"name": node.name, "age_s": node.age_s, "waits_for": node.waits_for}
    if node.requests:
        value["requests"] = [attrs.asdict(request) for request in node.requests]
    if node.nurseries:
        value["nurseries"] = [
            {
                "deadline_s": nursery.deadline_s,
                "tasks": [as_json(task) for task in nursery.tasks],
                "more": nursery.more,
            }
            for nursery in node.nurseries
        ]
    return value


def as_text(node: TaskNode) -> str:
    """The tree as lines, each ended."""
    return "".join(f"{line}\n" for line in _lines(node))


def _lines(node: TaskNode) -> Iterator[str]:
    age = "" if node.age_s is None else f" {node.age_s:.1f} s"
    yield f"{node.name}{age}: {node.waits_for}"
    for request in node.requests:
        due = "" if request.deadline_s is None else f", due in {request.deadline_s:.1f} s"
        yield f"  request {request.method} {request.age_s:.1f} s{due}"
    blocks = [block for nursery in node.nurseries for block in _blocks(nursery)]
    for number, block in enumerate(blocks, 1):
        is_last = number == len(blocks)
        yield f"{'`-' if is_last else '|-'} {block[0]}"
        yield from (f"{'  ' if is_last else '| '} {line}" for line in block[1:])


def _blocks(nursery: NurseryNode) -> Iterator[list[str]]:
    """The lines of each of a nursery's tasks."""
    due = "" if nursery.deadline_s is None else f" (with its nursery due in {nursery.deadline_s:.1f} s)"
    for task in nursery.tasks:
        first, *rest = _lines(task)
        yield [first + due, *rest]
    for kind, count in sorted(nursery.more.items()):
        yield [f"and {count} more: {kind}"]
