"""Requests and answers without a connection: what is right, what is an error, what is wrong."""

from random import Random
from typing import Any

import orjson
import pytest

from loadgen.exchange import MAX_ABANDONED, TOPIC, Exchange, Pending
from loadgen.recorder import Recorder
from loadgen.requests import publish
from loadgen.scenario import Scenario, Stage
from loadgen.script import Answer, Call, Stream, User

SCENARIO = Scenario(
    name="test",
    summary="",
    stages=(Stage(seconds=100, connections=1),),
    warm_up_s=0.0,
    user=lambda _: iter(()),
)
USER = User(0, Random(0), "run-0")
PING = Call("system.ping", {"payload": "p"}, lambda result: result == {"payload": "p"})
STREAM = Stream({"message": "hi"})


class Played:
    """An exchange with a clock that the test sets."""

    def __init__(self) -> None:
        self.recorder = Recorder(SCENARIO)
        self.recorder.start(0.0)
        self.exchange = Exchange(self.recorder)
        self.answers: list[Answer] = []

    def ask(self, command: Call | Stream = PING, **options: Any) -> Pending:
        options = {"scheduled_at": 1.0, "timeout_s": 60.0, "reply": self.answers.append} | options
        pending, _ = self.exchange.ask(command, **options)
        return pending

    def take(self, now: float = 2.0, **fields: Any) -> bytes:
        return self.exchange.take({"jsonrpc": "2.0", **fields}, now)

    def event(self, pending: Pending, kind: str, **data: Any) -> bytes:
        return self.take(id=pending.id, result={"event_type": kind, "data": data})

    @property
    def errors(self) -> dict[str, int]:
        return dict(self.recorder.stages[0].errors)

    def latency_ms(self, kind: str) -> float | None:
        latencies = self.recorder.stages[0].latencies.get(kind)
        return latencies.figures()["max_ms"] if latencies else None


def test_a_right_answer_is_timed_from_when_it_was_due() -> None:
    played = Played()
    pending = played.ask(scheduled_at=1.0)
    played.take(id=pending.id, result={"payload": "p"}, now=3.5)
    assert played.latency_ms("system.ping") == 2500
    assert played.answers == [Answer(result={"payload": "p"}, latency_s=2.5)]
    assert (len(played.exchange), played.errors, played.recorder.wrong_count) == (0, {}, 0)


@pytest.mark.parametrize(
    "fields",
    [
        {"result": {"payload": "another's"}},
        {"result": {"payload": "p"}, "error": {"code": 1}},
        {},
    ],
    ids=["another's", "result and error", "neither"],
)
def test_a_wrong_answer_is_kept_and_gives_no_latency(fields: dict[str, Any]) -> None:
    played = Played()
    played.take(id=played.ask().id, **fields)
    assert played.recorder.wrong_count == 1
    assert played.latency_ms("system.ping") is None
    assert played.answers[0].error == "wrong_answer"


@pytest.mark.parametrize(
    "message",
    [
        {"jsonrpc": "2.0", "id": 77, "result": {}},
        {"jsonrpc": "2.0", "method": "something", "params": {}},
        {"id": 1, "result": {"payload": "p"}},
        {"jsonrpc": "2.0", "id": [1], "result": {"payload": "p"}},
        {"jsonrpc": "2.0", "id": True, "result": {"payload": "p"}},
        {"jsonrpc": "2.0", "id": 1.0, "result": {"payload": "p"}},
        [],
        None,
    ],
)
def test_what_nobody_asked_for_is_wrong(message: Any) -> None:
    played = Played()
    played.ask()
    played.exchange.take(message, 2.0)
    assert played.recorder.wrong_count == 1
    assert len(played.exchange) == 1


def test_a_second_answer_is_wrong() -> None:
    played = Played()
    pending = played.ask()
    for _ in range(2):
        played.take(id=pending.id, result={"payload": "p"})
    assert played.recorder.wrong_count == 1


def test_an_error_is_counted_by_reason_and_gives_no_latency() -> None:
    played = Played()
    data = {"reason": "overloaded", "retry_after_s": 0.5}
    played.take(id=played.ask().id, error={"code": -32011, "message": "", "data": data})
    played.take(id=played.ask().id, error={"code": -32601, "message": ""})
    assert played.errors == {"overloaded": 1, "code_-32601": 1}
    assert played.latency_ms("system.ping") is None
    assert played.answers[0] == Answer(error="overloaded", retry_after_s=0.5, latency_s=1.0)


@pytest.mark.parametrize("wait", ["1", True, -1, [], float("inf"), float("nan"), None])
def test_a_time_to_come_back_that_is_none_is_left_out(wait: Any) -> None:
    played = Played()
    played.take(id=played.ask().id, error={"data": {"reason": "overloaded", "retry_after_s": wait}})
    assert played.answers == [Answer(error="overloaded", latency_s=1.0)]


def test_a_result_that_its_check_cannot_read_is_wrong() -> None:
    played = Played()
    call = Call("events.subscribe", check=lambda result: TOPIC in result["topics"])
    played.take(id=played.ask(call).id, result={})
    assert played.recorder.wrong_count == 1
    assert "KeyError: 'topics'" in played.recorder.wrong_answers[0]
    assert played.answers == [Answer(error="wrong_answer")]


def test_a_late_answer_to_what_timed_out_is_no_wrong_one() -> None:
    played = Played()
    pending = played.ask()
    assert played.exchange.expire(pending)
    assert not played.exchange.expire(pending)
    played.take(id=pending.id, result={"payload": "p"})
    assert played.errors == {"timeout": 1}
    assert (played.recorder.wrong_count, played.latency_ms("system.ping")) == (0, None)


