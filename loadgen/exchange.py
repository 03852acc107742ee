"""The requests of one connection that wait for an answer: matched by id, checked, timed. No I/O.

An answer nobody asked for, a second answer, a chunk out of order, a stream whose end is not the sum of its
chunks, an event that was there before: each is a wrong answer, and a wrong answer fails the run. A gap before
an event is an error, `missed_event`, which a scenario may expect.
"""

import math
from collections.abc import Callable
from typing import Any

import attrs

from loadgen.recorder import Recorder
from loadgen.script import Answer, Call, Stream
from loadgen.wire import request_frame

TOPIC = "loadgen"
"""Events of this topic carry the time they were sent at, and so measure the fan-out."""
PUBLISH = "system.broadcast"
MAX_ABANDONED = 1000
"""Ids of requests that timed out, remembered so that a late answer is not taken for a wrong one. Where there
are more, an answer to any request as old as one that was forgotten may be a late one, and passes for it."""

Reply = Callable[[Answer], None]


@attrs.define(eq=False)
class Pending:
    """A request on its way. Times are `time.perf_counter()`'s."""

    id: int
    command: Call | Stream
    scheduled_at: float
    """When it was due, which is what its latency is counted from, however late it was sent."""
    deadline: float
    reply: Reply | None
    is_quiet: bool = False
    """Not in the figures, but for its errors."""
    chunks: list[str] = attrs.field(factory=list)


