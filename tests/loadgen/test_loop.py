"""The loop: what is due, what is ready, and in which order."""

import socket
import time

from loadgen.loop import MAX_EVENTS, Loop
from loadgen.selfwatch import SelfWatch


def turn_until(loop: Loop, done: list[object], count: int) -> None:
    end = time.monotonic() + 10
    while len(done) < count and time.monotonic() < end:
        loop.turn()


def test_timers_are_served_in_order_and_never_early() -> None:
    loop, served = Loop(SelfWatch()), []
    now = time.perf_counter()
    for due in (now + 0.03, now, now + 0.01, now):
        loop.at(due, lambda due=due: served.append((due, time.perf_counter())))
    turn_until(loop, served, 4)
    assert [due for due, _ in served] == [now, now, now + 0.01, now + 0.03]
    assert all(at >= due for due, at in served)
    loop.close()


def test_a_timer_is_served_before_all_of_many_sockets_are() -> None:
    loop, order = Loop(SelfWatch()), []
    pairs = [socket.socketpair() for _ in range(MAX_EVENTS * 2)]
    for ours, theirs in pairs:
        theirs.send(b"x")
        loop.add(ours.fileno(), lambda _mask, ours=ours: order.append(ours.recv(1)), write=False)
    loop.at(time.perf_counter(), lambda: order.append("timer"))
    turn_until(loop, order, len(pairs) + 1)
    assert order.index("timer") == MAX_EVENTS
    loop.close()
    for pair in pairs:
        for each in pair:
            each.close()


def test_a_socket_that_a_handler_removed_hears_no_more() -> None:
    loop, heard = Loop(SelfWatch()), []
    (ours, theirs), (other, sender) = socket.socketpair(), socket.socketpair()

    def once(_mask: int) -> None:
        heard.append(ours.recv(1))
        loop.remove(ours.fileno())
        loop.at(time.perf_counter(), lambda: heard.append("after"))

    loop.add(ours.fileno(), once, write=False)
    theirs.send(b"ab")
    turn_until(loop, heard, 2)
    loop.add(other.fileno(), lambda _mask: heard.append(other.recv(1)), write=False)
    sender.send(b"c")
    turn_until(loop, heard, 3)
    assert heard == [b"a", "after", b"c"]
    loop.close()
    for each in (ours, theirs, other, sender):
        each.close()


def test_the_loops_own_lateness_is_measured() -> None:
    watch = SelfWatch()
    loop, done = Loop(watch), []
    now = time.perf_counter()
    loop.at(now, lambda: time.sleep(0.05))
    loop.at(now + 0.01, lambda: done.append(1))
    turn_until(loop, done, 1)
    # One turn of 50 ms, and a timer that was 40 ms late by it.
    assert watch.figures()["lag_max_ms"] >= 50
    loop.close()


def test_a_generator_that_was_stopped_was_late_for_the_answers_it_reads_next() -> None:
    """As by SIGSTOP: the timer was due before, and the answer is read first."""
    watch = SelfWatch()
    loop, read = Loop(watch), []
    ours, theirs = socket.socketpair()
    asked_at = time.perf_counter()
    loop.add(ours.fileno(), lambda _mask: (read.append(ours.recv(1)), watch.measured(asked_at)), write=False)
    loop.at(asked_at - 0.5, lambda: None)
    theirs.send(b"x")
    turn_until(loop, read, 1)
    assert watch.lag.figures()["max_ms"] >= 500
    loop.close()
    ours.close()
    theirs.close()
