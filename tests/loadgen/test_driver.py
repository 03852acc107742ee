"""Load against a server that answers as the test says: over real sockets, in fractions of a second."""

import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from loadgen.driver import Driver, Hooks, Share
from loadgen.exchange import TOPIC
from loadgen.link import Target
from loadgen.requests import ping, publish, stream, subscribe
from loadgen.scenario import Scenario, ScenarioError, Stage
from loadgen.script import Answer, Call, Pause, Reconnect, Rest, Script, StopReading, Together, User
from tests.loadgen.answering import Answering, answering, echo, error, message, result


def plan(*stages: Stage, **changes: Any) -> Scenario:
    stages = stages or (Stage(seconds=0.4, connections=3),)
    fields = {"name": "test", "summary": "", "stages": stages, "request": ping, "warm_up_s": 0.0}
    return Scenario(**{**fields, **changes})


def drive(scenario: Scenario, server: Answering | Target, **options: Any) -> Driver:
    target = server if isinstance(server, Target) else server.target
    driver = Driver(scenario, target, **options)
    driver.run()
    return driver


def errors(driver: Driver) -> dict[str, int]:
    return {kind: n for stage in driver.recorder.stages for kind, n in stage.errors.items()}


def answered(driver: Driver) -> int:
    return sum(stage.answered for stage in driver.recorder.stages)


def test_a_closed_model_asks_when_it_was_answered() -> None:
    on_the_way = most = 0
    lock = threading.Lock()

    def answer(request: dict[str, Any]) -> list[bytes]:
        nonlocal on_the_way, most
        with lock:
            on_the_way += 1
            most = max(most, on_the_way)
        time.sleep(0.01)
        with lock:
            on_the_way -= 1
        return echo(request)

    with answering(answer) as server:
        driver = drive(plan(), server)
        assert answered(driver) > 3
        assert most <= 3
        assert errors(driver) == {}
        assert server.goodbyes == 3
    assert set(driver.recorder.stages[0].latencies) == {"connect", "handshake", "system.ping"}


def test_an_open_model_sends_at_its_rate_however_slow_the_answers() -> None:
    def never_in_time(request: dict[str, Any]) -> list[bytes]:
        time.sleep(0.1)
        return echo(request)

    stage = Stage(seconds=0.99, connections=2, rate=50.0)
    with answering(never_in_time) as server:
        driver = drive(plan(stage, arrivals="constant"), server)
    # A closed model would have asked 20 times; arrivals at 0.02, 0.04, ... make 49.
    assert answered(driver) == 49
    # They queue up at the server, and that wait is in the latency.
    assert driver.recorder.stages[0].latencies["system.ping"].figures()["max_ms"] > 1000


def test_poisson_arrivals_follow_their_seed() -> None:
    stage = Stage(seconds=0.5, connections=1, rate=100.0)
    with answering() as server:
        counts = [answered(drive(plan(stage), server, seed=seed)) for seed in (1, 1, 2)]
    assert counts[0] == counts[1]
    assert all(25 < count < 90 for count in counts)


def test_a_latency_counts_from_the_scheduled_send() -> None:
    """The generator itself stalls: the requests that were due meanwhile show it."""

    def stall(_second: object) -> None:
        time.sleep(0.5)

    stage = Stage(seconds=1.295, connections=1, rate=100.0)
    with answering() as server:
        driver = drive(plan(stage, arrivals="constant"), server, hooks=Hooks(on_second=stall))
    assert driver.recorder.stages[0].latencies["system.ping"].figures()["max_ms"] > 250
    assert driver.watch.figures()["lag_max_ms"] > 250
    assert answered(driver) == 129


def test_the_warm_up_is_checked_and_not_measured() -> None:
    with answering() as server:
        driver = drive(plan(Stage(seconds=1.2, connections=3), warm_up_s=0.4), server)
    assert driver.recorder.warm_up_answered > 0
    assert driver.recorder.stages[0].latencies["system.ping"].figures()["count"] == answered(driver)


def test_wrong_answers_are_seen() -> None:
    def mix_up(request: dict[str, Any]) -> list[bytes]:
        return [result(request, {"pong": True, "payload": "another's"})]

    with answering(mix_up) as server:
        driver = drive(plan(), server)
    assert driver.recorder.wrong_count > 0
    assert answered(driver) == 0
    assert "another's" in driver.recorder.wrong_answers[0]


def test_a_wrong_frame_ends_the_connection_and_is_wrong() -> None:
    with answering(lambda _: [b"\x82\x01x"]) as server:
        driver = drive(plan(), server)
    assert driver.recorder.wrong_count == 3
    assert errors(driver) == {"wrong_frame": 3, "unanswered": 3}


def test_errors_are_counted_and_their_time_to_come_back_is_kept() -> None:
    with answering(lambda request: [error(request, "overloaded", retry_after_s=0.3)]) as server:
        driver = drive(plan(), server)
        assert len(server.received) == 6
    assert errors(driver) == {"overloaded": 6}
    assert answered(driver) == 0


