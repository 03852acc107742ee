"""Calls -> answers."""

import itertools
import json
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st
from trio.testing import MockClock, wait_all_tasks_blocked

from persona.rpc.dispatch import POOL_PATIENCE_S, Registry, method
from persona.service.sessions import Identity, Sessions
from tests.rpc.desk import Desk, Line, Methods, Nothing, call, desk, notify, reason


async def test_a_result_comes_under_the_requests_id() -> None:
    assert await desk().ask(call("t.sleep", "x")) == {"jsonrpc": "2.0", "id": "x", "result": {"slept": 0.0}}


async def test_a_notification_runs_and_is_never_answered() -> None:
    here = desk()
    for frame in (notify("t.sleep"), notify("t.bug"), notify("t.nope"), notify("t.sleep", wrong=1)):
        assert await here.ask(frame) is None
    assert here.methods.ran == ["slept 0"]
    assert here.session.in_flight == here.session.frames_in_flight == 0


async def test_what_looks_like_a_response_is_counted_and_dropped() -> None:
    here = desk()
    response = {"jsonrpc": "2.0", "id": 1, "result": 1}
    assert await here.ask(response) is None
    assert await here.ask([response, response]) is None
    assert await here.ask([response, notify("t.sleep")]) is None
    assert here.metrics.value("responses_dropped_total") == 4


@pytest.mark.parametrize(
    ("name", "expected"),
    [("t.conflict", "conflict"), ("t.nope", "method_not_found"), ("t.bug", "internal_error")],
)
async def test_errors_become_replies_and_are_counted(name: str, expected: str) -> None:
    here = desk()
    reply = await here.ask(call(name))
    assert reason(reply) == expected
    assert "secret" not in json.dumps(reply)
    assert here.metrics.value("errors_total", reason=expected) == 1
    label = "unknown" if expected == "method_not_found" else name
    assert here.metrics.value("requests_total", method=label, outcome=expected) == 1


async def test_admin_methods_need_the_role() -> None:
    assert (await desk().ask(call("t.admin")))["result"] == "yes"
    assert reason(await desk(role="user").ask(call("t.admin"))) == "unauthorized"


async def test_batches_are_answered_in_order_as_one_array() -> None:
    here = desk()
    reply = await here.ask(
        [call("t.sleep", 1), notify("t.sleep"), 7, call("t.conflict", 2), call("t.model", 3)]
    )
    assert [(r["id"], "result" in r) for r in reply] == [(1, True), (None, False), (2, False), (3, False)]
    assert reason(reply[3]) == "invalid_request"  # streams have no place in a batch
    assert await here.ask([notify("t.sleep"), notify("t.sleep")]) is None
    assert here.session.frames_in_flight == 0


async def test_ids_are_unique_while_in_flight_within_a_batch_too(autojump_clock: MockClock) -> None:
    here = desk()
    reply = await here.ask([call("t.sleep", 1), call("t.sleep", 1)])
    assert ["error" in r for r in reply] == [False, True]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.ask, call("t.sleep", 1, seconds=5))
        await wait_all_tasks_blocked()
        assert reason(await here.ask(call("t.sleep", 1))) == "invalid_request"
    assert "result" in await here.ask(call("t.sleep", 1))


async def test_too_much_in_flight_is_refused_at_once(autojump_clock: MockClock) -> None:
    here = desk(max_in_flight=2)
    async with trio.open_nursery() as nursery:
        for id in (1, 2):
            nursery.start_soon(here.ask, call("t.sleep", id, seconds=5))
        await wait_all_tasks_blocked()
        refused = here.accept(call("t.sleep", 3))
        assert isinstance(refused, bytes)
        assert reason(json.loads(refused)) == "overloaded"
        batch = here.accept([call("t.sleep", 4), notify("t.sleep"), call("t.sleep", 5)])
        assert isinstance(batch, bytes)
        assert [reply["id"] for reply in json.loads(batch)] == [4, 5]
        assert here.accept([notify("t.sleep")]) is None
        assert here.accept(notify("t.sleep")) is None
    assert "result" in await here.ask(call("t.sleep", 3))


