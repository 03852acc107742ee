"""One client = one nursery, over an engine that the test plays."""

import weakref

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from persona.transport.connection import Goodbye
from persona.transport.engine import BadMessage, PeerGone
from tests.rpc.desk import call, notify
from tests.transport.played import QuickEngine, Read, play


async def test_calls_are_answered_in_the_order_they_finish(autojump_clock: MockClock) -> None:
    played = play()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(played.run)
        played.say(call("t.sleep", "slow", seconds=2), call("t.sleep", "quick", seconds=1), "{")
        await trio.sleep(5)
        played.hang_up()
    assert [reply["id"] for reply in played.engine.sent] == [None, "quick", "slow"]
    assert played.goodbye == Goodbye(1000, "", "client")


async def test_the_peers_end_ends_its_requests(autojump_clock: MockClock) -> None:
    played = play()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(played.run)
        played.say(call("t.sleep", 1, seconds=60), notify("t.sleep", seconds=60))
        await wait_all_tasks_blocked()
        assert played.connection.session.in_flight == 2
        played.say(PeerGone(1006))
    assert trio.current_time() == 0
    assert played.methods.ran == []
    assert played.connection.session.in_flight == 0
    assert played.goodbye is not None
    assert played.goodbye.cause == "lost"


async def test_workers_come_with_the_work_and_all_but_one_go_with_it(autojump_clock: MockClock) -> None:
    played = play(max_in_flight=8)

    def tasks() -> int:
        return trio.lowlevel.current_statistics().tasks_living

    async with trio.open_nursery() as nursery:
        nursery.start_soon(played.run)
        await wait_all_tasks_blocked()
        idle = tasks()
        played.say(*(call("t.sleep", n, seconds=1) for n in range(8)))
        await wait_all_tasks_blocked()
        assert tasks() == idle + 8
        await trio.sleep(2)
        assert tasks() == idle + 1
        played.say(*(call("t.sleep", n, seconds=1) for n in range(8)))
        await trio.sleep(2)
        assert len(played.engine.sent) == 16
        # One that waits takes what comes: no task is started for it.
        before = trio.lowlevel.current_statistics().tasks_living
        played.say(call("t.sleep", seconds=1))
        await wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living == before
        await trio.sleep(2)
        assert len(played.engine.sent) == 17
        played.hang_up()


async def test_the_writer_goes_when_nothing_waits(autojump_clock: MockClock) -> None:
    played = play()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(played.run)
        await wait_all_tasks_blocked()
        quiet = trio.lowlevel.current_statistics().tasks_living
        for number in range(3):
            assert played.connection.offer(b"%d" % number)
        assert trio.lowlevel.current_statistics().tasks_living == quiet + 1
        await wait_all_tasks_blocked()
        assert played.engine.sent == [0, 1, 2]
        assert trio.lowlevel.current_statistics().tasks_living == quiet
        played.hang_up()


async def test_the_reader_never_waits_for_work(autojump_clock: MockClock) -> None:
    played = play(max_in_flight=1)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(played.run)
        played.say(*(call("t.sleep", n, seconds=60) for n in range(50)))
        await wait_all_tasks_blocked()
        assert [reply["error"]["data"]["reason"] for reply in played.engine.sent] == ["overloaded"] * 49
        played.hang_up()


@pytest.mark.parametrize("code", [1003, 1009])
async def test_a_message_that_is_not_taken_ends_the_connection(code: int) -> None:
    played = play()
    played.say(BadMessage(code, "cause", "why"))
    await played.run()
    assert played.goodbye == Goodbye(code, "why", "cause")


async def test_a_client_that_does_not_read_is_cut_by_bytes(autojump_clock: MockClock) -> None:
    played = play(max_pending_bytes=4096)
    played.engine.stuck = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(played.run)
        await wait_all_tasks_blocked()
        assert played.connection.offer(b"0" * 100)  # the writer takes it, and is stuck with it
        await wait_all_tasks_blocked()
        assert played.connection.offer(b"1" * 4096)
        assert not played.connection.offer(b"2")
    assert trio.current_time() == 0
    assert played.goodbye == Goodbye(1013, "too slow to read", "slow_consumer")


