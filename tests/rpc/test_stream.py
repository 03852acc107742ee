"""A turn's progress as events."""

import itertools
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

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
from persona.rpc.stream import MAX_HELD_CHARS, PACE_S, Pace, Stream, open_pace
from persona.service.sessions import Identity, RequestId, RunningRequest, Sessions
from persona.service.subscriber import Frame, Subscriber
from persona.service.turn import TurnAnswer
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
    pace: Pace


def play(
    *, id: RequestId | None = 1, as_notifications: bool = False, subscriber: Subscriber | None = None
) -> Played:
    request, reader = RunningRequest(id=id, method="m"), Reader()
    call = Call(
        session=Sessions().open(Identity()),
        request=request,
        subscriber=reader if subscriber is None else subscriber,
    )
    params = p.ChatParams(message="Hello", token_budget=50)
    pace = open_pace()
    stream = Stream(call, params, ARIA, lambda: 0.25, pace, as_notifications=as_notifications)
    return Played(stream, request, reader, pace)


def answer(text: str, finish_reason: FinishReason = "stop") -> TurnAnswer:
    return TurnAnswer(
        text=text,
        response_type="llm",
        conversation_id="c",
        turn_id=7,
        parent_id=6,
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
async def test_each_step_is_an_event_of_one_stream(as_notifications: bool, autojump_clock: MockClock) -> None:
    played = play(id="r", as_notifications=as_notifications)
    stream = played.stream
    stream.started("Hello")
    for position in (2, 1):
        stream.queued(position)
    for text in ("Wéll", " met"):
        stream.delta(text)
        await trio.sleep(PACE_S)
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
        played.stream.started("Hello")
    assert first.request.stream_id != second.request.stream_id


@attrs.define
class Watch(Reader):
    """A client that notes when each chunk came."""

    started_at: float = attrs.field(factory=trio.current_time)
    chunks: list[tuple[float, str]] = attrs.field(factory=list)

    def offer(self, frame: Frame) -> bool:
        event = json.loads(frame if isinstance(frame, bytes) else frame.encode())["result"]
        if event["event_type"] == "stream_chunk":
            passed = round(trio.current_time() - self.started_at, 6)
            self.chunks.append((passed, event["data"]["chunk"]))
        return True


@attrs.define
class Paced:
    stream: Stream
    chunks: list[tuple[float, str]]


@asynccontextmanager
async def paced() -> AsyncIterator[Paced]:
    watch = Watch()
    played = play(subscriber=watch)
    async with trio.open_nursery() as nursery:
        await nursery.start(played.pace.run)
        played.stream.started("Hello")
        yield Paced(played.stream, watch.chunks)
        nursery.cancel_scope.cancel()


async def test_a_model_faster_than_the_pace_is_sent_at_the_pace(autojump_clock: MockClock) -> None:
    async with paced() as there:
        for number in range(100):
            there.stream.delta(f"{number} ")
            await trio.sleep(0.001)
        await trio.sleep(1)
    times = [time for time, _ in there.chunks]
    assert times[0] == 0  # the first token waits for nothing
    assert all(PACE_S <= later - earlier < PACE_S + 0.002 for earlier, later in itertools.pairwise(times))
    assert "".join(text for _, text in there.chunks) == "".join(f"{number} " for number in range(100))


async def test_a_model_slower_than_the_pace_is_sent_as_it_speaks(autojump_clock: MockClock) -> None:
    async with paced() as there:
        for number in range(5):
            there.stream.delta(str(number))
            await trio.sleep(0.02)
    assert there.chunks == [(0, "0"), (0.02, "1"), (0.04, "2"), (0.06, "3"), (0.08, "4")]


async def test_what_is_held_is_sent_though_the_model_falls_silent(autojump_clock: MockClock) -> None:
    async with paced() as there:
        there.stream.delta("a")
        there.stream.delta("b")
        await trio.sleep(60)
        there.stream.delta("c")
    assert there.chunks == [(0, "a"), (PACE_S, "b"), (60, "c")]


@pytest.mark.parametrize("end", ["complete", "cancelled", "failed"])
async def test_what_is_held_comes_before_the_end(end: str, autojump_clock: MockClock) -> None:
    async with paced() as there:
        there.stream.delta("a")
        there.stream.delta("b")
        if end == "complete":
            there.stream.complete(answer("ab"))
        elif end == "cancelled":
            there.stream.cancelled(RequestCancelled("enough"))
        else:
            there.stream.failed(LLMUnavailable("gone"))
        await trio.sleep(1)
    assert there.chunks == [(0, "a"), (0, "b")]


async def test_a_flood_is_not_held_back_for_long(autojump_clock: MockClock) -> None:
    async with paced() as there:
        there.stream.delta("a")
        for _ in range(4):
            there.stream.delta("x" * (MAX_HELD_CHARS // 2))
    assert there.chunks == [(0, "a"), (0, "x" * MAX_HELD_CHARS), (0, "x" * MAX_HELD_CHARS)]


async def test_a_client_that_falls_behind_gets_fewer_chunks_and_the_whole_text(
    autojump_clock: MockClock,
) -> None:
    outbox = Outbox(max_messages=6, max_bytes=10**6)
    played = play(subscriber=outbox)
    played.stream.started("Hello")
    words = [f"word{number} " for number in range(20)]
    for word in words[:12]:
        played.stream.delta(word)
        await trio.sleep(PACE_S)
    events = [json.loads(frame)["result"] for frame in outbox.take(10**9)]
    for word in words[12:]:
        played.stream.delta(word)
        await trio.sleep(PACE_S)
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
async def test_completion_carries_the_whole_turn(finish_reason: FinishReason) -> None:
    played = play(as_notifications=True)
    played.stream.started("Hello")
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
        "parent_id": 6,
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
    played.stream.started("Hello")
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
    played.stream.started("Hello")
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
    played.stream.started("Hello")
    played.stream.queued(1)
    played.stream.delta("Well")
    played.stream.finished(answer("Well"))
    assert played.reader.frames == []
    asked = play(id=None, as_notifications=True)
    asked.stream.started("Hello")
    assert asked.reader.frames[0]["method"] == "stream.event"