async def test_what_waits_for_nothing_is_answered_at_once_however_much_is_in_flight(
    autojump_clock: MockClock,
) -> None:
    here = desk(max_in_flight=1, handler_pool_size=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.ask, call("t.sleep", "busy", seconds=5))
        await wait_all_tasks_blocked()

        def at_once(frame: Any) -> Any:
            answer = here.accept(frame)
            assert isinstance(answer, bytes)
            return json.loads(answer)

        assert at_once(call("t.now", "n")) == {"jsonrpc": "2.0", "id": "n", "result": "now"}
        assert here.accept(notify("t.now")) is None
        assert here.methods.ran == ["now", "now"]
        assert reason(at_once(call("t.now", "busy"))) == "invalid_request"
        assert reason(at_once(call("t.now", nonsense=1))) == "invalid_params"
        assert reason(at_once(call("t.broken"))) == "internal_error"
        assert here.accept(notify("t.broken")) is None
        assert here.session.in_flight == 1
    assert here.methods.ran[2:] == ["slept 5"]
    count = here.metrics.value("requests_total", method="t.now", outcome="ok")
    assert count == here.metrics.value("request_seconds_count", method="t.now") - 2 == 2
    here.dispatcher.draining = True
    assert reason(await here.ask(call("t.now"))) == "shutting_down"
    assert reason(await here.ask(call("t.nobody"))) == "shutting_down"
    assert (await here.ask(call("t.echo", text="x")))["result"] == "x"


async def test_in_a_batch_it_has_its_turn_among_the_others(autojump_clock: MockClock) -> None:
    here = desk(handler_pool_size=1)
    replies = await here.ask([call("t.sleep", 1, seconds=5), call("t.now", 2), call("t.broken", 3)])
    assert [reply.get("result", reply.get("error", {}).get("code")) for reply in replies] == [
        {"slept": 5},
        "now",
        -32603,
    ]
    assert here.methods.ran == ["slept 5", "now"]


@pytest.mark.parametrize("mark", [{"ordered": True}, {"streams": True}, {"bound": "model"}])
def test_a_plain_function_cannot_be_bound_or_ordered(mark: Any) -> None:
    with pytest.raises(ValueError, match="plain function"):

        @method("t.odd", params=Nothing, result=Nothing, **mark)
        def odd(self: Any, call: Any, params: Nothing) -> None: ...


async def test_the_handler_pool_is_shared_by_all_and_chats_are_not_in_it(autojump_clock: MockClock) -> None:
    here = desk(handler_pool_size=1)
    other = Desk(here.dispatcher, Sessions().open(Identity()), here.methods, here.metrics)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.ask, call("t.sleep", 1, seconds=5))
        await wait_all_tasks_blocked()
        assert reason(await other.ask(call("t.sleep"))) == "overloaded"
        assert trio.current_time() == POOL_PATIENCE_S
        assert (await other.ask(call("t.model", seconds=1)))["result"] == "done"
        assert here.metrics.value("handlers_running") == 1
    assert here.metrics.value("handlers_running") == 0
    assert "result" in await other.ask(call("t.sleep"))


async def test_what_many_do_at_one_moment_is_no_overload(autojump_clock: MockClock) -> None:
    here, outcomes = desk(handler_pool_size=2, max_in_flight=10), []

    async def ask(number: int) -> None:
        outcomes.append("result" in await here.ask(call("t.sleep", number, seconds=0.1)))

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(ask, number)
    # Two at a time: the last two would begin at 0.3 s.
    assert sorted(outcomes) == [False] * 2 + [True] * 6


async def test_a_batch_that_asks_for_too_much_is_answered_in_part(autojump_clock: MockClock) -> None:
    here = desk(max_pending_bytes=1024)
    replies = await here.ask([call("t.echo", number, text="x" * 600) for number in range(4)])
    assert [reply.get("result", "")[:1] or reason(reply) for reply in replies] == [
        "x",
        "x",
        "overloaded",
        "overloaded",
    ]


async def test_others_run_between_the_entries_of_a_batch() -> None:
    here, turns = desk(), []

    async def other() -> None:
        while True:
            turns.append(len(here.methods.ran))
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(other)
        await here.ask([call("t.now", number) for number in range(50)])
        nursery.cancel_scope.cancel()
    assert max(later - earlier for earlier, later in itertools.pairwise(turns)) <= 2


async def test_deadlines(autojump_clock: MockClock) -> None:
    here = desk(request_timeout_s=10.0, chat_timeout_s=20.0)
    assert "result" in await here.ask(call("t.sleep", seconds=9.9))
    started = trio.current_time()
    assert reason(await here.ask(call("t.sleep", seconds=11))) == "deadline_exceeded"
    assert trio.current_time() - started == pytest.approx(10)
    assert "result" in await here.ask(call("t.model", seconds=19.9))
    assert reason(await here.ask(call("t.model", seconds=21))) == "deadline_exceeded"