async def test_a_client_that_does_not_read_is_cut_by_messages(autojump_clock: MockClock) -> None:
    played = play(max_pending_messages=10)
    played.engine.stuck = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(played.run)
        await wait_all_tasks_blocked()
        assert played.connection.offer(b"0")  # the writer takes it, and is stuck with it
        await wait_all_tasks_blocked()
        assert all(played.connection.offer(b"1") for _ in range(10))
        assert not played.connection.is_leaving
        assert not played.connection.offer(b"2")
    assert trio.current_time() == 0
    assert played.goodbye == Goodbye(1013, "too slow to read", "slow_consumer")


async def test_what_nothing_waits_before_is_written_at_once_and_the_rest_in_turn() -> None:
    played = play(engine := QuickEngine())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(played.run)
        await wait_all_tasks_blocked()
        engine.room = 1
        for number in range(4):
            assert played.connection.offer(b"%d" % number)
            assert engine.sent == [0]
        # The engine holds what it has taken, and only what came after it is queued.
        assert (engine.unsent_bytes, played.connection.pending_bytes) == (1, 3)
        await wait_all_tasks_blocked()
        assert (engine.sent, played.connection.pending_bytes) == ([0, 1, 2, 3], 0)
        engine.room = 1
        assert played.connection.offer(b"4")
        assert engine.sent == [0, 1, 2, 3, 4]
        played.hang_up()


async def test_answers_to_what_came_together_are_written_together() -> None:
    played = play(engine := QuickEngine())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(played.run)
        played.say(Read(["{"] * 3), "{")
        await wait_all_tasks_blocked()
        played.hang_up()
    assert engine.writes == [3, 1]


async def test_a_write_at_once_that_fails_ends_it_under_the_engines_cause() -> None:
    played = play(engine := QuickEngine())
    engine.send_fails = PeerGone(1006)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(played.run)
        await wait_all_tasks_blocked()
        played.connection.offer(b"1")
    assert played.goodbye is not None
    assert played.goodbye.cause == PeerGone(1006).cause


@pytest.mark.parametrize("cause", ["write_deadline", "lost"])
async def test_a_write_that_fails_ends_it_under_the_engines_cause(
    autojump_clock: MockClock, cause: str
) -> None:
    played = play()
    played.engine.send_fails = PeerGone(1006, cause)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(played.run)
        await wait_all_tasks_blocked()
        played.connection.offer(b"0")
    assert trio.current_time() == 0
    assert played.goodbye is not None
    assert played.goodbye.cause == cause


async def test_a_dead_peer_is_gone_within_the_sum_of_the_ping_times(autojump_clock: MockClock) -> None:
    played = play(ping_interval_s=20.0, ping_timeout_s=15.0)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(played.run)
        played.say(call("t.sleep", 1, seconds=3600))
        await trio.sleep(50)
        assert played.engine.pings == 2
        played.engine.deaf = True
    assert trio.current_time() == 20 + 20 + 20 + 15
    assert played.engine.aborted
    assert played.goodbye is not None
    assert played.goodbye.cause == "ping_timeout"


@pytest.mark.parametrize(
    ("interval_s", "timeout_s", "pong_after_s", "pings"),
    # Slower than the interval: one ping at a time, for a pong answers the last one only.
    [(30.0, 20.0, 19.9, 3), (5.0, 20.0, 7.0, 10)],
)
async def test_a_peer_that_answers_in_time_stays(
    interval_s: float, timeout_s: float, pong_after_s: float, pings: int, autojump_clock: MockClock
) -> None:
    played = play(ping_interval_s=interval_s, ping_timeout_s=timeout_s)
    played.engine.pong_after_s = pong_after_s
    async with trio.open_nursery() as nursery:
        nursery.start_soon(played.run)
        await trio.sleep(100)
        assert played.goodbye is None
        assert played.engine.most_pings_at_once == 1
        assert played.engine.pings == pings
        played.hang_up()
    assert played.goodbye == Goodbye(1000, "", "client")