def test_nobody_there() -> None:
    with answering() as server:
        target = server.target
    driver = drive(plan(Stage(seconds=0.29, connections=2, rate=20.0), arrivals="constant"), target)
    assert errors(driver) == {"connection_refused": 2, "no_connection": 5}


def test_who_was_refused_comes_back_where_the_scenario_says_so() -> None:
    with answering(head=b"HTTP/1.1 503 Full\r\n\r\n") as server:
        driver = drive(plan(reconnect_s=0.05), server)
        assert len(server.heads) > 3
    assert errors(driver).keys() == {"http_503"}


def test_what_is_not_answered_times_out() -> None:
    with answering(lambda _: []) as server:
        driver = drive(plan(), server, timeout_s=0.2)
        assert server.goodbyes == 3
    assert errors(driver).keys() == {"timeout"}


def test_what_is_on_the_way_at_the_end_is_waited_for() -> None:
    def late(request: dict[str, Any]) -> list[bytes]:
        time.sleep(0.7)
        return echo(request)

    with answering(late) as server:
        driver = drive(plan(), server)
    assert (answered(driver), errors(driver)) == (3, {})


def test_connections_follow_the_stages() -> None:
    stages = (
        Stage(seconds=1.05, connections=2),
        Stage(seconds=1.05, connections=5),
        Stage(seconds=1.05, connections=1),
    )
    with answering() as server:
        driver = drive(plan(*stages), server)
        assert server.goodbyes == 5
    assert [second.connections for second in driver.recorder.seconds] == [2, 5, 1]
    assert errors(driver) == {}


def test_a_share_plays_every_other_user() -> None:
    seen: list[int] = []

    def user(user: User) -> Script:
        seen.append(user.index)
        yield Rest()

    with answering() as server:
        drive(plan(Stage(seconds=0.1, connections=5), user=user), server, share=Share(index=1, of=2))
    assert seen == [1, 3]


def test_a_share_without_connections_has_no_arrivals() -> None:
    stage = Stage(seconds=0.2, connections=1, rate=100.0)
    with answering() as server:
        assert errors(drive(plan(stage), server, share=Share(index=1, of=2))) == {}


def scripted(script: Callable[[User], Script], server: Answering, **changes: Any) -> Driver:
    stage = Stage(seconds=changes.pop("seconds", 0.5), connections=1)
    return drive(plan(stage, user=script, **changes), server)


def test_a_script_gets_its_answers_and_leaves_when_it_ends() -> None:
    got: list[Answer] = []

    def script(user: User) -> Script:
        got.append((yield ping(user, 0)))
        yield Pause(0.05)
        got.append((yield Together((ping(user, 1), ping(user, 2)))))

    with answering() as server:
        driver = scripted(script, server)
        assert server.goodbyes == 1
    assert [answer.error for answer in got] == [None, None]
    assert len(got[1].result) == 2
    assert answered(driver) == 3


def test_a_script_comes_back_and_goes_on() -> None:
    steps: list[str] = []

    def script(user: User) -> Script:
        steps.append("first")
        yield ping(user, 0)
        yield Reconnect(after_s=0.05)
        steps.append("again")
        yield ping(user, 1)
        yield Rest()

    def set_up(_user: User) -> Script:
        steps.append("set up")
        yield Call("session.info")

    with answering() as server:
        driver = scripted(script, server, set_up=set_up, seconds=1.5)
        assert len(server.heads) == 2
    assert steps == ["set up", "first", "set up", "again"]
    assert (answered(driver), errors(driver)) == (2, {})


def test_who_does_not_read_hears_later() -> None:
    def script(user: User) -> Script:
        yield ping(user, 0)
        yield StopReading(0.3)
        yield ping(user, 1)

    with answering() as server:
        driver = scripted(script, server, seconds=1.0)
    assert (answered(driver), errors(driver)) == (2, {})


