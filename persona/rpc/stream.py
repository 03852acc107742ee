"""A turn's progress on the wire: events as frames under the request's id, or as notifications.

The events are the ones of docs/protocol.md: `stream_start`, `stream_queued`*, `stream_chunk`*, and
exactly one that ends the stream.
"""

import math
import uuid
from collections.abc import Callable
from typing import Any, Protocol

import attrs
import trio

from persona.errors import PersonaError, RequestCancelled, ShuttingDown
from persona.model import Persona, isoformat
from persona.rpc import jsonrpc
from persona.rpc import results as r
from persona.rpc.dispatch import Call
from persona.service.turn import TurnAnswer
from persona.timeouts import TimeoutQueue

ENVELOPE_BYTES = 512
"""More than a chunk's frame has around its text."""
PACE_S = 0.015
"""Between two chunks of one stream; what the model says meanwhile goes together. Nobody reads faster, and a
frame for each of a fast model's tokens would cost the server and every client more than the text is worth."""
MAX_HELD_CHARS = 8 * 1024
"""What is held back at most; more is sent before its time, in frames that every client takes."""

Pace = TimeoutQueue["Stream"]
"""The streams that hold text back. Its `run` is a service: it lets them send it."""


class StreamParams(Protocol):
    """What a stream must know of what its client asked."""

    token_budget: int
    include_context: bool