async def test_one_that_was_cancelled_from_outside_is_left_alone(autojump_clock: MockClock) -> None:
    """It is listed until its goodbye is said, and whoever has something for it still asks."""
    played = play()
    with trio.CancelScope() as outside:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(played.connection.run)
            await wait_all_tasks_blocked()
            outside.cancel()
    played.connection.ask()
    assert not played.connection.offer(b"0")
    played.connection.cut(Goodbye(1013, "", "shed"))
    played.connection.finish(Goodbye(1012, "", "shutdown"))
    assert played.engine.sent == []


async def test_over_the_rate_is_refused_and_who_goes_on_is_cut(autojump_clock: MockClock) -> None:
    played = play(rate_limit_per_minute=60, rate_limit_burst=5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(played.run)
        played.say(*(call("t.sleep", n) for n in range(5)))
        played.say(notify("t.sleep"), call("t.sleep", 99))
        await wait_all_tasks_blocked()
        refusal = next(reply for reply in played.engine.sent if reply["id"] == 99)
        assert refusal["error"]["data"]["reason"] == "rate_limited"
        assert 0 < refusal["error"]["data"]["retry_after_s"] <= 1
        await trio.sleep(refusal["error"]["data"]["retry_after_s"])
        played.say(call("t.sleep", 100))
        await wait_all_tasks_blocked()
        assert "result" in played.engine.sent[-1]
        played.say(*(call("t.sleep", n) for n in range(200)))
    assert played.goodbye == Goodbye(1008, "rate limit ignored", "rate_limit")


async def test_who_keeps_to_the_rate_is_never_refused(autojump_clock: MockClock) -> None:
    played = play(rate_limit_per_minute=60, rate_limit_burst=5)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(played.run)
        for _ in range(3):
            played.say(*(call("t.sleep", n) for n in range(5)))
            for n in range(5, 65):
                await trio.sleep(1)
                played.say(call("t.sleep", n))
            # What was saved up meanwhile is no more than one burst.
            await trio.sleep(60)
        assert len(played.engine.sent) == 3 * 65
        assert all("result" in reply for reply in played.engine.sent)
        played.hang_up()


async def test_a_cancel_gets_through_when_the_rate_is_used_up() -> None:
    played = play(rate_limit_per_minute=60, rate_limit_burst=2)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(played.run)
        played.say(*(call("t.sleep", n) for n in range(3)), *(call("stream.cancel", n) for n in (7, 8, 9)))
        await wait_all_tasks_blocked()
        # The played server has no such method, which is as good as an answer here.
        reasons = {
            reply["id"]: reply["error"]["data"]["reason"] for reply in played.engine.sent if "error" in reply
        }
        assert reasons == {
            2: "rate_limited",
            7: "method_not_found",
            8: "method_not_found",
            9: "rate_limited",
        }
        played.hang_up()


async def test_finish_sends_what_is_queued_first() -> None:
    played = play()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(played.run)
        await wait_all_tasks_blocked()
        for n in range(10):
            played.connection.offer(b"%d" % n)
        played.connection.finish(Goodbye(1012, "restart", "shutdown"))
        assert not played.connection.offer(b"late")
    assert played.engine.sent == list(range(10))
    assert played.goodbye == Goodbye(1012, "restart", "shutdown")


@pytest.mark.usefixtures("autojump_clock", "uncollected")
async def test_what_it_held_does_not_wait_for_the_garbage_collector() -> None:
    """It counts objects: a megabyte that nobody will send is one of them."""
    played = play()
    played.engine.stuck = True
    async with trio.open_nursery() as nursery:
        nursery.start_soon(played.run)
        await wait_all_tasks_blocked()
        for _ in range(10):
            assert played.connection.offer(b"0" * 100_000)
            await wait_all_tasks_blocked()
        assert played.connection.pending_bytes == played.connection.held_bytes == 1_000_000
        nursery.cancel_scope.cancel()
    assert played.connection.pending_bytes == 0
    connection = weakref.ref(played.connection)
    del played
    assert connection() is None


async def test_a_bug_leaves_as_it_is() -> None:
    played = play()
    played.say(ZeroDivisionError())
    with pytest.RaisesGroup(ZeroDivisionError):
        await played.connection.run()
