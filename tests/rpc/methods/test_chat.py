"""`persona.chat`, `persona.chat_stream` and `stream.cancel`, frame by frame."""

import itertools
import json
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from trio_websocket import wrap_client_stream

from persona.errors import LLMUnavailable
from persona.storage import store
from persona.storage.seed import ARIA_ID
from persona.testing import open_server
from tests.rpc.methods.asking import TOKENS, open_party
from tests.service.stage import PlayedModel

STYLES = ["answer", "notifications", "stream"]
"""`persona.chat`; the same with `stream: true`; `persona.chat_stream`."""


class Wire:
    """One client that keeps every frame it gets."""

    def __init__(self, socket: Any) -> None:
        self.socket = socket
        self.frames: list[Any] = []
        self._ids = itertools.count(1)

    async def start(self, method: str, **params: Any) -> int:
        """Send a request; its id."""
        id = next(self._ids)
        await self.socket.send_message(
            json.dumps({"jsonrpc": "2.0", "id": id, "method": method, "params": params})
        )
        return id

    async def chat(self, style: str, **params: Any) -> int:
        """Start a chat in one of `STYLES`."""
        if style == "stream":
            return await self.start("persona.chat_stream", **params)
        return await self.start("persona.chat", **params, stream=style == "notifications")

    async def read(self) -> None:
        while True:
            self.frames.append(json.loads(await self.socket.get_message()))

    def events(self, id: int) -> list[Any]:
        """The events of the stream that request `id` started."""
        results = [frame["result"] for frame in self.frames if frame.get("id") == id and "result" in frame]
        notified = [frame["params"] for frame in self.frames if frame.get("method") == "stream.event"]
        return notified or [result for result in results if "event_type" in result]

    def answer(self, id: int) -> Any:
        """The last frame under that id: the request's one answer."""
        return [frame for frame in self.frames if frame.get("id") == id][-1]


@asynccontextmanager
async def open_wire(model: PlayedModel, **sections: dict[str, Any]) -> AsyncIterator[Wire]:
    async with open_server(backend=model, **sections) as server, trio.open_nursery() as nursery:
        stream = server.connect_stream()
        wire = Wire(await wrap_client_stream(nursery, stream, "localhost", "/mcp"))
        nursery.start_soon(wire.read)
        yield wire
        nursery.cancel_scope.cancel()


def script(*steps: Any) -> PlayedModel:
    model = PlayedModel()
    model.script = steps or model.script
    return model


@pytest.mark.parametrize("style", STYLES)
async def test_a_turn_is_answered_once_in_each_style(style: str, autojump_clock: MockClock) -> None:
    async with open_wire(script(1.0, "Well", 1.0, " met.")) as wire:
        id = await wire.chat(style, persona_id="aria", message="Hello", token_budget=9)
        await trio.sleep(10)
        types = [event["event_type"] for event in wire.events(id)]
        steps = ["stream_start", "stream_chunk", "stream_chunk", "stream_complete"]
        assert types == ([] if style == "answer" else steps)
        under_id = [frame for frame in wire.frames if frame.get("id") == id]
        assert len(under_id) == (4 if style == "stream" else 1)
        result = wire.answer(id)["result"]
        done = result["data"] if style == "stream" else result
        assert done["full_response" if style == "stream" else "response"] == "Well met."
        assert (done["persona_id"], done["persona_name"]) == (ARIA_ID, "Aria")
        assert (done["finish_reason"], done["model"], done["response_type"]) == ("stop", "played:1", "llm")
        assert (done["time_to_first_token"], done["processing_time"]) == (1.0, 2.0)
        assert done["persona_state"]["interaction_fatigue"] == 1.0
        if style == "notifications":
            completed = wire.events(id)[-1]["data"]
            assert {name: completed[name] for name in ("turn_id", "conversation_id", "tokens_used")} == {
                name: done[name] for name in ("turn_id", "conversation_id", "tokens_used")
            }
            assert wire.frames[-1] is wire.answer(id)