@pytest.mark.parametrize(("method", "limit_s"), [("t.sleep", 10.0), ("t.model", 20.0)])
async def test_a_client_can_set_its_deadline_down_and_not_up(
    autojump_clock: MockClock, method: str, limit_s: float
) -> None:
    here = desk(request_timeout_s=10.0, chat_timeout_s=20.0)
    assert "result" in await here.ask(call(method, seconds=2.9, timeout_s=3))
    for asked_s, given_s in ((3, 3), (3600, limit_s)):
        started = trio.current_time()
        assert reason(await here.ask(call(method, seconds=60, timeout_s=asked_s))) == "deadline_exceeded"
        assert trio.current_time() - started == pytest.approx(given_s)


@pytest.mark.parametrize("method", ["t.now", "t.sleep", "t.model"])
async def test_a_deadline_that_is_none_is_a_bad_param(method: str) -> None:
    reply = await desk().ask(call(method, timeout_s=0))
    assert reason(reply) == "invalid_params"
    assert reply["error"]["data"]["field"] == "timeout_s"


async def test_what_never_waits_takes_a_deadline_too() -> None:
    assert (await desk().ask(call("t.now", timeout_s=5)))["result"] == "now"


async def test_a_running_request_can_be_cancelled(autojump_clock: MockClock) -> None:
    here, replies = desk(), []

    async def ask() -> None:
        replies.append(await here.ask(call("t.sleep", "x", seconds=5)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        running = here.session.find(request_id="x", stream_id=None)
        assert running is not None
        running.cancel("client")
    assert reason(replies[0]) == "cancelled"
    assert here.methods.ran == []


async def test_while_draining_new_requests_are_told(autojump_clock: MockClock) -> None:
    here, replies = desk(), []

    async def ask() -> None:
        replies.append(await here.ask(call("t.sleep", 1, seconds=5)))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(ask)
        await wait_all_tasks_blocked()
        here.dispatcher.draining = True
        assert reason(await here.ask(call("t.sleep", 2))) == "shutting_down"
        assert reason(await here.ask(call("t.unheard_of", 3))) == "shutting_down"
    assert "result" in replies[0]


async def test_what_is_refused_is_counted_under_its_name(autojump_clock: MockClock) -> None:
    """And only what there is not as unknown."""
    here = desk(role="user")
    await here.ask(call("t.admin"))
    await here.ask([call("t.model")])
    here.dispatcher.draining = True
    await here.ask(call("t.sleep"))
    await here.ask(call("t.now"))
    await here.ask(call("t.unheard_of"))
    assert here.metrics.messages.outcomes() == {
        ("t.admin", "unauthorized"): 1,
        ("t.model", "invalid_request"): 1,
        ("t.sleep", "shutting_down"): 1,
        ("t.now", "shutting_down"): 1,
        ("unknown", "shutting_down"): 1,
    }


async def test_what_is_emitted_goes_ahead_of_the_answer() -> None:
    here = desk()
    assert (await here.ask(call("t.emit")))["result"] == "answer"
    assert here.outbox.got == [b"ahead"]


async def test_a_cancelled_run_frees_its_ids() -> None:
    here = desk()
    with trio.move_on_after(0.01):
        await here.ask([call("t.sleep", 1, seconds=5), call("t.sleep", 2)])
    assert here.session.in_flight == here.session.frames_in_flight == 0


def test_the_registry_lists_what_is_callable() -> None:
    registry = Registry([Methods()])
    assert [spec.name for spec in registry.specs()] == sorted(
        ["t.sleep", "t.model", "t.admin", "t.conflict", "t.bug", "t.emit", "t.now", "t.broken", "t.echo"]
    )
    found = registry.find("t.sleep")
    assert found is not None
    assert found[0].summary == "Sleep, and say how long."
    with pytest.raises(ValueError, match="twice"):
        registry.add(*found)


async def test_an_ordered_call_waits_only_until_the_one_before_has_its_place(
    autojump_clock: MockClock,
) -> None:
    async with trio.open_nursery() as nursery:
        line = Line(nursery, handler_pool_size=1)
        line.send(call("o.turn", "a", word="a", before_s=5, after_s=100))
        line.send(notify("o.change", word="b"))
        line.send(call("o.change", "c", word="c", before_s=1))
        line.send([call("o.turn", "d", word="d", before_s=1, after_s=1), call("o.turn", "e", word="e")])
        line.send(call("o.change", "f", word="f"))
        # What has no order is not held up, and what waits for its turn holds no place in the pool.
        line.send(call("o.free", "g", word="g"))
    assert line.desk.methods.ran == [*"gabcdef"]
    ok = {"g": 0, "c": 6, "d": 8, "e": 8, "f": 8, "a": 105}
    assert line.answered == {id: (seconds, "ok") for id, seconds in ok.items()}


async def test_another_session_is_not_held_up(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        line = Line(nursery)
        line.send(call("o.turn", "a", word="a", before_s=60))
        await wait_all_tasks_blocked()
        other = Desk(line.desk.dispatcher, Sessions().open(Identity()), line.desk.methods, line.desk.metrics)
        assert "result" in await other.ask(call("o.change", word="b"))
        assert trio.current_time() == 0


@pytest.mark.parametrize(
    ("first", "outcome", "at"),
    [
        (call("o.turn", "a", nonsense=1), "invalid_params", 0),
        (call("o.conflict", "a", word="a", before_s=2), "conflict", 2),
        (call("o.turn", "a", word="a", before_s=60), "cancelled", 3),
        (call("o.turn", "a", word="a", before_s=60), "deadline_exceeded", 4),
    ],
)
async def test_a_call_that_comes_to_nothing_lets_the_next_one_go(
    first: Any, outcome: str, at: float, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        line = Line(nursery, chat_timeout_s=4.0)
        line.send(first)
        line.send(call("o.change", "b", word="b"))
        await trio.sleep(3)
        if (running := line.desk.session.find(request_id="a", stream_id=None)) and outcome == "cancelled":
            running.cancel("client")
    assert line.answered == {"a": (at, outcome), "b": (at, "ok")}
    assert line.desk.methods.ran == ["b"]


async def test_the_deadline_counts_while_an_ordered_call_waits(autojump_clock: MockClock) -> None:
    async with trio.open_nursery() as nursery:
        line = Line(nursery, request_timeout_s=10.0)
        line.send(call("o.turn", "a", word="a", before_s=9))
        line.send(call("o.change", "b", word="b", before_s=2))
        line.send(call("o.change", "c", word="c"))
    assert line.answered == {"a": (9, "ok"), "b": (10, "deadline_exceeded"), "c": (10, "deadline_exceeded")}
    assert line.desk.methods.ran == ["a"]


@pytest.mark.parametrize(
    ("frame", "outcomes"),
    [
        ([call("o.change", 1, word="a"), call("o.turn", 2, word="b")], ["ok", "ok"]),
        ([call("o.turn", 1, nonsense=1), call("o.turn", 2, word="b")], ["invalid_params", "ok"]),
        ([call("o.conflict", 1, word="a"), call("o.change", 2, word="b")], ["conflict", "ok"]),
        ([call("t.nobody", 1), notify("o.change", word="a"), call("o.turn", 2, word="b")], None),
    ],
)
async def test_ordered_calls_of_one_batch_do_not_wait_for_its_end(
    frame: Any, outcomes: list[str] | None, autojump_clock: MockClock
) -> None:
    async with trio.open_nursery() as nursery:
        line = Line(nursery)
        line.send(frame)
        line.send(call("o.change", 3, word="c"))
    outcomes = outcomes or ["method_not_found", "ok"]
    assert line.answered == {id: (0, outcome) for id, outcome in enumerate([*outcomes, "ok"], 1)}
    assert line.desk.methods.ran[-2:] == ["b", "c"]


DEEDS = st.sampled_from(
    [
        call("o.change", word="x", before_s=1),
        call("o.change", word="x"),
        call("o.turn", word="x", before_s=1, after_s=1),
        call("o.turn", word="x"),
        call("o.turn", nonsense=1),
        call("o.conflict", word="x", before_s=1),
        call("o.free", word="x"),
        call("t.nobody"),
        notify("o.turn", word="x", before_s=2),
        notify("o.change", nonsense=1),
    ]
)


@given(st.lists(st.lists(DEEDS, min_size=1, max_size=4), max_size=8), st.lists(st.integers(0, 20)))
def test_whatever_is_sent_everything_is_answered_in_time(
    frames: list[list[Any]], cancelled: list[int]
) -> None:
    """No mixture of batches, orders, refusals and cancellations makes two calls wait for each other."""
    numbers = itertools.count()
    frames = [[{**deed, "id": next(numbers)} if "id" in deed else deed for deed in frame] for frame in frames]

    async def run() -> None:
        async with trio.open_nursery() as nursery:
            line = Line(nursery, max_in_flight=100)
            for frame in frames:
                line.send(frame if len(frame) > 1 else frame[0])
            await trio.sleep(1.5)
            for id in cancelled:
                if running := line.desk.session.find(request_id=id, stream_id=None):
                    running.cancel("client")
        assert set(line.answered) == set(range(next(numbers)))
        assert all(outcome != "deadline_exceeded" for _, outcome in line.answered.values())
        assert line.desk.session.in_flight == 0
        assert trio.current_time() <= 2 * sum(map(len, frames)) + 2

    trio.run(run, clock=MockClock(autojump_threshold=0))
