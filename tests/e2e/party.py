"""One socket among many: it keeps a record of what it asked, and can tell whether what came is right.

Every party has a nonce that is part of each line it says, and the model says it back. Whatever
frame it gets, of any kind, may hold no other nonce.
"""

import json
import re
from collections import Counter
from typing import Any

import attrs
import trio
from trio_websocket import ConnectionClosed

from tests.e2e.exchanges import TERMINAL_EVENTS, Style, chat_call
from tests.serving import Wire

NONCE = re.compile(r"nonce-\d+-[0-9a-f]{8}")


def echo_with_name(system: str, line: str) -> str:
    """What the model says: who it is, and what it was told, so that both show in every answer."""
    return f"{system.split('.')[0].removeprefix('You are ')} heard: {line}"


@attrs.define(eq=False)
class Party:
    """One socket: what it asked, and every frame it got."""

    nonce: str
    wire: Wire
    persona: str = ""
    frames: list[Any] = attrs.field(factory=list)
    asked: dict[Any, Style | str] = attrs.field(factory=dict)
    """Request id to the kind of request."""
    lines: dict[str, list[str]] = attrs.field(factory=dict)
    """By persona, what was said to it, whether or not an answer is owed."""
    cancelled: set[Any] = attrs.field(factory=set)
    batches: list[list[Any]] = attrs.field(factory=list)
    """The ids of each batch."""
    _count: int = 0
    _news: trio.Event = attrs.field(factory=trio.Event)

    async def listen(self) -> None:
        """Take in every frame until the socket ends."""
        try:
            while True:
                text = str(await self.wire.socket.get_message())
                strangers = set(NONCE.findall(text)) - {self.nonce}
                assert not strangers, f"{self.nonce} got {text}"
                self.frames.append(json.loads(text))
                self._news.set()
        except ConnectionClosed:
            pass

    def line(self, kind: str) -> str:
        self._count += 1
        line = f"{self.nonce} says {kind} {self._count}"
        self.lines.setdefault(self.persona, []).append(line)
        return line

    def _id(self, kind: str) -> str:
        # The same on every socket: an id says nothing about whose it is.
        id = f"{kind}-{len(self.asked)}"
        self.asked[id] = kind
        return id

    async def chat(self, style: Style) -> None:
        method, params = chat_call(style, message=self.line(style), persona_id=self.persona)
        await self.wire.start(method, params, id=self._id(style))

    async def notify(self) -> None:
        params = {"message": self.line("notification"), "persona_id": self.persona}
        await self.wire.send({"jsonrpc": "2.0", "method": "persona.chat", "params": params})

    async def ping(self) -> None:
        await self.wire.start("system.ping", {"payload": self.nonce}, id=self._id("ping"))

    async def batch(self) -> None:
        ids = [self._id("ping"), self._id("chat"), self._id("history")]
        calls: list[tuple[str, dict[str, Any], Any]] = [
            ("system.ping", {"payload": self.nonce}, ids[0]),
            ("persona.chat", {"message": self.line("chat"), "persona_id": self.persona}, ids[1]),
            ("persona.chat", {"message": self.line("notification"), "persona_id": self.persona}, None),
            ("conversation.history", {"persona_id": self.persona}, ids[2]),
        ]
        entries = [
            {"jsonrpc": "2.0", "method": method, "params": params, **({} if id is None else {"id": id})}
            for method, params, id in calls
        ]
        self.batches.append(ids)
        await self.wire.send(entries)

    async def cancel_latest(self) -> None:
        chats = [id for id, kind in self.asked.items() if kind in ("chat", "chat_stream", "stream_true")]
        in_batches = {id for ids in self.batches for id in ids}
        alone = [id for id in chats if id not in in_batches]
        if alone:
            self.cancelled.add(alone[-1])
            await self.wire.start("stream.cancel", {"request_id": alone[-1]}, id=self._id("cancel"))

    async def histories(self) -> None:
        """Ask what every persona has heard, by way of frames like any other."""
        for persona in self.lines:
            id = f"all of {persona}"
            self.asked[id] = "history"
            await self.wire.start("conversation.history", {"persona_id": persona, "limit": 200}, id=id)

    # What came of it.

    def answers(self) -> dict[Any, dict[str, Any]]:
        """The frame that ended each request, checking that it is one each."""
        found: dict[Any, dict[str, Any]] = {}
        for frame in self.frames:
            for entry in frame if isinstance(frame, list) else [frame]:
                if "method" in entry or self._is_progress(entry):
                    continue
                assert entry["id"] in self.asked, f"an answer nobody asked for: {entry}"
                assert entry["id"] not in found, f"two answers: {entry} and {found[entry['id']]}"
                found[entry["id"]] = entry
        return found

    def _is_progress(self, entry: dict[str, Any]) -> bool:
        return (
            self.asked.get(entry["id"]) == "chat_stream"
            and "result" in entry
            and entry["result"]["event_type"] not in TERMINAL_EVENTS
        )

    async def all_answered(self) -> None:
        while len(self.answers()) < len(self.asked):
            self._news = trio.Event()
            await self._news.wait()
            await trio.sleep(0.05)  # they come in bursts

    def check(self) -> None:
        """Each request has its one answer, each answer is the own one, and streams add up."""
        answers = self.answers()
        batches = [[entry["id"] for entry in frame] for frame in self.frames if isinstance(frame, list)]
        assert sorted(batches) == sorted(self.batches)
        assert answers.keys() == self.asked.keys()
        for id, kind in self.asked.items():
            answer = answers[id]
            if "error" in answer:
                # Cancelling what has just ended finds nothing.
                if kind == "cancel":
                    assert answer["error"]["data"]["reason"] == "not_found"
                else:
                    assert id in self.cancelled, answer
                    assert answer["error"]["data"]["reason"] == "cancelled"
                continue
            result = answer["result"]
            if kind == "ping":
                assert result["payload"] == self.nonce
            elif kind == "chat_stream":
                self._check_stream(id, result)
            elif kind in ("chat", "stream_true"):
                assert f"{self.nonce} says {kind} " in result["response"]
        self._check_notified_streams()

    def _check_stream(self, id: Any, end: dict[str, Any]) -> None:
        events = [
            frame["result"] for frame in self.frames if isinstance(frame, dict) and frame.get("id") == id
        ]
        assert {event["stream_id"] for event in events} == {end["stream_id"]}
        said = "".join(e["data"]["chunk"] for e in events if e["event_type"] == "stream_chunk")
        if end["event_type"] == "stream_cancelled":
            assert id in self.cancelled
            assert end["data"]["partial_response"] == said
        else:
            assert end["data"]["full_response"] == said
            assert f"{self.nonce} says chat_stream " in said

    def _check_notified_streams(self) -> None:
        streams: dict[str, list[dict[str, Any]]] = {}
        for frame in self.frames:
            if isinstance(frame, dict) and "method" in frame:
                assert frame["method"] == "stream.event"
                streams.setdefault(frame["params"]["stream_id"], []).append(frame["params"])
        for events in streams.values():
            kinds = [event["event_type"] for event in events]
            assert kinds[0] == "stream_start"
            assert sum(kind in TERMINAL_EVENTS for kind in kinds) == 1
            assert kinds[-1] in TERMINAL_EVENTS
            said = "".join(e["data"]["chunk"] for e in events if e["event_type"] == "stream_chunk")
            whole = events[-1]["data"]
            assert said == whole.get("full_response", whole.get("partial_response"))
            assert said or kinds[-1] == "stream_cancelled"
        asked = sum(kind == "stream_true" for kind in self.asked.values())
        # One that is cancelled before its turn comes has no stream at all.
        assert asked - len(self.cancelled) <= len(streams) <= asked

    def check_histories(self) -> None:
        """Every persona heard exactly the own lines, each once, each followed by its own answer."""
        answers = self.answers()
        for persona, lines in self.lines.items():
            turns = answers[f"all of {persona}"]["result"]["turns"]
            heard = [turn["content"] for turn in turns if turn["role"] == "user"]
            cut = [turn for turn in turns if turn["finish_reason"] in ("cancelled", "disconnected")]
            if not self.cancelled:
                assert Counter(heard) == Counter(lines)
            assert not Counter(heard) - Counter(lines)
            assert len(cut) <= len(self.cancelled)
            for said, answered in zip(turns[::2], turns[1::2], strict=True):
                whole = echo_with_name(f"You are {persona}.", said["content"])
                if answered in cut:
                    assert whole.startswith(answered["content"])
                else:
                    assert answered["content"] == whole
