"""Every row of the protocol's error table, over a real socket; after each the socket still answers."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trio

from persona.config import AuthToken
from persona.errors import PersonaError
from persona.rpc.results import error_classes
from persona.transport.admission import token_hash
from tests.e2e.conftest import Serving
from tests.serving import RunningServer, Wire, dial

SLOW_MODEL = {"backend": "scripted", "scripted_first_token_s": 30.0}
CHAT = {"message": "Hello", "persona_id": "aria"}

reached: set[str] = set()
"""The reasons the tests below have met, for the last test of all."""


def check(error: dict[str, Any], code: int, reason: str, *, retryable: bool = False) -> dict[str, Any]:
    assert (error["code"], error["data"]["reason"]) == (code, reason), error
    assert error["data"]["retryable"] is retryable
    assert error["message"]
    reached.add(reason)
    return error["data"]


@pytest.fixture
async def server(tmp_path: Path, serving: Serving) -> AsyncIterator[RunningServer]:
    async with serving(tmp_path / "p.db") as running:
        yield running


@pytest.fixture
async def wire(server: RunningServer) -> AsyncIterator[Wire]:
    async with dial(server.url) as connected:
        yield connected


@pytest.mark.parametrize("frame", ["{", "", "nonsense", "\x00", '{"jsonrpc": "2.0", ', "NaN", '"\\ud800"'])
async def test_parse_error(wire: Wire, frame: str) -> None:
    await wire.send(frame)
    reply = await wire.receive()
    assert reply["id"] is None
    check(reply["error"], -32700, "parse_error")
    await wire.alive()


@pytest.mark.parametrize(
    ("frame", "id"),
    [
        ("1", None),
        ("null", None),
        ("[]", None),
        ("{}", None),
        ({"jsonrpc": "1.0", "id": 5, "method": "system.ping"}, 5),
        ({"jsonrpc": "2.0", "id": 5}, 5),
        ({"jsonrpc": "2.0", "id": 5, "method": 5}, 5),
        ({"jsonrpc": "2.0", "id": "x", "method": "system.ping", "params": "p"}, "x"),
        ({"jsonrpc": "2.0", "id": 1.5, "method": "system.ping"}, None),
        ({"jsonrpc": "2.0", "id": 2**53 + 1, "method": "system.ping"}, None),
        ({"jsonrpc": "2.0", "id": True, "method": "system.ping"}, None),
        ({"jsonrpc": "2.0", "id": None, "method": "system.ping"}, None),
        ('{"jsonrpc": "2.0", "id": 5, "method": "m", "params": ' + "[" * 64 + "]" * 64 + "}", 5),
    ],
)
async def test_invalid_request(wire: Wire, frame: Any, id: Any) -> None:
    await wire.send(frame)
    reply = await wire.receive()
    assert reply["id"] == id
    check(reply["error"], -32600, "invalid_request")
    await wire.alive()


async def test_a_duplicate_id_is_an_invalid_request(tmp_path: Path, serving: Serving) -> None:
    async with serving(tmp_path / "p.db", llm=SLOW_MODEL) as server, dial(server.url) as wire:
        await wire.start("persona.chat", CHAT, id="twice")
        await wire.start("system.ping", id="twice")
        reply = await wire.receive()
        assert reply["id"] == "twice"
        check(reply["error"], -32600, "invalid_request")
        await wire.alive()


async def test_method_not_found(wire: Wire) -> None:
    for name in ("persona.nope", "tools/call", "__init__", "x" * 1000):
        check(await wire.error(name), -32601, "method_not_found")
    await wire.alive()


@pytest.mark.parametrize(
    ("method", "params", "field"),
    [
        ("persona.switch", {}, "persona_id"),
        ("persona.switch", {"persona_id": 7}, "persona_id"),
        ("persona.switch", {"persona_id": "aria", "persona": "x"}, "persona"),
        ("persona.switch", ["aria", "extra"], None),
        ("persona.chat", {**CHAT, "token_budget": 0}, "token_budget"),
        ("persona.chat", {**CHAT, "mesage": "typo"}, "mesage"),
        ("persona.chat", {**CHAT, "options": {"temperature": 9}}, "options.temperature"),
        ("persona.chat", {**CHAT, "options": {"temprature": 1}}, "options.temprature"),
        ("persona.chat", {**CHAT, "message": "word " * 6000}, "message"),
        (
            "persona.create",
            {"name": "X", "description": "y", "topic_preferences": {"a": 101}},
            "topic_preferences",
        ),
        ("persona.create", {"name": "", "description": "y"}, "name"),
        ("persona.update", {"persona_id": "aria"}, None),
        ("conversation.history", {"limit": 201}, "limit"),
        ("conversation.list", {"before": "garbage"}, "before"),
        ("conversation.regenerate", {"turn_id": "1"}, "turn_id"),
        ("conversation.regenerate_stream", {"turn_id": 0}, "turn_id"),
        ("conversation.regenerate", {"message": "x"}, "message"),
        ("conversation.edit", {"message": "x"}, "turn_id"),
        ("conversation.edit", {"turn_id": 1}, "message"),
        ("conversation.edit", {"turn_id": 1, "message": ""}, "message"),
        ("conversation.edit_stream", {"turn_id": 1, "message": "x", "stream": True}, "stream"),
        ("conversation.select", {}, "turn_id"),
        (
            "conversation.select",
            {"turn_id": 1, "conversation_id": "c", "persona_id": "aria"},
            "persona_id",
        ),
        ("conversation.delete", {}, "conversation_id"),
        ("conversation.delete", {"conversation_id": "c", "turn_id": -1}, "turn_id"),
        ("stream.cancel", {}, "stream_id"),
        ("system.ping", {"pyload": 1}, "pyload"),
    ],
)
async def test_invalid_params_name_the_field(wire: Wire, method: str, params: Any, field: str | None) -> None:
    data = check(await wire.error(method, params), -32602, "invalid_params")
    if field is not None:
        assert data["field"].startswith(field)
    await wire.alive()


async def test_internal_error_carries_an_id_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, serving: Serving
) -> None:
    async def broken(*_: object) -> None:
        raise ZeroDivisionError("secret detail at /home/somebody")

    monkeypatch.setattr("persona.service.conversations.Conversations.count", broken)
    async with serving(tmp_path / "p.db") as server, dial(server.url) as wire:
        error = await wire.error("system.status")
        assert check(error, -32603, "internal_error")["error_id"]
        assert "secret" not in str(error)
        await wire.alive()


async def test_persona_not_found(wire: Wire) -> None:
    check(await wire.error("persona.get", {"persona_id": "nobody"}), -32000, "persona_not_found")
    await wire.alive()


async def test_no_active_persona(wire: Wire) -> None:
    check(await wire.error("persona.chat", {"message": "Hello"}), -32001, "no_active_persona")
    await wire.alive()


async def test_memory_error(tmp_path: Path, serving: Serving) -> None:
    database = tmp_path / "p.db"
    async with serving(database, database={"busy_timeout_s": 0.05}) as server, dial(server.url) as wire:
        await wire.call("persona.switch", {"persona_id": "aria"})
        import sqlite3

        other = sqlite3.connect(database, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        error = await wire.error("persona.chat", {"message": "Hello"})
        check(error, -32002, "memory_error", retryable=True)
        assert "p.db" not in str(error)
        other.execute("ROLLBACK")
        other.close()
        # Service returns by itself, and what was not acknowledged was not half saved.
        assert (await wire.call("persona.chat", {"message": "Again"}))["response"]
        history = await wire.call("conversation.history")
        assert [turn["content"] for turn in history["turns"]][::2] == ["Again"]


async def test_llm_unavailable(tmp_path: Path, serving: Serving) -> None:
    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        await listeners[0].aclose()  # nobody listens there now
        nursery.cancel_scope.cancel()
    llm = {"backend": "ollama", "base_url": f"http://127.0.0.1:{port}", "model": "m"}
    async with serving(tmp_path / "p.db", llm=llm) as server, dial(server.url) as wire:
        check(await wire.error("persona.chat", CHAT), -32003, "llm_unavailable", retryable=True)
        check(await wire.error("system.models"), -32003, "llm_unavailable", retryable=True)
        assert (await wire.call("system.status"))["llm_available"] is False
        assert (await wire.call("conversation.history", {"persona_id": "aria"}))["turns"] == []


async def test_not_found(wire: Wire) -> None:
    turn_id = (await wire.call("persona.chat", CHAT))["turn_id"]
    other = {
        "conversation_id": (await wire.call("persona.switch", {"persona_id": "kira"}))["conversation_id"]
    }
    for method, params in (
        ("conversation.history", {"conversation_id": "no such"}),
        ("conversation.history", {"before": 4711}),
        ("conversation.regenerate", {"conversation_id": "no such"}),
        ("conversation.regenerate", {"turn_id": 4711}),
        # There is no line yet that could be answered again.
        ("conversation.regenerate", other),
        ("conversation.edit", {"turn_id": 4711, "message": "x"}),
        # A turn of another conversation is as good as none.
        ("conversation.regenerate_stream", {"turn_id": turn_id, **other}),
        ("conversation.edit_stream", {"turn_id": turn_id, "message": "x", **other}),
        ("conversation.select", {"turn_id": turn_id, **other}),
        ("conversation.delete", {"turn_id": turn_id, **other}),
        ("conversation.delete", {"conversation_id": "no such"}),
        ("persona.chat", {"message": "Hello", "conversation_id": "no such"}),
        ("stream.cancel", {"stream_id": "no such"}),
        ("stream.cancel", {"request_id": 4711}),
    ):
        check(await wire.error(method, params), -32004, "not_found")
    await wire.alive()


async def test_persona_unavailable(wire: Wire) -> None:
    await wire.call(
        "persona.create", {"name": "Frail", "description": "tires at once", "max_social_energy": 0.1}
    )
    await wire.call("persona.chat", {"message": "Hello", "persona_id": "frail"})
    error = await wire.error("persona.chat", {"message": "Hello?", "persona_id": "frail"})
    assert check(error, -32005, "persona_unavailable", retryable=True)["retry_after_s"] > 0
    listed = await wire.call("persona.list")
    assert {p["name"]: p["available"] for p in listed["personas"]} == {
        "Aria": True,
        "Frail": False,
        "Kira": True,
    }


async def test_conflict(wire: Wire) -> None:
    once = {"persona_id": "aria", "client_msg_id": "m1"}
    first = await wire.call("persona.chat", {"message": "Hello", **once})
    assert await wire.call("persona.chat", {"message": "Hello", **once}) == first
    check(await wire.error("persona.chat", {"message": "Other", **once}), -32006, "conflict")
    check(
        await wire.error("persona.update", {"persona_id": "aria", "version": 9, "charisma": 3}),
        -32006,
        "conflict",
    )
    check(await wire.error("persona.create", {"name": "ARIA", "description": "x"}), -32006, "conflict")
    await wire.alive()


async def test_rate_limited(tmp_path: Path, serving: Serving) -> None:
    limits = {"rate_limit_per_minute": 60, "rate_limit_burst": 3}
    async with serving(tmp_path / "p.db", limits=limits) as server, dial(server.url) as wire:
        for _ in range(3):
            await wire.alive()
        data = check(await wire.error("system.ping"), -32010, "rate_limited", retryable=True)
        assert 0 < data["retry_after_s"] <= 1
        await trio.sleep(data["retry_after_s"])
        await wire.alive()


async def test_overloaded_by_what_is_in_flight(tmp_path: Path, serving: Serving) -> None:
    async with (
        serving(tmp_path / "p.db", llm=SLOW_MODEL, limits={"max_in_flight": 2}) as server,
        dial(server.url) as wire,
    ):
        await wire.start("persona.chat", CHAT, id="a")
        await wire.call("persona.status", ["aria"])  # just under
        await wire.start("persona.chat", CHAT, id="b")
        data = check(await wire.error("persona.status", ["aria"]), -32011, "overloaded", retryable=True)
        assert data["retry_after_s"] > 0
        # What needs no place is not refused: the client can make room again.
        await wire.alive()
        assert (await wire.call("stream.cancel", {"request_id": "a"}))["cancelled"]


async def test_overloaded_by_the_models_queue(tmp_path: Path, serving: Serving) -> None:
    llm = {**SLOW_MODEL, "max_concurrency": 1, "max_queue": 1}
    async with serving(tmp_path / "p.db", llm=llm) as server, dial(server.url) as wire:
        for persona, id in (("aria", "runs"), ("kira", "waits")):
            await wire.start("persona.chat", {"message": "Hello", "persona_id": persona}, id=id)
            await wire.alive()
        await wire.call("persona.create", {"name": "Third", "description": "one too many"})
        error = await wire.error("persona.chat", {"message": "Hello", "persona_id": "third"})
        assert check(error, -32011, "overloaded", retryable=True)["retry_after_s"] > 0


async def test_deadline_exceeded(tmp_path: Path, serving: Serving) -> None:
    async with (
        serving(tmp_path / "p.db", llm=SLOW_MODEL, limits={"chat_timeout_s": 0.2}) as server,
        dial(server.url) as wire,
    ):
        check(await wire.error("persona.chat", CHAT), -32012, "deadline_exceeded", retryable=True)
        await wire.alive()


async def test_cancelled(tmp_path: Path, serving: Serving) -> None:
    async with serving(tmp_path / "p.db", llm=SLOW_MODEL) as server, dial(server.url) as wire:
        await wire.start("persona.chat", CHAT, id="c")
        await wire.start("stream.cancel", {"request_id": "c"}, id="k")
        replies = {reply["id"]: reply for reply in [await wire.receive(), await wire.receive()]}
        assert replies["k"]["result"]["cancelled"] is True
        check(replies["c"]["error"], -32013, "cancelled")
        await wire.alive()


async def test_shutting_down(tmp_path: Path, serving: Serving) -> None:
    async with serving(tmp_path / "p.db", llm=SLOW_MODEL) as server, dial(server.url) as wire:
        await wire.start("persona.chat", CHAT, id="c")
        await wire.alive()
        await wire.call("events.subscribe", {"topics": ["system"]})
        server.stop.set()
        assert (await wire.receive())["params"]["type"] == "system.draining"
        check(await wire.error("system.ping"), -32014, "shutting_down", retryable=True)
        # The chat outlives the grace of two seconds and is cut with an answer of its own.
        reply = await wire.receive()
        assert reply["id"] == "c"
        check(reply["error"], -32014, "shutting_down", retryable=True)
        assert await wire.close_code() == 1012


async def test_unauthorized(tmp_path: Path, serving: Serving) -> None:
    tokens = (AuthToken("ann", "user", token_hash("a")), AuthToken("root", "admin", token_hash("r")))
    async with serving(tmp_path / "p.db", auth={"tokens": tokens}) as server:
        async with dial(server.url, authorization="Bearer a") as wire:
            error = await wire.error("system.broadcast", {"type": "t", "data": 1})
            check(error, -32015, "unauthorized")
            await wire.alive()
        async with dial(server.url, authorization="Bearer r") as wire:
            assert await wire.call("system.broadcast", {"type": "t", "data": 1}) == {
                "delivered": 0,
                "dropped": 0,
            }


def test_every_row_of_the_table_was_reached() -> None:
    """Must stay last: it looks at what the tests above met."""
    classes: list[type[PersonaError]] = error_classes()
    expected = {c.reason for c in classes}
    if len(reached) > 1:  # else a single test was picked by name
        assert reached == expected
