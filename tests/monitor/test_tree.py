"""The tree of tasks, of tasks the test knows."""

import math
from collections.abc import Iterator

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from persona.monitor.tree import (
    MAX_NAME_CHARS,
    MAX_NODES,
    SHORT_NAMES,
    RequestNode,
    TaskNode,
    as_json,
    as_text,
    noting_births,
    read_tree,
    short_name,
)
from persona.service.sessions import RunningRequest


def every(node: TaskNode) -> Iterator[TaskNode]:
    yield node
    for nursery in node.nurseries:
        for task in nursery.tasks:
            yield from every(task)


def find(tree: TaskNode, name: str) -> TaskNode:
    (found,) = [node for node in every(tree) if node.name == name]
    return found


async def waits(event: trio.Event) -> None:
    await event.wait()


async def test_names_ages_deadlines_and_what_is_waited_for(autojump_clock: MockClock) -> None:
    async def house() -> None:
        async with trio.open_nursery() as rooms:
            rooms.cancel_scope.deadline = trio.current_time() + 60
            rooms.start_soon(waits, trio.Event(), name="cellar")
            await trio.sleep(5)
            rooms.start_soon(trio.sleep, 1000, name="attic")

    with noting_births() as births:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(house, name="house")
            await trio.sleep(7)
            tree = read_tree(births, siblings=3, requests_of=lambda _id: ())
            found = find(tree, "house")
            assert found.age_s == 7
            assert found.waits_for.startswith("NurseryManager.__aexit__")
            (rooms,) = found.nurseries
            assert rooms.deadline_s == 53
            assert [(room.name, room.age_s) for room in rooms.tasks] == [("cellar", 7), ("attic", 2)]
            assert find(tree, "attic").waits_for == "sleep"
            # The one that asks, and so runs.
            assert find(tree, short_name(trio.lowlevel.current_task().name)).waits_for == "running"
            nursery.cancel_scope.cancel()


async def test_equal_siblings_are_counted_and_the_oldest_shown(autojump_clock: MockClock) -> None:
    with noting_births() as births:
        async with trio.open_nursery() as nursery:
            for number in range(30):
                nursery.start_soon(trio.sleep, 1000, name=f"connection s{number}")
                await trio.sleep(1)
            nursery.start_soon(trio.sleep, 1000, name="other")
            await wait_all_tasks_blocked()
            tree = read_tree(births, siblings=2, requests_of=lambda _id: ())
            names = [node.name for node in every(tree)]
            assert [name for name in names if name.startswith("connection")] == [
                "connection s0",
                "connection s1",
            ]
            assert "other" in names
            assert "and 28 more: connection\n" in as_text(tree)
            more = [nursery.more for node in every(tree) for nursery in node.nurseries if nursery.more]
            assert more == [{"connection": 28}]
            nursery.cancel_scope.cancel()


async def test_its_size_is_bounded_whatever_is_asked_for(autojump_clock: MockClock) -> None:
    with noting_births() as births:
        async with trio.open_nursery() as nursery:
            for number in range(MAX_NODES + 100):
                nursery.start_soon(trio.sleep, 1000, name=f"task {number}")
            await wait_all_tasks_blocked()
            tree = read_tree(births, siblings=10_000, requests_of=lambda _id: ())
            assert len(list(every(tree))) == MAX_NODES
            nursery.cancel_scope.cancel()


async def test_requests_are_shown_with_their_connection(autojump_clock: MockClock) -> None:
    await trio.sleep(100)
    running = RunningRequest(id=1, method="persona.chat", accepted_at=98.0, deadline=400.0)
    other = RunningRequest(id=2, method="x", accepted_at=100.0)
    nodes = {"s7": [RequestNode.of(running, method="persona.chat"), RequestNode.of(other, method="unknown")]}
    with noting_births() as births:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep, 1000, name="connection s7")
            await wait_all_tasks_blocked()
            tree = read_tree(births, siblings=2, requests_of=lambda session_id: nodes.get(session_id, ()))
            found = find(tree, "connection s7")
            assert [(r.method, r.age_s, r.deadline_s) for r in found.requests] == [
                ("persona.chat", 2, 300),
                ("unknown", 0, None),
            ]
            assert "request persona.chat 2.0 s, due in 300.0 s\n" in as_text(tree)
            assert {"method": "unknown", "age_s": 0, "deadline_s": None} in as_json(found)["requests"]
            nursery.cancel_scope.cancel()


async def test_the_text_is_one_line_a_task_and_drawn_as_a_tree() -> None:
    def task(name: str, *tasks: TaskNode, more: dict[str, int] | None = None) -> TaskNode:
        from persona.monitor.tree import NurseryNode

        nurseries = (NurseryNode(deadline_s=None, tasks=tasks, more=more or {}),) if tasks else ()
        return TaskNode(name=name, age_s=1.0, waits_for="it", requests=(), nurseries=nurseries)

    tree = task("a", task("b", task("c"), more={"d": 4}), task("e"))
    assert as_text(tree).splitlines() == [
        "a 1.0 s: it",
        "|- b 1.0 s: it",
        "|  |- c 1.0 s: it",
        "|  `- and 4 more: d",
        "`- e 1.0 s: it",
    ]


async def test_what_is_older_than_the_instrument_has_no_age(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep, 1000, name="old")
        await wait_all_tasks_blocked()
        with noting_births() as births:
            assert find(read_tree(births, siblings=3, requests_of=lambda _id: ()), "old").age_s is None
            assert births.of(trio.lowlevel.current_task()) == -math.inf
        nursery.cancel_scope.cancel()


async def test_the_dead_are_forgotten_and_the_instrument_goes(autojump_clock: MockClock) -> None:
    with noting_births() as births:
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(trio.lowlevel.checkpoint)
        assert len(births) == 0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.lowlevel.checkpoint)
        assert len(births) == 0


@pytest.mark.parametrize(
    ("name", "short"),
    [
        ("persona.monitor.task.Monitor.run", "monitor.task.Monitor.run"),
        ("persona.a.f.<locals>.g", "a.f.g"),
        ("functools.partial(<bound method A.b of <secret>>, 'x')", "A.b"),
        ("functools.partial(<function f at 0x7f>, 'x\ny')", "f"),
        ("a\r\n\x1b[31mb", "a???[31mb"),
        ("x" * 500, "x" * MAX_NAME_CHARS),
    ],
)
def test_names_are_short_and_on_one_line(name: str, short: str) -> None:
    assert short_name(name) == short


def test_every_name_that_is_shortened_is_one_that_there_is() -> None:
    import importlib

    for name in SHORT_NAMES:
        parts = name.split(".")
        for length in range(len(parts), 0, -1):
            try:
                found: object = importlib.import_module(".".join(parts[:length]))
            except ModuleNotFoundError:
                continue
            for part in parts[length:]:
                found = getattr(found, part)
            assert callable(found)
            break
