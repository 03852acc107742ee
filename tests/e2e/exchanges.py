"""All that comes over the wire for one chat, whichever of the three ways it was asked for.

exchange = await ask(wire, "chat_stream", message="Hello")
exchange.check()
assert exchange.text == "You said: Hello"
"""

from typing import Any, Literal

import attrs

from tests.llm.standin import StandIn, echo
from tests.serving import Wire

Style = Literal["chat", "chat_stream", "stream_true"]
STYLES: tuple[Style, ...] = ("chat", "chat_stream", "stream_true")

TERMINAL_EVENTS = ("stream_complete", "stream_error", "stream_cancelled")


def chat_call(style: Style, **params: Any) -> tuple[str, dict[str, Any]]:
    """Method and params that ask for a chat in this style."""
    if style == "chat_stream":
        return "persona.chat_stream", params
    return "persona.chat", {**params, "stream": True} if style == "stream_true" else params


def llm_settings(standin: StandIn, **more: Any) -> dict[str, Any]:
    """Settings of the section `llm` that point at a stand-in, which is asked for nothing but chats."""
    settings = {"backend": standin.kind, "base_url": standin.base_url, "model": "stand-in"}
    return {**settings, "context_tokens": 4096, **more}


@attrs.define
class Exchange:
    """One request and what came for it so far."""

    id: Any
    style: Style
    events: list[dict[str, Any]] = attrs.field(factory=list)
    """Stream events in order, without the envelope they came in."""
    reply: dict[str, Any] | None = None
    """The frame that ended it; for `persona.chat_stream` that is the terminal event, too."""

    def feed(self, frame: dict[str, Any]) -> bool:
        """Take a frame if it belongs here. Notifications do not say to which request they belong,
        so one stream with `stream: true` at a time."""
        if frame.get("method") == "stream.event":
            assert self.style == "stream_true", f"a notification nobody asked for: {frame}"
            assert "id" not in frame
            assert self.reply is None, f"an event after the answer: {frame}"
            self.events.append(frame["params"])
            return True
        if frame.get("id") != self.id:
            return False
        assert self.reply is None, f"a frame after the answer: {frame}"
        assert ("result" in frame) != ("error" in frame)
        if self.style == "chat_stream" and "result" in frame:
            self.events.append(frame["result"])
            if frame["result"]["event_type"] not in TERMINAL_EVENTS:
                return True
        self.reply = frame
        return True

    async def receive_from(self, wire: Wire, *, until_chunks: int | None = None) -> "Exchange":
        """Read until the answer, or until so many chunks; no foreign frame may come meanwhile."""
        while self.reply is None and (until_chunks is None or len(self.chunks) < until_chunks):
            frame = await wire.receive()
            assert self.feed(frame), f"an unexpected frame: {frame}"
        return self

    @property
    def chunks(self) -> list[str]:
        return [event["data"]["chunk"] for event in self.events if event["event_type"] == "stream_chunk"]

    @property
    def stream_id(self) -> str:
        ids = {event["stream_id"] for event in self.events}
        assert len(ids) == 1
        return str(ids.pop())

    @property
    def result(self) -> dict[str, Any]:
        assert self.reply is not None
        assert "error" not in self.reply, self.reply
        result = self.reply["result"]
        return dict(result["data"] if self.style == "chat_stream" else result)

    @property
    def error(self) -> dict[str, Any]:
        assert self.reply is not None
        assert "result" not in self.reply, self.reply
        return dict(self.reply["error"])

    @property
    def text(self) -> str:
        """The answer, when there is one."""
        return str(self.result["full_response" if self.style == "chat_stream" else "response"])

    @property
    def terminal_events(self) -> list[str]:
        """The terminal events, those that are an error reply among them."""
        found = [event["event_type"] for event in self.events if event["event_type"] in TERMINAL_EVENTS]
        if self.style == "chat_stream" and self.reply is not None and "error" in self.reply:
            found.append("stream_error")
        return found

    def check(self) -> "Exchange":
        """The order of the events, their counters, and that they add up to the answer."""
        assert self.reply is not None, f"no answer: {self.events}"
        if self.style == "chat":
            assert not self.events
            return self
        kinds = [event["event_type"] for event in self.events]
        if "error" in self.reply and not kinds:
            return self
        assert kinds[0] == "stream_start"
        assert kinds.count("stream_start") == 1
        assert len(self.terminal_events) == 1, self.terminal_events
        middle = [kind for kind in kinds[1:] if kind not in TERMINAL_EVENTS]
        queued = middle.count("stream_queued")
        assert middle == ["stream_queued"] * queued + ["stream_chunk"] * (len(middle) - queued)
        assert self.stream_id
        said = ""
        chunk_events = [event for event in self.events if event["event_type"] == "stream_chunk"]
        for number, event in enumerate(chunk_events, 1):
            said += event["data"]["chunk"]
            assert event["data"]["chunk_number"] == number
            assert event["data"]["total_length"] == len(said)
        match self.terminal_events, self.reply:
            case ["stream_complete"], {"result": _}:
                complete = self.events[-1]["data"]
                assert complete["full_response"] == said == self.text
                assert complete["chunk_count"] == len(chunk_events)
                assert complete["response_length"] == len(said)
            case ["stream_cancelled"], _:
                assert self.events[-1]["data"]["partial_response"] == said
            case ["stream_error"], {"error": error}:
                assert error["data"].get("partial_response", "") == said
                if self.style == "chat_stream":
                    assert error["data"]["event_type"] == "stream_error"
                    assert error["data"]["stream_id"] == self.stream_id
                else:
                    assert self.events[-1]["data"]["error"] == error
            case other:
                raise AssertionError(other)
        return self


async def begin(wire: Wire, style: Style, *, id: Any = None, **params: Any) -> Exchange:
    """Ask, and wait for nothing."""
    method, params = chat_call(style, **params)
    return Exchange(await wire.start(method, params, id=id), style)


async def ask(wire: Wire, style: Style, *, id: Any = None, **params: Any) -> Exchange:
    """Ask, and read until the answer."""
    exchange = await begin(wire, style, id=id, **params)
    return (await exchange.receive_from(wire)).check()


async def turns_of(wire: Wire, conversation_id: str) -> list[dict[str, Any]]:
    found = await wire.call("conversation.history", {"conversation_id": conversation_id})
    return list(found["turns"])


async def the_slot_is_free(standin: StandIn, wire: Wire, style: Style) -> None:
    """The model is well again, and its only slot can be had."""
    standin.variant, standin.reply, standin.token_delay_s = "ok", echo, 0.0
    exchange = await ask(wire, style, message="Better now?", persona_id="aria")
    assert exchange.text == "You said: Better now?"
    # It was free at once, not after a wait.
    assert "stream_queued" not in [event["event_type"] for event in exchange.events]


async def history_ends_with(wire: Wire, content: str, finish_reason: str, **params: Any) -> None:
    params = params or {"persona_id": "aria"}
    *_, said, answered = (await wire.call("conversation.history", params))["turns"]
    assert (said["role"], answered["role"]) == ("user", "assistant")
    assert answered["content"] == content
    assert answered["finish_reason"] == finish_reason