def test_answers_that_come_late_by_the_thousand_are_late_and_not_wrong() -> None:
    played = Played()
    answered = played.ask()
    late = [played.ask() for _ in range(MAX_ABANDONED * 3)]
    after = played.ask()
    for pending in late:
        played.exchange.expire(pending)
    for pending in (answered, *late, after):
        played.take(id=pending.id, result={"payload": "p"})
    assert played.recorder.wrong_count == 0
    # What is newer than all that was forgotten is known to be answered already.
    played.take(id=after.id, result={"payload": "p"})
    played.take(id=0, result={"payload": "p"})
    assert played.recorder.wrong_count == 2


def test_a_lost_connection_answers_everything() -> None:
    played = Played()
    for _ in range(3):
        played.ask()
    played.exchange.lose("unanswered")
    assert played.errors == {"unanswered": 3}
    assert [answer.error for answer in played.answers] == ["unanswered"] * 3


def test_what_is_quiet_gives_errors_only() -> None:
    played = Played()
    played.take(id=played.ask(is_quiet=True).id, result={"payload": "p"})
    played.take(id=played.ask(is_quiet=True).id, error={"data": {"reason": "overloaded"}})
    assert played.recorder.stages[0].latencies == {}
    assert played.errors == {"overloaded": 1}


def test_a_stream_gives_a_first_token_and_a_response() -> None:
    played = Played()
    pending = played.ask(STREAM)
    for kind, data in (("stream_start", {}), ("stream_queued", {"position": 1})):
        played.event(pending, kind, **data)
    played.take(
        1.25, id=pending.id, result={"event_type": "stream_chunk", "data": {"chunk": "a", "chunk_number": 1}}
    )
    played.event(pending, "stream_chunk", chunk="b", chunk_number=2)
    played.event(pending, "stream_complete", full_response="ab")
    assert played.latency_ms("first_token") == 250
    assert played.latency_ms("persona.chat_stream") == 1000
    assert played.recorder.wrong_count == 0


@pytest.mark.parametrize(
    "events",
    [
        [("stream_chunk", {"chunk": "a", "chunk_number": 2})],
        [("stream_chunk", {"chunk_number": 1})],
        [("stream_chunk", {"chunk": "a", "chunk_number": 1}), ("stream_complete", {"full_response": "b"})],
        [("stream_unheard_of", {})],
    ],
    ids=["a chunk is missing", "an empty chunk", "not the whole", "no such event"],
)
def test_a_stream_that_is_not_right(events: list[tuple[str, dict[str, Any]]]) -> None:
    played = Played()
    pending = played.ask(STREAM)
    for kind, data in events:
        played.event(pending, kind, **data)
    assert played.recorder.wrong_count == 1
    assert played.latency_ms("persona.chat_stream") is None


def test_a_stream_is_cancelled_after_so_many_chunks() -> None:
    played = Played()
    pending = played.ask(Stream({"message": "hi"}, cancel_after=2))
    assert played.event(pending, "stream_chunk", chunk="a", chunk_number=1) == b""
    frame = played.event(pending, "stream_chunk", chunk="b", chunk_number=2)
    cancel = orjson.loads(frame[frame.index(b"{") :])
    assert (cancel["method"], cancel["params"]) == ("stream.cancel", {"request_id": pending.id})
    played.take(id=cancel["id"], result={"cancelled": True})
    played.event(pending, "stream_cancelled", reason="client")
    assert (played.recorder.cancelled_count, played.errors, played.recorder.wrong_count) == (1, {}, 0)
    assert played.latency_ms("persona.chat_stream") is None


def test_a_stream_that_the_server_cancels_is_an_error() -> None:
    played = Played()
    played.event(played.ask(STREAM), "stream_cancelled", reason="server")
    assert played.errors == {"cancelled": 1}


def test_an_event_is_timed_from_when_it_was_sent_and_a_gap_shows() -> None:
    played = Played()
    for seq in (4, 5, 7):
        params = {"topic": TOPIC, "type": "t", "seq": seq, "data": {"sent_at": 1.5}}
        played.take(method="event", params=params)
    assert played.latency_ms("broadcast") == 500
    assert (played.errors, played.recorder.wrong_count) == ({"missed_event": 1}, 0)


def test_events_between_two_connections_are_not_missed() -> None:
    played = Played()
    for seq in (4, 9, 1):
        played.take(method="event", params={"topic": TOPIC, "type": "t", "seq": seq, "data": {}})
        played.exchange.lose("unanswered")
    assert (played.errors, played.recorder.wrong_count) == ({}, 0)


@pytest.mark.parametrize("seq", [4, 5])
def test_an_event_that_was_there_before_is_wrong(seq: int) -> None:
    played = Played()
    for each in (4, 5, seq):
        played.take(method="event", params={"topic": TOPIC, "type": "t", "seq": each, "data": {}})
    assert (played.errors, played.recorder.wrong_count) == ({}, 1)


@pytest.mark.parametrize("sent_at", [1e308, "1", None])
def test_an_event_that_does_not_say_when_it_was_sent_is_not_timed(sent_at: Any) -> None:
    played = Played()
    played.take(method="event", params={"topic": TOPIC, "seq": 1, "data": {"sent_at": sent_at}})
    assert played.latency_ms("broadcast") is None
    assert played.recorder.events.received == 1


def test_what_was_published_is_what_the_server_says_it_delivered() -> None:
    played = Played()
    played.take(id=played.ask(publish(USER, 0)).id, result={"delivered": 5, "dropped": 0})
    played.take(id=played.ask(Call("system.broadcast", {"topic": "another"})).id, result={"delivered": 7})
    played.take(id=played.ask(Call("system.broadcast", {"topic": TOPIC})).id, result=None)
    assert played.recorder.events.promised == 5