class Exchange:
    """`ask` makes frames, `take` reads messages."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._next_id = 0
        self._pending: dict[int, Pending] = {}
        self._abandoned: dict[int, None] = {}
        self._forgotten_id = 0
        """Ids rise: this is the newest of those that were abandoned and are not remembered."""
        self._cancels: set[int] = set()
        self._last_seq: dict[str, int] = {}

    def __len__(self) -> int:
        return len(self._pending)

    def waiting(self) -> list[Pending]:
        """The requests without an answer, oldest first."""
        return list(self._pending.values())

    def ask(
        self,
        command: Call | Stream,
        *,
        scheduled_at: float,
        timeout_s: float,
        reply: Reply | None,
        is_quiet: bool = False,
    ) -> tuple[Pending, bytes]:
        """The frame to send for a command, and what waits for its answer."""
        request_id = self._take_id()
        timeout_s = timeout_s if command.timeout_s is None else command.timeout_s
        pending = Pending(request_id, command, scheduled_at, scheduled_at + timeout_s, reply, is_quiet)
        self._pending[request_id] = pending
        method = command.method if isinstance(command, Call) else "persona.chat_stream"
        return pending, request_frame(request_id, method, command.params)

    def expire(self, pending: Pending) -> bool:
        """Wait no longer, where it still waits; whether it did."""
        if self._pending.get(pending.id) is not pending:
            return False
        del self._pending[pending.id]
        self._abandon(pending.id)
        self._finish(pending, Answer(error="timeout"))
        return True

    def lose(self, kind: str) -> None:
        """The connection is gone, and with it every answer, and what it knew of the topics it heard."""
        self._last_seq.clear()
        pending, self._pending = list(self._pending.values()), {}
        for each in pending:
            self._finish(each, Answer(error=kind))

    def take(self, message: Any, now: float) -> bytes:
        """Read one message; what is to be sent in return, if anything."""
        if not isinstance(message, dict) or message.get("jsonrpc") != "2.0":
            self._recorder.wrong("a message that is no JSON-RPC", message, now)
        elif "id" not in message:
            self._event(message, now)
        elif type(message["id"]) is not int:
            # `True` is 1 to a dict, and a list cannot be asked for.
            self._recorder.wrong("an answer whose id is none of ours", message, now)
        elif (pending := self._pending.get(message["id"])) is not None:
            return self._answer(pending, message, now)
        elif message["id"] in self._cancels:
            # Whether it came in time is told by how the stream ends.
            self._cancels.discard(message["id"])
        elif message["id"] not in self._abandoned and not 0 < message["id"] <= self._forgotten_id:
            self._recorder.wrong("an answer that nothing waits for", message, now)
        return b""

    def _abandon(self, request_id: int) -> None:
        if len(self._abandoned) >= MAX_ABANDONED:
            oldest = next(iter(self._abandoned))
            del self._abandoned[oldest]
            self._forgotten_id = max(self._forgotten_id, oldest)
        self._abandoned[request_id] = None

    def _take_id(self) -> int:
        self._next_id += 1
        return self._next_id

    def _answer(self, pending: Pending, message: dict[str, Any], now: float) -> bytes:
        if ("error" in message) == ("result" in message):
            self._fail_as_wrong(pending, "an answer with not exactly one of `result` and `error`", message)
        elif "error" in message:
            self._refused(pending, message["error"], now)
        elif isinstance(pending.command, Stream):
            return self._streamed(pending, pending.command, message["result"], now)
        elif (complaint := _complaint(pending.command, message["result"])) is None:
            self._succeed(pending, message["result"], now)
        else:
            self._fail_as_wrong(pending, f"{complaint} to {pending.command}", message)
        return b""

    def _refused(self, pending: Pending, error: Any, now: float) -> None:
        data = error.get("data") if isinstance(error, dict) else None
        reason = data.get("reason") if isinstance(data, dict) else None
        if not isinstance(reason, str):
            # Other servers than ours know codes only.
            reason = f"code_{error.get('code')}" if isinstance(error, dict) else "malformed_error"
        wait_s = _seconds(data.get("retry_after_s")) if isinstance(data, dict) else None
        answer = Answer(error=reason, retry_after_s=wait_s, latency_s=now - pending.scheduled_at)
        del self._pending[pending.id]
        self._finish(pending, answer)

    def _streamed(self, pending: Pending, command: Stream, event: Any, now: float) -> bytes:
        kind, data = (event.get("event_type"), event.get("data")) if isinstance(event, dict) else (None, None)
        if not isinstance(data, dict):
            self._fail_as_wrong(pending, "a stream event without data", event)
        elif kind == "stream_chunk":
            return self._chunk(pending, command, data, now)
        elif kind == "stream_complete":
            if data.get("full_response") == "".join(pending.chunks):
                self._succeed(pending, data, now)
            else:
                self._fail_as_wrong(pending, "a stream whose whole is not the sum of its chunks", event)
        elif kind == "stream_cancelled":
            del self._pending[pending.id]
            if command.cancel_after is None:
                self._finish(pending, Answer(error="cancelled"))
            else:
                self._recorder.cancelled()
                self._hand_back(pending, Answer(error="cancelled", latency_s=now - pending.scheduled_at))
        elif kind not in ("stream_start", "stream_queued"):
            self._fail_as_wrong(pending, f"a stream event of kind {kind!r}", event)
        return b""

    def _chunk(self, pending: Pending, command: Stream, data: dict[str, Any], now: float) -> bytes:
        if data.get("chunk_number") != len(pending.chunks) + 1 or not isinstance(data.get("chunk"), str):
            self._fail_as_wrong(pending, f"chunk {len(pending.chunks) + 1} was due", data)
            return b""
        pending.chunks.append(data["chunk"])
        if len(pending.chunks) == 1 and not pending.is_quiet:
            self._recorder.took("first_token", pending.scheduled_at, now)
        if len(pending.chunks) == command.cancel_after:
            cancel_id = self._take_id()
            self._cancels.add(cancel_id)
            return request_frame(cancel_id, "stream.cancel", {"request_id": pending.id})
        return b""

    def _event(self, message: dict[str, Any], now: float) -> None:
        params = message.get("params")
        if message.get("method") != "event" or not isinstance(params, dict):
            self._recorder.wrong("a notification of no known kind", message, now)
            return
        topic, seq, data = params.get("topic"), params.get("seq"), params.get("data")
        if isinstance(topic, str) and isinstance(seq, int):
            last = self._last_seq.get(topic)
            self._last_seq[topic] = seq
            if last is not None and seq <= last:
                self._recorder.wrong("an event that was there before", message, now)
            elif last is not None and seq != last + 1:
                self._recorder.failed("missed_event", now)
        if topic == TOPIC:
            self._recorder.events.received += 1
            self._recorder.events.last_at = now
            sent_at = data.get("sent_at") if isinstance(data, dict) else None
            if isinstance(sent_at, float) and sent_at <= now:
                self._recorder.took("broadcast", sent_at, now)

    def _succeed(self, pending: Pending, result: Any, now: float) -> None:
        del self._pending[pending.id]
        if not pending.is_quiet:
            self._recorder.answered(pending.command.name, pending.scheduled_at, now)
        if isinstance(pending.command, Call) and pending.command.method == PUBLISH:
            self._published(pending.command, result)
        self._hand_back(pending, Answer(result=result, latency_s=now - pending.scheduled_at))

    def _published(self, command: Call, result: Any) -> None:
        delivered = result.get("delivered") if isinstance(result, dict) else None
        if command.params.get("topic") == TOPIC and isinstance(delivered, int):
            self._recorder.events.promised += delivered

    def _fail_as_wrong(self, pending: Pending, what: str, message: Any) -> None:
        del self._pending[pending.id]
        self._abandon(pending.id)
        self._recorder.wrong(what, message, pending.scheduled_at)
        self._hand_back(pending, Answer(error="wrong_answer"))

    def _finish(self, pending: Pending, answer: Answer) -> None:
        assert answer.error is not None
        self._recorder.failed(answer.error, pending.scheduled_at)
        self._hand_back(pending, answer)

    @staticmethod
    def _hand_back(pending: Pending, answer: Answer) -> None:
        if pending.reply is not None:
            pending.reply(answer)


def _complaint(command: Call, result: Any) -> str | None:
    """What is wrong with a result; `None` where nothing is."""
    # A check is a scenario's, and what it reads is the server's: it may meet anything.
    try:
        return None if command.check(result) else "a wrong answer"
    except Exception as exc:  # noqa: BLE001
        return f"an answer that its check cannot read ({type(exc).__name__}: {exc})"


def _seconds(value: Any) -> float | None:
    """A time to wait, where it is one."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 <= value < math.inf else None