@pytest.mark.parametrize("style", STYLES)
@pytest.mark.parametrize("head", [(), (1.0, "Well")])
async def test_a_model_that_breaks_ends_it_with_one_error(
    head: tuple[Any, ...], style: str, autojump_clock: MockClock
) -> None:
    async with open_wire(script(*head, LLMUnavailable("it fell over"))) as wire:
        id = await wire.chat(style, persona_id="aria", message="Hello")
        await trio.sleep(10)
        error = wire.answer(id)["error"]["data"]
        assert error["reason"] == "llm_unavailable"
        assert error.get("partial_response") == ("Well" if head else None)
        events = wire.events(id)
        ends = [event for event in events if event["event_type"] not in ("stream_start", "stream_chunk")]
        if style == "stream":
            assert ends == []
            assert error["event_type"] == "stream_error"
            assert (error["stream_id"], error["persona_id"]) == (events[0]["stream_id"], ARIA_ID)
        elif style == "notifications":
            assert [event["event_type"] for event in ends] == ["stream_error"]
            assert ends[0]["data"]["error"] == wire.answer(id)["error"]
            assert "event_type" not in error


@pytest.mark.parametrize(
    ("by", "style"),
    # Without a stream there is no id of one.
    [*(("request_id", style) for style in STYLES), *(("stream_id", style) for style in STYLES[1:])],
)
async def test_a_running_turn_can_be_cancelled(by: str, style: str, autojump_clock: MockClock) -> None:
    async with open_wire(script(1.0, "Well", math.inf)) as wire:
        id = await wire.chat(style, persona_id="aria", message="Hello")
        await trio.sleep(2)
        named = {by: id if by == "request_id" else wire.events(id)[0]["stream_id"]}
        cancel_id = await wire.start("stream.cancel", **named)
        await wait_all_tasks_blocked()
        assert wire.answer(cancel_id)["result"]["cancelled"] is True
        answer = wire.answer(id)
        if style == "stream":
            event = answer["result"]
        else:
            assert answer["error"]["data"]["reason"] == "cancelled"
            assert answer["error"]["data"]["partial_response"] == "Well"
            event = wire.events(id)[-1] if style == "notifications" else None
        if event is not None:
            assert event["event_type"] == "stream_cancelled"
            assert (event["data"]["reason"], event["data"]["partial_response"]) == ("client", "Well")
        history_id = await wire.start("conversation.history", persona_id="aria")
        await wait_all_tasks_blocked()
        turns = wire.answer(history_id)["result"]["turns"]
        assert [turn["finish_reason"] for turn in turns] == [None, "cancelled"]


@pytest.mark.parametrize("style", ["notifications", "stream"])
async def test_a_stream_that_waits_for_the_model_says_where_it_stands(
    style: str, autojump_clock: MockClock
) -> None:
    async with open_wire(script(1.0, "Well"), llm={"max_concurrency": 1}) as wire:
        await wire.chat("answer", persona_id="aria", message="1")
        await wire.chat("answer", persona_id="kira", message="2")
        await wire.start("persona.create", name="Bob", description="d")
        await wait_all_tasks_blocked()
        id = await wire.chat(style, persona_id="bob", message="3")
        await trio.sleep(10)
        told = [(event["event_type"], event["data"].get("position")) for event in wire.events(id)]
        assert told[:3] == [("stream_start", None), ("stream_queued", 2), ("stream_queued", 1)]
        assert [event_type for event_type, _ in told[3:]] == ["stream_chunk", "stream_complete"]


async def test_what_is_not_running_cannot_be_cancelled(autojump_clock: MockClock) -> None:
    async with open_wire(script()) as wire:
        id = await wire.chat("answer", persona_id="aria", message="Hello")
        await trio.sleep(10)
        itself = id + 1
        expected = [
            ({"request_id": itself}, "not_found", None),
            ({"request_id": id}, "not_found", None),
            ({"stream_id": "nonsense"}, "not_found", None),
            ({}, "invalid_params", "stream_id"),
            ({"request_id": id, "stream_id": "s"}, "invalid_params", "stream_id"),
        ]
        for params, reason, field in expected:
            cancel_id = await wire.start("stream.cancel", **params)
            await wait_all_tasks_blocked()
            data = wire.answer(cancel_id)["error"]["data"]
            assert (data["reason"], data.get("field")) == (reason, field)


async def test_a_request_of_another_session_cannot_be_cancelled(autojump_clock: MockClock) -> None:
    async with open_party() as party, trio.open_nursery() as nursery:
        talking, other = await party.join(), await party.join()
        answers = []

        async def talk() -> None:
            answers.append(await talking.ask("persona.chat", persona_id="aria", message="Hello"))

        nursery.start_soon(talk)
        await wait_all_tasks_blocked()
        await other.ask("system.ping")
        assert (await other.refused("stream.cancel", request_id=1)).reason == "not_found"
        await trio.sleep(60)
        assert answers[0]["finish_reason"] == "stop"