def asks_after(command: Any) -> Callable[[User], Script]:
    def script(user: User) -> Script:
        yield ping(user, 0)
        yield command()
        yield Rest()

    return script


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"user": asks_after(lambda: Pause)}, "the script of user 0 yielded <class 'loadgen.script.Pause'>"),
        ({"user": asks_after(lambda: "hello")}, "yielded 'hello': no command"),
        ({"user": asks_after(lambda: None)}, "yielded None: no command"),
        ({"user": asks_after(lambda: Pause(-1))}, "ValueError: 'seconds' must be >= 0"),
        ({"user": asks_after(lambda: Pause(float("nan")))}, "ValueError: 'seconds' must be >= 0"),
        ({"user": asks_after(lambda: {}["nope"])}, "the script of user 0: KeyError: 'nope'"),
        ({"user": asks_after(lambda: Together((None,)))}, "the script of user 0: TypeError"),
        ({"user": asks_after(lambda: Call("m", {"set": {1}}))}, "m cannot be sent: Type is not JSON"),
        ({"user": lambda user: ping(user, 0)}, "is no script: it gave Call("),
        ({"user": lambda user: user.nope}, "AttributeError: 'User' object has no attribute 'nope'"),
        ({"set_up": lambda _: None}, "is no script: it gave None"),
        ({"request": lambda _user, _n: None}, "the scenario's `request` gave None"),
        ({"request": lambda _user, n: 1 / n}, "the scenario's `request`: ZeroDivisionError"),
    ],
)
def test_a_mistake_of_a_scenario_ends_the_run_and_is_told(changes: Any, complaint: str) -> None:
    with answering() as server, pytest.raises(ScenarioError) as caught:
        drive(plan(Stage(seconds=5, connections=1), **changes), server)
    assert complaint in str(caught.value)


def test_a_request_that_arrives_is_one() -> None:
    with answering() as server, pytest.raises(ScenarioError, match="`request` gave None"):
        drive(plan(Stage(seconds=5, connections=1, rate=100.0), request=lambda _user, _n: None), server)


def test_a_lost_connection_is_one_error_and_its_requests_another() -> None:
    with answering(lambda _: [b"\x88\x02\x03\xf5"]) as server:
        driver = drive(plan(Stage(seconds=0.2, connections=1)), server)
    assert errors(driver) == {"closed_1013": 1, "unanswered": 1}


def test_the_watcher_is_no_part_of_the_load() -> None:
    asked: list[Answer] = []

    def watch(user: User) -> Script:
        while True:
            asked.append((yield Call("system.ping", {"payload": user.nonce})))
            yield Pause(0.05)

    with answering() as server:
        driver = drive(
            plan(Stage(seconds=0.3, connections=1), user=rest), server, hooks=Hooks(watch_script=watch)
        )
    assert asked
    assert answered(driver) == 0


def test_a_stream_is_cancelled_over_the_wire() -> None:
    def answer(request: dict[str, Any]) -> list[bytes]:
        if request["method"] == "stream.cancel":
            told = {"id": request["params"]["request_id"]}
            cancelled = {"event_type": "stream_cancelled", "data": {"reason": "client"}}
            return [result(request, {"cancelled": True}), result(told, cancelled)]
        chunk = {"event_type": "stream_chunk", "data": {"chunk": "a", "chunk_number": 1}}
        return [result(request, chunk)]

    got: list[Answer] = []

    def script(user: User) -> Script:
        got.append((yield stream(user, 0, cancel_after=1)))

    with answering(answer) as server:
        driver = scripted(script, server)
    assert [each.error for each in got] == ["cancelled"]
    assert (driver.recorder.cancelled_count, errors(driver), driver.recorder.wrong_count) == (1, {}, 0)


def published(server: Answering, **changes: Any) -> Driver:
    """One who hears what it publishes itself: at 0.05, 0.1, ... 0.25 s."""
    stage = Stage(seconds=0.29, connections=1, rate=20.0)
    fields = {"set_up": subscribe, "request": publish, "arrivals": "constant"}
    return drive(plan(stage, **{**fields, **changes}), server)


def topic(request: dict[str, Any], *, heard: int = 5, after_s: float = 0.0) -> Iterator[bytes]:
    """Answers at once, and sends the first events so much later."""
    if request["method"] == "events.subscribe":
        yield result(request, {"topics": request["params"]["topics"]})
        return
    yield result(request, {"delivered": 1, "dropped": 0})
    seq = request["id"] - 1
    if seq <= heard:
        time.sleep(after_s)
        yield message(method="event", params={"topic": TOPIC, "seq": seq, "data": request["params"]["data"]})


def test_events_that_never_come_are_known_by_what_was_delivered() -> None:
    with answering(partial(topic, heard=2)) as server:
        events = published(server).recorder.events
    assert (events.promised, events.received, events.departed) == (5, 2, 0)


def test_events_on_their_way_at_the_end_are_waited_for() -> None:
    with answering(partial(topic, after_s=0.3)) as server:
        driver = published(server)
        assert server.goodbyes == 1
    events = driver.recorder.events
    assert (events.promised, events.received, events.departed) == (5, 5, 0)
    assert errors(driver) == {}


def test_who_leaves_within_the_run_may_miss_events() -> None:
    def script(_user: User) -> Script:
        yield Reconnect(after_s=0.01)
        yield Rest()

    with answering(topic) as server:
        assert published(server, user=script).recorder.events.departed == 1


def rest(_user: User) -> Script:
    yield Rest()


@pytest.mark.parametrize("total", [0, 1, 7])
def test_shares_are_the_whole(total: int) -> None:
    assert sum(Share(index=n, of=3).connections(total) for n in range(3)) == total
