"""The fields that existing clients rely on, in real answers. The names are the wire's, not ours to change."""

from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.exchanges import Exchange, ask, begin, llm_settings
from tests.llm.standin import open_standin
from tests.serving import dial, serving

pytestmark = pytest.mark.usefixtures("nothing_crashed")

Number = (int, float)
Fields = dict[str, Any]
"""Name to type; a dict stands for an object with these fields, a list of one for an array of such."""

PERSONA: Fields = {
    "id": str,
    "name": str,
    "description": str,
    "personality_traits": (dict, list),
    "topic_preferences": dict,
    "charisma": int,
    "intelligence": int,
    "social_rank": str,
    "backstory": str,
    "version": int,
}
CHAT: Fields = {
    "response": str,
    "response_type": str,
    "continue_score": Number,
    "tokens_used": int,
    "processing_time": Number,
    "persona_state": {"social_energy": Number, "available_time": Number, "interaction_fatigue": Number},
    "conversation_id": str,
    "turn_id": int,
    "parent_id": int,
    "finish_reason": str,
    "model": str,
    "time_to_first_token": Number,
}
TURN: Fields = {
    "id": int,
    "role": str,
    "speaker_id": str,
    "content": str,
    "created_at": "time",
    "tokens_used": int,
    "finish_reason": (str, type(None)),
    "parent_id": (int, type(None)),
    "sibling_index": int,
    "sibling_count": int,
    "previous_sibling_id": (int, type(None)),
    "next_sibling_id": (int, type(None)),
}
DELETED: Fields = {
    "conversation_id": str,
    "deleted": bool,
    "turns_deleted": int,
    "current_turn_id": (int, type(None)),
}

