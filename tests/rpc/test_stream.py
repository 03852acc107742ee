"""A turn's progress as events."""

import json
from typing import Any

import attrs
import pytest

from persona.errors import (
    DeadlineExceeded,
    LLMUnavailable,
    PersonaError,
    RequestCancelled,
    ShuttingDown,
)
from persona.model import FinishReason, Persona
from persona.rpc import params as p
from persona.rpc.dispatch import Call
from persona.rpc.stream import Stream
from persona.service.chat import TurnAnswer
from persona.service.sessions import Identity, RequestId, RunningRequest, Sessions
from persona.service.subscriber import Frame
from persona.transport.outbox import Outbox

ARIA = Persona(id="p-aria", name="Aria", description="a bard", created_at=0.0, updated_at=0.0)
PARTIAL = {"partial_response": "Well", "turn_id": 7, "finish_reason": "cancelled"}


class Reader:
    """A client that reads at once."""

    def __init__(self) -> None:
        self.frames: list[Any] = []

    def offer(self, frame: Frame) -> bool:
        self.frames.append(json.loads(frame if isinstance(frame, bytes) else frame.encode()))
        return True


@attrs.define
class Played:
    stream: Stream
    request: RunningRequest
    reader: Reader


def play(
    *, id: RequestId | None = 1, as_notifications: bool = False, subscriber: Outbox | None = None
) -> Played:
    request, reader = RunningRequest(id=id, method="m"), Reader()
    call = Call(
        session=Sessions().open(Identity()),
        request=request,
        subscriber=reader if subscriber is None else subscriber,
    )
    params = p.ChatParams(message="Hello", token_budget=50)
    stream = Stream(call, params, ARIA, lambda: 0.25, as_notifications=as_notifications)
    return Played(stream, request, reader)


def answer(text: str, finish_reason: FinishReason = "stop") -> TurnAnswer:
    return TurnAnswer(
        text=text,
        response_type="llm",
        conversation_id="c",
        turn_id=7,
        finish_reason=finish_reason,
        model="m:1",
        tokens_used=3,
        processing_time_s=1.5,
        time_to_first_token_s=0.5,
        continue_score=80.0,
        social_energy=99.0,
        available_time_s=298.5,
        interaction_fatigue=1.0,
    )


@pytest.mark.parametrize("as_notifications", [False, True])
def test_each_step_is_an_event_of_one_stream(as_notifications: bool) -> None:
    played = play(id="r", as_notifications=as_notifications)
    stream = played.stream
    stream.started()
    for position in (2, 1):
        stream.queued(position)
    for text in ("Wéll", " met"):
        stream.delta(text)
    frames = played.reader.frames
    if as_notifications:
        assert {(frame["method"], "id" in frame) for frame in frames} == {("stream.event", False)}
        events = [frame["params"] for frame in frames]
    else:
        assert {frame["id"] for frame in frames} == {"r"}
        events = [frame["result"] for frame in frames]
    assert {(event["stream_id"], event["timestamp"]) for event in events} == {
        (played.request.stream_id, "1970-01-01T00:00:00.250Z")
    }
    assert [(event["event_type"], event["data"]) for event in events] == [
        (
            "stream_start",
            {"persona_id": "p-aria", "persona_name": "Aria", "message": "Hello", "token_budget": 50},
        ),
        ("stream_queued", {"position": 2}),
        ("stream_queued", {"position": 1}),
        ("stream_chunk", {"chunk": "Wéll", "chunk_number": 1, "total_length": 4}),
        ("stream_chunk", {"chunk": " met", "chunk_number": 2, "total_length": 8}),
    ]
    assert events[0]["persona_id"] == "p-aria"
    assert [event["chunk"] for event in events[3:]] == ["Wéll", " met"]


def test_two_streams_are_told_apart() -> None:
    first, second = play(), play()
    for played in (first, second):
        played.stream.started()
    assert first.request.stream_id != second.request.stream_id


