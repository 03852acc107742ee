"""Sessions and their running requests."""

import gc
import weakref

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from persona.errors import DeadlineExceeded, InvalidRequest, NotFound, RequestCancelled, ShuttingDown
from persona.service.sessions import CancelReason, Identity, RunningRequest, Session, Sessions


async def test_a_request_that_is_done_in_time_is_left_alone(autojump_clock: MockClock) -> None:
    request = RunningRequest(id=1, method="m", deadline=10.0)
    with request.interruptible():
        await trio.sleep(9)
    await trio.sleep(5)  # outside the stretch, the deadline means nothing


async def test_the_deadline_cuts_the_stretch(autojump_clock: MockClock) -> None:
    request = RunningRequest(id=1, method="m", deadline=10.0)
    with pytest.raises(DeadlineExceeded), request.interruptible():
        await trio.sleep_forever()
    assert trio.current_time() == 10
    with pytest.raises(DeadlineExceeded), request.interruptible():
        await trio.sleep_forever()


@pytest.mark.parametrize(
    ("reason", "error"),
    [("client", RequestCancelled), ("shutdown", ShuttingDown), ("deleted", NotFound)],
)
async def test_a_cancel_cuts_it_with_its_own_error(reason: CancelReason, error: type[Exception]) -> None:
    request = RunningRequest(id=1, method="m")
    reached = []

    async def work() -> None:
        with pytest.raises(error), request.interruptible():
            await trio.sleep_forever()
        reached.append(True)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(work)
        await wait_all_tasks_blocked()
        request.cancel(reason)
        request.cancel("shutdown")  # the first reason stays
    assert reached


async def test_a_cancel_before_the_stretch_cuts_it_at_its_first_wait() -> None:
    request = RunningRequest(id=1, method="m")
    request.cancel("client")
    with pytest.raises(RequestCancelled), request.interruptible():
        await trio.lowlevel.checkpoint()


async def test_a_surrounding_cancel_is_no_errors_business() -> None:
    request = RunningRequest(id=1, method="m")
    with trio.CancelScope() as scope:
        scope.cancel()
        with request.interruptible():
            await trio.sleep_forever()
    assert scope.cancelled_caught


def test_ids_of_requests_are_unique_while_in_flight() -> None:
    session = Sessions().open(Identity())
    first = RunningRequest(id=7, method="m")
    session.begin(first)
    with pytest.raises(InvalidRequest):
        session.begin(RunningRequest(id=7, method="m"))
    session.begin(RunningRequest(id="7", method="m"))
    session.begin(RunningRequest(id=None, method="m"))
    session.begin(RunningRequest(id=None, method="m"))
    assert session.in_flight == 4
    session.end(first)
    session.begin(RunningRequest(id=7, method="m"))


def test_requests_are_found_by_id_or_by_stream() -> None:
    session = Sessions().open(Identity())
    request = RunningRequest(id=7, method="m", stream_id="s")
    session.begin(request)
    assert session.find(request_id=7, stream_id=None) is request
    assert session.find(request_id=None, stream_id="s") is request
    assert session.find(request_id=8, stream_id=None) is None
    assert session.find(request_id=None, stream_id="t") is None


def test_session_ids_are_never_reused() -> None:
    sessions = Sessions()
    first = sessions.open(Identity())
    sessions.close(first)
    second = sessions.open(Identity())
    assert first.id != second.id
    assert list(sessions) == [second]
    assert len(sessions) == 1


def test_anonymous_sessions_are_parties_of_their_own() -> None:
    sessions = Sessions()
    named = Identity(user="ann", authenticated=True)
    assert sessions.open(named).fairness_key == sessions.open(named).fairness_key == "ann"
    assert sessions.open(Identity()).fairness_key != sessions.open(Identity()).fairness_key


def test_clearing_forgets_the_context_windows() -> None:
    session = Sessions().open(Identity(user="ann", authenticated=True))
    session.current_persona_id = "p"
    session.conversations["p"] = "c"
    session.clear()
    assert session.current_persona_id is None
    assert session.conversations == {}
    assert not session.resumes


def line_up(session: Session, *ids: str) -> list[RunningRequest]:
    """Ordered requests, registered one after the other."""
    requests = [RunningRequest(id=id, method="m", deadline=10.0) for id in ids]
    for request in requests:
        session.begin(request, ordered=True)
    return requests