CALLS: tuple[tuple[str, dict[str, Any] | None, Fields], ...] = (
    (
        "persona.list",
        None,
        {
            "personas": [
                {
                    "id": str,
                    "name": str,
                    "description": str,
                    "available": bool,
                    "social_energy": Number,
                    "current_priority": str,
                    "cooldown_remaining": Number,
                }
            ],
            "total_count": int,
            "available_count": int,
        },
    ),
    ("persona.get", {"persona_id": "ARIA"}, PERSONA),
    (
        "persona.create",
        {
            "name": "Otto",
            "description": "a baker",
            "personality_traits": {"gruff": True},
            "topic_preferences": {"bread": 100},
            "charisma": 5,
            "intelligence": 11,
            "social_rank": "guild",
            "backstory": "Bakes since ever.",
        },
        {"persona_id": str, "name": str, "created": bool},
    ),
    ("persona.update", {"persona_id": "otto", "charisma": 6, "version": 1}, PERSONA),
    (
        "persona.delete",
        {"persona_id": "Otto"},
        {"persona_id": str, "name": str, "deleted": bool, "message": str},
    ),
    (
        "persona.switch",
        {"persona_id": "aria"},
        {
            "persona_id": str,
            "name": str,
            "description": str,
            "status": str,
            "social_energy": Number,
            "available_time": Number,
            "current_priority": str,
            "conversation_id": str,
        },
    ),
    # The first two turns there are: a line, and its answer.
    ("persona.chat", {"message": "Hello"}, CHAT),
    ("conversation.regenerate", None, CHAT),
    ("conversation.edit", {"turn_id": 1, "message": "Hello!"}, CHAT),
    (
        "conversation.select",
        {"turn_id": 2},
        {"conversation_id": str, "turn_id": int, "current_turn_id": int},
    ),
    (
        "persona.status",
        None,
        {
            "persona": PERSONA,
            "interaction_state": {
                "interest_level": Number,
                "interaction_fatigue": Number,
                "current_priority": str,
                "available_time": Number,
                "social_energy": Number,
                "cooldown_until": (str, type(None)),
                "is_available": bool,
            },
            "memory_stats": dict,
        },
    ),
    (
        "conversation.history",
        None,
        {
            "turns": [TURN],
            "has_more": bool,
            "next_before": (int, type(None)),
            "current_turn_id": (int, type(None)),
        },
    ),
    ("conversation.list", None, {"conversations": [{"id": str, "persona_id": str}]}),
    (
        "session.info",
        None,
        {
            "session_id": str,
            "user": str,
            "current_persona": str,
            "conversation_id": str,
            "limits": {"max_message_bytes": int, "max_json_depth": int},
            "server": {"name": str, "version": str, "engine": str, "llm": str},
        },
    ),
    ("events.subscribe", {"topics": ["system"]}, {"topics": [str]}),
    ("events.unsubscribe", {"topics": ["system"]}, {"topics": list}),
    ("system.ping", {"payload": {"a": [1]}}, {"pong": bool, "payload": dict, "time": "time"}),
    (
        "system.status",
        None,
        {
            "system_status": str,
            "llm_available": bool,
            "llm_circuit": {"state": str, "since": "time"},
            "total_personas": int,
            "available_personas": int,
            "active_conversations": int,
            "current_persona": str,
            "current_conversation": str,
            "timestamp": "time",
            "status": str,
            "uptime_seconds": Number,
            "active_connections": int,
            "total_requests": int,
            "avg_response_time": Number,
            "memory_usage_mb": Number,
        },
    ),
    (
        "system.metrics",
        {"window_s": 60},
        {
            "time": "time",
            "window_s": Number,
            "uptime_seconds": Number,
            "status": str,
            "connections": {"open": int, "half_open": int, "max": int, "refused": dict, "closed": dict},
            "requests": {
                "total": int,
                "per_second": Number,
                "error_ratio": Number,
                "latency_s": {"avg": Number, "p50": Number, "p95": Number, "p99": Number},
                "by_method": {
                    "system.ping": {"count": int, "per_second": Number, "p50": Number, "p95": Number}
                },
            },
            "errors": dict,
            "memory": {
                "resident_bytes": int,
                "growth_bytes_per_s": (*Number, type(None)),
                "soft_limit_bytes": int,
                "hard_limit_bytes": int,
                "heaviest": list,
            },
            "loop": {"lag_s": Number, "max_lag_s": Number},
            "handlers": {"running": int, "limit": int},
            "database": {
                "write_queue": int,
                "read_queue": int,
                "readers_busy": int,
                "readers": int,
                "mean_batch": Number,
            },
            "background": {"queued": int, "limit": int, "dropped": int},
            "model": {
                "running": int,
                "slots": int,
                "queued": int,
                "limit": int,
                "tokens_per_second": Number,
                "available": (bool, type(None)),
                "first_token_s": {"p50": Number, "p95": Number, "p99": Number},
                "seconds": {"p50": Number, "p95": Number, "p99": Number, "buckets": [dict]},
            },
            "alerts": list,
        },
    ),
    ("system.tasks", None, {"tasks": int, "tree": dict, "text": str}),
    ("system.models", None, {"available_models": [str], "current_model": str, "provider": str}),
    ("system.broadcast", {"type": "t", "data": 1}, {"delivered": int, "dropped": int}),
    ("rpc.discover", None, {"openrpc": str, "info": dict, "methods": list}),
    ("session.clear", None, {}),
)
"""In an order in which each can be answered."""

EVENTS: dict[str, tuple[Fields, set[str]]] = {
    "stream_start": (
        {"persona_id": str, "persona_name": str, "message": str, "token_budget": int},
        {"persona_id"},
    ),
    "stream_queued": ({"position": int}, set()),
    "stream_chunk": ({"chunk": str, "chunk_number": int, "total_length": int}, {"chunk"}),
    "stream_complete": (
        {
            "full_response": str,
            "chunk_count": int,
            "processing_time": Number,
            "response_length": int,
            "tokens_used": int,
            "persona_name": str,
            "finish_reason": str,
            "turn_id": int,
            "parent_id": int,
        },
        {"full_response", "tokens_used", "processing_time"},
    ),
    "stream_cancelled": ({"reason": str, "partial_response": str}, set()),
}
"""Event type to the fields of `data`, and which of them are repeated beside it."""