async def test_a_client_that_falls_behind_gets_fewer_chunks_and_the_whole_text() -> None:
    outbox = Outbox(max_messages=6, max_bytes=10**6)
    played = play(subscriber=outbox)
    played.stream.started()
    words = [f"word{number} " for number in range(20)]
    for word in words[:12]:
        played.stream.delta(word)
    events = [json.loads(frame)["result"] for frame in outbox.take(10**9)]
    for word in words[12:]:
        played.stream.delta(word)
    events += [json.loads(frame)["result"] for frame in outbox.take(10**9)]
    assert not outbox.overflowed
    chunks = [event["data"] for event in events[1:]]
    assert len(chunks) < len(words)
    assert [chunk["chunk_number"] for chunk in chunks] == list(range(1, len(chunks) + 1))
    text = ""
    for chunk in chunks:
        text += chunk["chunk"]
        assert chunk["total_length"] == len(text)
    assert text == "".join(words)
    assert played.stream.complete(answer(text))["data"]["chunk_count"] == len(chunks)


@pytest.mark.parametrize("finish_reason", ["stop", "length"])
def test_completion_carries_the_whole_turn(finish_reason: FinishReason) -> None:
    played = play(as_notifications=True)
    played.stream.started()
    played.stream.delta("Well met.")
    played.stream.finished(answer("Well met.", finish_reason))
    event = played.reader.frames[-1]["params"]
    assert event["event_type"] == "stream_complete"
    assert event["data"] == {
        "full_response": "Well met.",
        "chunk_count": 1,
        "response_length": 9,
        "processing_time": 1.5,
        "time_to_first_token": 0.5,
        "tokens_used": 3,
        "persona_id": "p-aria",
        "persona_name": "Aria",
        "conversation_id": "c",
        "turn_id": 7,
        "finish_reason": finish_reason,
        "response_type": "llm",
        "model": "m:1",
        "continue_score": 80.0,
        "persona_state": {"social_energy": 99.0, "available_time": 298.5, "interaction_fatigue": 1.0},
    }
    beside = {name: event[name] for name in ("persona_id", "full_response", "tokens_used", "processing_time")}
    assert beside == {name: event["data"][name] for name in beside}


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (RequestCancelled("x", details=PARTIAL), "client"),
        (ShuttingDown("x", details=PARTIAL), "shutting_down"),
    ],
)
def test_a_cancelled_stream_says_by_whom_and_how_far_it_came(error: PersonaError, reason: str) -> None:
    played = play(as_notifications=True)
    played.stream.started()
    played.stream.failed(error)
    event = played.reader.frames[-1]["params"]
    assert event["event_type"] == "stream_cancelled"
    assert event["data"] == {**PARTIAL, "reason": reason}


def test_a_stream_cancelled_before_its_first_token_has_no_turn() -> None:
    event = play().stream.cancelled(RequestCancelled("x"))
    assert (event["data"]["partial_response"], event["data"]["turn_id"]) == ("", None)


@pytest.mark.parametrize("error", [LLMUnavailable("gone", retry_after_s=5), DeadlineExceeded("late")])
def test_a_failed_stream_carries_the_error(error: PersonaError) -> None:
    played = play(as_notifications=True)
    played.stream.started()
    played.stream.failed(error)
    event = played.reader.frames[-1]["params"]
    assert event["event_type"] == "stream_error"
    assert event["data"] == {"error": error.to_wire()}
    assert played.stream.error_ids() == {
        "event_type": "stream_error",
        "stream_id": event["stream_id"],
        "persona_id": "p-aria",
    }


def test_what_never_began_has_no_end() -> None:
    played = play(as_notifications=True)
    played.stream.failed(LLMUnavailable("gone"))
    assert not played.stream.is_open
    assert played.reader.frames == []


def test_without_an_id_there_is_nothing_to_answer_under() -> None:
    played = play(id=None)
    played.stream.started()
    played.stream.queued(1)
    played.stream.delta("Well")
    played.stream.finished(answer("Well"))
    assert played.reader.frames == []
    asked = play(id=None, as_notifications=True)
    asked.stream.started()
    assert asked.reader.frames[0]["method"] == "stream.event"