async def test_what_is_said_goes_to_the_persona_named_or_the_current_one(autojump_clock: MockClock) -> None:
    async with open_party() as party:
        asking = await party.join()
        assert (await asking.refused("persona.chat", message="Hello")).reason == "no_active_persona"
        await asking.ask("persona.switch", persona_id="aria")
        first = await asking.ask("persona.chat", message="Hello")
        aside = await asking.ask("persona.chat", persona_id="KIRA", message="Hello")
        second = await asking.ask("persona.chat", message="Hello")
        names = [answer["persona_name"] for answer in (first, aside, second)]
        assert names == ["Aria", "Kira", "Aria"]
        assert first["conversation_id"] == second["conversation_id"] != aside["conversation_id"]


async def test_naming_a_conversation_goes_on_with_it_and_stays_in_it(autojump_clock: MockClock) -> None:
    async with open_party() as party:
        first, later = await party.join(), await party.join()
        older = (await first.ask("persona.chat", persona_id="aria", message="Hello"))["conversation_id"]
        here = (await later.ask("persona.switch", persona_id="aria"))["conversation_id"]
        assert here != older
        for params in ({"conversation_id": older, "persona_id": "Aria"}, {}):
            said = await later.ask("persona.chat", message="Again", **params)
            assert said["conversation_id"] == older
        error = await later.refused("persona.chat", conversation_id=older, persona_id="kira", message="x")
        assert (error.reason, error.field) == ("invalid_params", "persona_id")


async def test_a_line_sent_again_after_a_lost_connection_is_answered_as_before(
    autojump_clock: MockClock,
) -> None:
    async with open_party(auth={"tokens": TOKENS}) as party:
        line = {"persona_id": "aria", "message": "Hello", "client_msg_id": "m1"}
        first = await (await party.join("ann")).ask("persona.chat", **line)
        again = await party.join("ann")
        assert await again.ask("persona.chat", **line) == first
        error = await again.refused("persona.chat", **{**line, "message": "Goodbye"})
        assert (error.reason, error.field) == ("conflict", "client_msg_id")


async def test_the_clients_options_reach_the_model(autojump_clock: MockClock) -> None:
    model = script("Well")
    options = {"model": "big:7b", "temperature": 0.5, "top_p": 0.9, "stop": ["\n"], "seed": 7}
    async with open_party(backend=model) as party:
        asking = await party.join()
        await asking.ask("persona.chat", persona_id="aria", message="x", token_budget=9, options=options)
        (given,) = model.options
        assert (given.max_tokens, given.model, given.temperature) == (9, "big:7b", 0.5)
        assert (given.top_p, given.stop, given.seed) == (0.9, ("\n",), 7)


@pytest.mark.parametrize("style", STYLES)
async def test_a_bug_ends_a_stream_as_any_error_does(
    style: str, autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise TypeError("a bug")

    monkeypatch.setattr(store, "save_state", fail)
    # The second chunk is held back to go with the next when the turn is saved.
    async with open_wire(script("Well", " met.")) as wire:
        id = await wire.chat(style, message="Hello", persona_id="aria")
        await trio.sleep(1)
        answer = wire.answer(id)
        assert answer["error"]["data"]["reason"] == "internal_error"
        assert answer["error"]["data"]["error_id"]
        if style == "answer":
            return
        events = wire.events(id)
        assert (
            "".join(event["chunk"] for event in events if event["event_type"] == "stream_chunk")
            == "Well met."
        )
        if style == "stream":
            assert answer["error"]["data"]["event_type"] == "stream_error"
        else:
            assert [event["event_type"] for event in events[-2:]] == ["stream_chunk", "stream_error"]
        assert wire.frames[-1] is answer


@pytest.mark.parametrize("style", STYLES)
async def test_a_persona_deleted_while_it_speaks_falls_silent(style: str, autojump_clock: MockClock) -> None:
    async with open_wire(script(1.0, "Well", math.inf)) as wire:
        id = await wire.chat(style, message="Hello", persona_id="aria")
        await trio.sleep(1.5)
        await wire.start("persona.delete", persona_id="aria")
        await wait_all_tasks_blocked()
        assert wire.answer(id)["error"]["data"]["reason"] == "persona_not_found"