BESIDE = {"persona_id", "chunk", "full_response", "tokens_used", "processing_time"}
MAY_STAND_BESIDE = {kind: {"persona_id"} for kind in ("stream_complete", "stream_cancelled", "stream_error")}


def check(value: Any, expected: Any, where: str) -> None:
    if isinstance(expected, dict):
        assert isinstance(value, dict), where
        for name, type_ in expected.items():
            assert name in value, f"{where}.{name} is missing"
            check(value[name], type_, f"{where}.{name}")
    elif isinstance(expected, list):
        assert isinstance(value, list), where
        assert value, f"{where} is empty"
        for entry in value:
            check(entry, expected[0], f"{where}[]")
    elif expected == "time":
        assert value.endswith("Z"), f"{where}: {value}"
        assert datetime.fromisoformat(value).tzinfo is not None
    else:
        wrong_bool = isinstance(value, bool) and expected not in (bool, (bool, type(None)))
        assert isinstance(value, expected), f"{where}: {value!r}"
        assert not wrong_bool, f"{where}: {value!r}"


async def test_every_method_answers_with_the_given_fields(tmp_path: Path) -> None:
    async with serving(tmp_path / "p.db") as server, dial(server.url) as wire:
        for method, params, expected in CALLS:
            result = await wire.call(method, params)
            check(result, expected, method)
        # Last, and under an id that is only known here.
        where = (await wire.call("persona.switch", {"persona_id": "aria"}))["conversation_id"]
        line = (await wire.call("persona.chat", {"message": "Hello"}))["parent_id"]
        for params in ({"turn_id": line}, {}):
            result = await wire.call("conversation.delete", {"conversation_id": where, **params})
            check(result, DELETED, "conversation.delete")
        published = {entry["name"] for entry in (await wire.call("rpc.discover"))["methods"]}
    # A method without a row here goes unchecked. These have tests of their own below, and in test_branches.
    streams = {"persona.chat_stream", "conversation.regenerate_stream", "conversation.edit_stream"}
    checked = {method for method, _, _ in CALLS} | {"conversation.delete"}
    assert published == checked | streams | {"stream.cancel"}


@pytest.mark.parametrize("style", ["chat_stream", "stream_true"])
async def test_every_event_has_the_given_fields(style: Any, tmp_path: Path) -> None:
    seen: dict[str, dict[str, Any]] = {}

    def note(exchange: Exchange) -> None:
        for event in exchange.events:
            seen[event["event_type"]] = event
            check(event, {"event_type": str, "stream_id": str, "timestamp": "time", "data": dict}, "event")
            data, repeated = EVENTS.get(event["event_type"], ({"error": dict}, set()))
            check(event["data"], data, event["event_type"])
            beside = BESIDE & event.keys()
            # Where a field does not occur, it is not there as a null either.
            assert repeated <= beside, event
            assert beside <= repeated | MAY_STAND_BESIDE.get(event["event_type"], set()), event
            for name in beside & event["data"].keys():
                assert event[name] == event["data"][name], event

    async with (
        open_standin("ollama", token_delay_s=0.01) as standin,
        serving(tmp_path / "p.db", llm=llm_settings(standin, max_concurrency=1)) as server,
        dial(server.url) as wire,
        dial(server.url) as other,
    ):
        first = await begin(wire, style, message="one two three four five", persona_id="aria")
        await first.receive_from(wire, until_chunks=1)
        second = await begin(other, style, message="waits", persona_id="kira")
        note(await first.receive_from(wire))
        note(await second.receive_from(other))

        standin.variant = "hang_midway"
        cut = await begin(wire, style, message="to be cancelled", persona_id="aria")
        await cut.receive_from(wire, until_chunks=1)
        await other.start("stream.cancel", {"stream_id": cut.stream_id}, id="not mine")
        assert (await other.receive())["error"]["data"]["reason"] == "not_found"
        await wire.start("stream.cancel", {"stream_id": cut.stream_id}, id="cancel")
        frame = await wire.receive()
        while frame.get("id") != "cancel":
            assert cut.feed(frame)
            frame = await wire.receive()
        check(frame["result"], {"cancelled": bool}, "stream.cancel")
        note(await cut.receive_from(wire))

        standin.variant = "error_in_band"
        failed = (await ask(wire, style, message="one two", persona_id="aria")).check()
        error = failed.error
        check(error, {"code": int, "message": str, "data": {"reason": str, "retryable": bool}}, "error")
        if style == "chat_stream":
            assert error["data"]["event_type"] == "stream_error"
            assert error["data"]["stream_id"] == failed.stream_id
            assert error["data"]["persona_id"] == failed.events[0]["persona_id"]
        else:
            note(failed)
            assert seen.pop("stream_error")["data"] == {"error": error}
    assert seen.keys() == EVENTS.keys()