def test_a_conversation_that_is_gone_is_forgotten_and_no_other() -> None:
    session = Sessions().open(Identity())
    session.conversations.update(aria="c1", kira="c2")
    session.forget_conversation("c1")
    session.forget_conversation("c3")
    assert session.conversations == {"kira": "c2"}


async def test_an_ordered_request_waits_for_the_place_of_the_one_before(autojump_clock: MockClock) -> None:
    session = Sessions().open(Identity())
    first, second, third = line_up(session, "1", "2", "3")
    unordered, elsewhere = RunningRequest(id="u", method="m"), Sessions().open(Identity())
    session.begin(unordered)
    (stranger,) = line_up(elsewhere, "1")
    began = []

    async def wait(request: RunningRequest) -> None:
        await request.wait_for_place()
        began.append(request.id)

    async with trio.open_nursery() as nursery:
        for request in (third, second):
            nursery.start_soon(wait, request)
        for request in (first, unordered, stranger):
            await wait(request)
        await wait_all_tasks_blocked()
        assert began == ["1", "u", "1"]
        first.place()
        await wait_all_tasks_blocked()
        assert began == ["1", "u", "1", "2"]
        # One that never took its place gives way when it ends.
        session.end(second)
    assert began[-1] == "3"
    assert session.in_flight == 3


async def test_there_is_nobody_to_wait_for_when_those_before_have_ended() -> None:
    session = Sessions().open(Identity())
    (first,) = line_up(session, "1")
    session.end(first)
    (second,) = line_up(session, "2")
    with pytest.raises(InvalidRequest):
        line_up(session, "2")
    second.place()
    (third,) = line_up(session, "3")  # who was not let in is not waited for
    for request in (second, third):
        with trio.CancelScope() as scope:
            scope.cancel()
            await request.wait_for_place()
        assert not scope.cancelled_caught


@pytest.mark.parametrize(("how", "error"), [("deadline", DeadlineExceeded), ("client", RequestCancelled)])
async def test_the_wait_for_a_place_can_be_cut(
    how: str, error: type[Exception], autojump_clock: MockClock
) -> None:
    session = Sessions().open(Identity())
    _, second = line_up(session, "1", "2")

    async def wait() -> None:
        with pytest.raises(error):
            await second.wait_for_place()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.sleep(3)
        if how == "client":
            second.cancel("client")
    assert trio.current_time() == (10 if how == "deadline" else 3)


def test_a_request_that_has_ended_is_not_kept_by_those_behind_it() -> None:
    session = Sessions().open(Identity())
    first, second = line_up(session, "1", "2")
    session.end(first)
    gone = weakref.ref(first)
    del first
    gc.collect()
    assert gone() is None
    assert session.find(request_id="2", stream_id=None) is second


async def test_one_that_gives_up_its_wait_lets_nobody_past_those_it_waited_for(
    autojump_clock: MockClock,
) -> None:
    session = Sessions().open(Identity())
    first, second, third = line_up(session, "1", "2", "3")
    began = []

    async def wait(request: RunningRequest) -> None:
        await request.wait_for_place()
        began.append(request.id)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait, third)
        await wait_all_tasks_blocked()
        session.end(second)
        await wait_all_tasks_blocked()
        assert began == []
        first.place()
    assert began == ["3"]


def test_the_order_keeps_nothing_of_what_is_over() -> None:
    """However many come and go, those who never waited among them."""
    session = Sessions().open(Identity())
    places = []
    (last,) = line_up(session, "0")
    for number in range(1, 100):
        (request,) = line_up(session, str(number))
        session.end(last)
        assert last.order is not None
        places.append(weakref.ref(last.order))
        last = request
    gc.collect()
    assert sum(place() is not None for place in places) <= 2


async def test_a_settled_request_can_no_longer_be_cancelled(autojump_clock: MockClock) -> None:
    early, late = RunningRequest(id=1, method="m"), RunningRequest(id=2, method="m")
    assert early.cancel("client")
    late.settle()
    assert not late.cancel("client")
    with pytest.raises(RequestCancelled), early.interruptible():
        await trio.sleep(1)
    with late.interruptible():
        await trio.sleep(1)