class Stream:
    """The observer of one turn. `complete` and `cancelled` give the event that ends the stream as
    the request's result; `finished` and `failed` send it as a notification."""

    def __init__(
        self,
        call: Call,
        params: StreamParams,
        persona: Persona,
        now: Callable[[], float],
        pace: Pace,
        *,
        as_notifications: bool,
    ) -> None:
        self._call = call
        self._params = params
        self._persona = persona
        self._now = now
        self._pace = pace
        self._as_notifications = as_notifications
        # A notification is never answered, and without an id there is nothing to answer under.
        self._is_mute = call.request.id is None and not as_notifications
        self._stream_id = uuid.uuid4().hex
        self._chunk_count = 0
        self._total_length = 0
        self._held: list[str] = []
        self._held_chars = 0
        self._chunk_sent_at = -math.inf
        self.is_open = False
        """Whether `stream_start` was sent, so that a terminal event is owed."""

    def started(self, line: str) -> None:
        """Send `stream_start`."""
        self.is_open = True
        self._call.request.stream_id = self._stream_id
        data = {
            "persona_id": self._persona.id,
            "persona_name": self._persona.name,
            "message": line,
            "token_budget": self._params.token_budget,
        }
        self._send(self._event("stream_start", data, persona_id=self._persona.id))

    def queued(self, position: int) -> None:
        """Send `stream_queued`."""
        self._send(self._event("stream_queued", {"position": position}))

    def delta(self, text: str) -> None:
        """Send `stream_chunk`; or hold the text back for a moment, to go with what follows at once."""
        if self._is_mute:
            return
        if not self._held:
            if trio.current_time() - self._chunk_sent_at >= PACE_S:
                self._send_chunk(text)
                return
            self._pace.add(self)
        self._held.append(text)
        self._held_chars += len(text)
        if self._held_chars >= MAX_HELD_CHARS:
            self.release()

    def release(self) -> None:
        """Send what is held back."""
        if self._held:
            self._pace.remove(self)
            text = "".join(self._held)
            self._held.clear()
            self._held_chars = 0
            self._send_chunk(text)

    def _send_chunk(self, text: str) -> None:
        """Or let it go with the last chunk, if that still waits for a client that reads slowly."""
        self._chunk_sent_at = trio.current_time()
        self._total_length += len(text)
        chunk = _Chunk(self, self._chunk_count + 1, self._total_length, text)
        self._call.subscriber.offer(chunk)
        if not chunk.was_joined:
            self._chunk_count += 1

    def complete(self, answer: TurnAnswer) -> dict[str, Any]:
        """`stream_complete`."""
        self.release()
        data = {
            "full_response": answer.text,
            "chunk_count": self._chunk_count,
            "response_length": len(answer.text),
            "processing_time": answer.processing_time_s,
            "time_to_first_token": answer.time_to_first_token_s,
            "tokens_used": answer.tokens_used,
            "persona_id": self._persona.id,
            "persona_name": self._persona.name,
            "conversation_id": answer.conversation_id,
            "turn_id": answer.turn_id,
            "parent_id": answer.parent_id,
            "finish_reason": answer.finish_reason,
            "response_type": answer.response_type,
            "model": answer.model,
            "continue_score": answer.continue_score,
            "persona_state": persona_state(answer),
        }
        if self._params.include_context:
            data["context"] = used_context(answer)
        return self._event(
            "stream_complete",
            data,
            persona_id=self._persona.id,
            full_response=answer.text,
            tokens_used=answer.tokens_used,
            processing_time=answer.processing_time_s,
        )

    def cancelled(self, error: PersonaError) -> dict[str, Any]:
        """`stream_cancelled`."""
        self.release()
        details = error.details or {}
        data = {
            "reason": "client" if isinstance(error, RequestCancelled) else error.reason,
            "partial_response": details.get("partial_response", ""),
            "turn_id": details.get("turn_id"),
            "finish_reason": "cancelled",
        }
        return self._event("stream_cancelled", data, persona_id=self._persona.id)

    def finished(self, answer: TurnAnswer) -> None:
        """Send `stream_complete`; the request's own answer follows it."""
        self._send(self.complete(answer))

    def failed(self, error: PersonaError) -> None:
        """Send `stream_cancelled` or `stream_error`; the request's own error follows it."""
        if not self.is_open:
            return
        if isinstance(error, RequestCancelled | ShuttingDown):
            self._send(self.cancelled(error))
        else:
            self.release()
            self._send(self._event("stream_error", {"error": error.to_wire()}, persona_id=self._persona.id))

    def error_ids(self) -> dict[str, Any]:
        """What tells a `stream_error` from any other error reply."""
        return {
            "event_type": "stream_error",
            "stream_id": self._stream_id,
            "persona_id": self._persona.id,
        }

    def encode_chunk(self, text: str, number: int, total_length: int) -> bytes:
        """One `stream_chunk` frame."""
        data = {"chunk": text, "chunk_number": number, "total_length": total_length}
        return self._encode(self._event("stream_chunk", data, chunk=text))

    def _send(self, event: dict[str, Any]) -> None:
        if not self._is_mute:
            self._call.subscriber.offer(self._encode(event))

    def _encode(self, event: dict[str, Any]) -> bytes:
        request_id = self._call.request.id
        if self._as_notifications or request_id is None:
            return jsonrpc.encode_notification("stream.event", event)
        return jsonrpc.encode_result(request_id, event)

    def _event(self, event_type: str, data: dict[str, Any], **beside: Any) -> dict[str, Any]:
        """An `r.StreamEvent` as it goes out: what is repeated beside `data` is there only where it
        occurs."""
        return {
            "event_type": event_type,
            "stream_id": self._stream_id,
            "timestamp": isoformat(self._now()),
            "data": data,
            **beside,
        }


@attrs.define(eq=False)
class _Chunk:
    """A `stream_chunk` that waits to be sent."""

    series: Stream
    number: int
    total_length: int
    text: str
    was_joined: bool = False

    @property
    def size_bytes(self) -> int:
        # The text stands in the frame twice; four bytes a character covers any language.
        return ENVELOPE_BYTES + 8 * len(self.text)

    def join(self, later: "_Chunk") -> None:
        self.text += later.text
        self.total_length = later.total_length
        later.was_joined = True

    def encode(self) -> bytes:
        return self.series.encode_chunk(self.text, self.number, self.total_length)


def persona_state(answer: TurnAnswer) -> r.PersonaState:
    """How the persona is after the turn."""
    return r.PersonaState(
        social_energy=answer.social_energy,
        available_time=answer.available_time_s,
        interaction_fatigue=answer.interaction_fatigue,
    )


def open_pace() -> Pace:
    """One for all streams of a server."""
    return TimeoutQueue(PACE_S, Stream.release)


def used_context(answer: TurnAnswer) -> r.UsedContext | None:
    """What the model was given for the turn; `None` for an answer of a version that did not keep it."""
    return None if answer.context is None else r.UsedContext(**answer.context)