async def test_notifications_and_the_answer_after_them_carry_the_same(tmp_path: Path) -> None:
    async with serving(tmp_path / "p.db") as server, dial(server.url) as wire:
        exchange = await ask(wire, "stream_true", message="Hello", persona_id="aria")
        check(exchange.result, CHAT, "persona.chat")
        complete = exchange.events[-1]["data"]
        assert complete["turn_id"] == exchange.result["turn_id"]
        assert complete["tokens_used"] == exchange.result["tokens_used"]


async def test_the_two_personas_of_a_fresh_database(tmp_path: Path) -> None:
    async with serving(tmp_path / "p.db") as server, dial(server.url) as wire:
        listed = {persona["name"]: persona for persona in (await wire.call("persona.list"))["personas"]}
        assert listed.keys() == {"Aria", "Kira"}
        aria = await wire.call("persona.get", {"persona_id": "aria"})
        kira = await wire.call("persona.get", {"persona_id": "kira"})
        switched = [await wire.call("persona.switch", {"persona_id": name}) for name in ("aria", "kira")]
    for persona, charisma, intelligence, rank in ((aria, 18, 14, "performer"), (kira, 12, 18, "scholar")):
        assert (persona["charisma"], persona["intelligence"]) == (charisma, intelligence)
        assert persona["social_rank"] == rank
    assert [listed[name]["current_priority"] for name in ("Aria", "Kira")] == ["social", "academic"]
    assert [(s["social_energy"], s["available_time"]) for s in switched] == [(150, 600), (80, 300)]
    assert all(aria["topic_preferences"][topic] >= 80 for topic in ("music", "stories", "travel"))
    assert all(kira["topic_preferences"][topic] >= 80 for topic in ("research", "magic", "history"))
    assert kira["topic_preferences"]["gossip"] <= 30


async def test_an_event_of_a_topic_has_the_given_fields(tmp_path: Path) -> None:
    async with serving(tmp_path / "p.db") as server, dial(server.url) as wire:
        await wire.call("events.subscribe", {"topics": ["system"]})
        numbers = []
        for number in (1, 2):
            await wire.start("system.broadcast", {"type": "news", "data": {"n": number}}, id=f"b{number}")
            frames = [await wire.receive(), await wire.receive()]
            (event,) = (frame for frame in frames if "method" in frame)
            assert event["method"] == "event"
            assert "id" not in event
            expected = {"topic": str, "type": str, "data": dict, "seq": int, "timestamp": "time"}
            check(event["params"], expected, "event")
            assert event["params"]["data"] == {"n": number}
            numbers.append(event["params"]["seq"])
        assert numbers[1] == numbers[0] + 1
