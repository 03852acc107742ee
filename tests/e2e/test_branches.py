"""The tree of a conversation on real sockets, as a chat front end uses it."""

import contextlib
import sqlite3
from pathlib import Path
from typing import Any

import pytest
import trio

from persona.model import NewTurn
from persona.storage import schema
from persona.storage.turns import append_turns
from tests.e2e.conftest import Serving
from tests.e2e.exchanges import STYLES, Exchange, Style, llm_settings
from tests.llm.standin import StandIn, open_standin
from tests.serving import Wire, dial, serving

pytestmark = pytest.mark.usefixtures("nothing_crashed")

METHODS: dict[str, dict[Style, str]] = {
    "regenerate": {
        "chat": "conversation.regenerate",
        "chat_stream": "conversation.regenerate_stream",
        "stream_true": "conversation.regenerate",
    },
    "edit": {
        "chat": "conversation.edit",
        "chat_stream": "conversation.edit_stream",
        "stream_true": "conversation.edit",
    },
    "chat": {"chat": "persona.chat", "chat_stream": "persona.chat_stream", "stream_true": "persona.chat"},
}

by_style = pytest.mark.parametrize("style", STYLES)


async def begin(wire: Wire, kind: str, style: Style, **params: Any) -> Exchange:
    if style == "stream_true":
        params["stream"] = True
    return Exchange(await wire.start(METHODS[kind][style], params), style)


async def ask(wire: Wire, kind: str, style: Style, **params: Any) -> Exchange:
    return (await (await begin(wire, kind, style, **params)).receive_from(wire)).check()


async def history(wire: Wire, **params: Any) -> list[dict[str, Any]]:
    found = await wire.call("conversation.history", params)
    return list(found["turns"])


def shown(turns: list[dict[str, Any]]) -> list[str]:
    return [turn["content"] for turn in turns]


def talk_of(standin: StandIn) -> list[str]:
    """The last prompt the model was asked with, without the system message."""
    return [message["content"] for message in standin.requests[-1].body["messages"][1:]]


def counted(standin: StandIn) -> None:
    """From now on an answer tells which one it is, and to what."""
    standin.reply = lambda body: f"{len(standin.requests)}: {body['messages'][-1]['content']}"


@by_style
async def test_branches_are_made_shown_and_gone_on_with(style: Style, tmp_path: Path) -> None:
    async with (
        open_standin("ollama") as standin,
        serving(tmp_path / "p.db", llm=llm_settings(standin)) as server,
        dial(server.url) as wire,
    ):
        counted(standin)
        await wire.call("persona.switch", {"persona_id": "aria"})
        first = (await ask(wire, "chat", style, message="A")).result
        second = (await ask(wire, "chat", style, message="B")).result

        again = await ask(wire, "regenerate", style, turn_id=first["turn_id"])
        assert again.text == "3: A"
        assert talk_of(standin) == ["A"]
        assert again.result["parent_id"] == first["parent_id"]
        if style != "chat":
            assert again.events[0]["data"]["message"] == "A"
        turns = await history(wire)
        assert shown(turns) == ["A", "3: A"]
        assert (turns[1]["sibling_index"], turns[1]["sibling_count"]) == (2, 2)
        assert turns[1]["previous_sibling_id"] == first["turn_id"]

        await ask(wire, "chat", style, message="C")
        assert talk_of(standin) == ["A", "3: A", "C"]

        selected = await wire.call("conversation.select", {"turn_id": turns[1]["previous_sibling_id"]})
        assert selected["current_turn_id"] == second["turn_id"]
        turns = await history(wire)
        assert shown(turns) == ["A", "1: A", "B", "2: B"]

        edited = await ask(wire, "edit", style, turn_id=second["parent_id"], message="B!")
        assert edited.text == "5: B!"
        assert talk_of(standin) == ["A", "1: A", "B!"]
        turns = await history(wire)
        assert shown(turns) == ["A", "1: A", "B!", "5: B!"]
        assert [turn["sibling_count"] for turn in turns] == [1, 2, 2, 1]
        assert [turn["parent_id"] for turn in turns[1:]] == [turn["id"] for turn in turns[:-1]]
        # In pages, too, and on each page siblings are counted in the whole conversation.
        page = await wire.call("conversation.history", {"limit": 2})
        assert (page["turns"], page["has_more"]) == (turns[2:], True)
        rest = await wire.call("conversation.history", {"limit": 2, "before": page["next_before"]})
        assert (rest["turns"], rest["has_more"]) == (turns[:2], False)
        assert page["current_turn_id"] == rest["current_turn_id"] == edited.result["turn_id"]

        listed = (await wire.call("conversation.list"))["conversations"]
        assert [entry["turn_count"] for entry in listed] == [9]


async def test_branches_outlive_the_server(tmp_path: Path) -> None:
    async with serving(tmp_path / "p.db") as server, dial(server.url) as wire:
        await wire.call("persona.switch", {"persona_id": "aria"})
        first = await wire.call("persona.chat", {"message": "A"})
        conversation = {"conversation_id": first["conversation_id"]}
        await wire.call("conversation.regenerate", {"client_msg_id": "r"})
        await wire.call("conversation.select", {"turn_id": first["turn_id"]})
        before = await history(wire)
    async with serving(tmp_path / "p.db") as server, dial(server.url) as wire:
        assert await history(wire, **conversation) == before
        assert shown(before) == ["A", first["response"]]
        assert before[1]["next_sibling_id"] is not None


@by_style
@pytest.mark.parametrize("kind", METHODS)
async def test_a_request_sent_again_gets_the_stored_answer_also_after_a_restart(
    kind: str, style: Style, tmp_path: Path
) -> None:
    async with open_standin("ollama") as standin:
        counted(standin)
        async with serving(tmp_path / "p.db", llm=llm_settings(standin)) as server, dial(server.url) as wire:
            said = await wire.call("persona.chat", {"message": "A", "persona_id": "aria"})
            body: dict[str, Any] = {"conversation_id": said["conversation_id"], "client_msg_id": "m"}
            if kind != "chat":
                body["turn_id"] = said["parent_id"]
            if kind != "regenerate":
                body["message"] = "B"
            first = await ask(wire, kind, style, **body)
            turns = await history(wire, conversation_id=said["conversation_id"])
        async with serving(tmp_path / "p.db", llm=llm_settings(standin)) as server, dial(server.url) as wire:
            again = await ask(wire, kind, style, **body)
            assert {**again.result, "chunk_count": 0} == {**first.result, "chunk_count": 0}
            if style != "chat":
                # As one chunk.
                assert again.chunks == [first.text]
            # Another way to get it is the same request.
            other_style: Style = "chat" if style == "chat_stream" else "chat_stream"
            assert (await ask(wire, kind, other_style, **body)).text == first.text
            assert len(standin.requests) == 2

            for change in ({"token_budget": 7}, {"options": {"seed": 1}}, {"message": "C"}):
                if kind == "regenerate" and "message" in change:
                    change = {"turn_id": said["turn_id"]}
                error = (await ask(wire, kind, style, **{**body, **change})).error
                assert (error["code"], error["data"]["reason"]) == (-32006, "conflict")
                assert error["data"]["field"] == "client_msg_id"
            assert await history(wire, conversation_id=said["conversation_id"]) == turns


@by_style
@pytest.mark.parametrize("kind", ["regenerate", "edit"])
async def test_a_branch_that_is_cancelled_or_breaks_is_kept_beside_the_first(
    kind: str, style: Style, tmp_path: Path
) -> None:
    async with (
        open_standin("ollama", token_delay_s=0.01) as standin,
        serving(tmp_path / "p.db", llm=llm_settings(standin, max_concurrency=1)) as server,
        dial(server.url) as wire,
    ):
        first = await wire.call("persona.chat", {"message": "A", "persona_id": "aria"})
        body: dict[str, Any] = {"conversation_id": first["conversation_id"], "turn_id": first["parent_id"]}
        if kind == "edit":
            body["message"] = "B"
        standin.reply, sent = lambda body: "word " * 500, standin.tokens_sent
        cut = await begin(wire, kind, style, **body)
        with trio.fail_after(5):
            await standin.wait_tokens(sent + 5)
        if style != "chat":
            await cut.receive_from(wire, until_chunks=3)
        await wire.start("stream.cancel", {"request_id": cut.id}, id="cancel")
        is_cancelled = False
        while cut.reply is None or not is_cancelled:
            frame = await wire.receive()
            is_cancelled = is_cancelled or frame.get("id") == "cancel"
            assert cut.feed(frame) or frame["result"]["cancelled"]
        cut.check()
        if style != "chat":
            assert cut.terminal_events == ["stream_cancelled"]
        turns = await history(wire, conversation_id=first["conversation_id"])
        assert shown(turns)[0] == body.get("message", "A")
        assert turns[1]["finish_reason"] == "cancelled"

        standin.variant, standin.reply = "error_in_band", lambda body: "one two three four"
        broken = await ask(wire, kind, style, **body)
        assert broken.error["data"]["reason"] == "llm_unavailable"
        turns = await history(wire, conversation_id=first["conversation_id"])
        assert turns[1]["id"] == broken.error["data"]["turn_id"]
        assert turns[1]["finish_reason"] == "error"
        siblings = turns[1] if kind == "regenerate" else turns[0]
        assert (siblings["sibling_index"], siblings["sibling_count"]) == (3, 3)
        await wire.call(
            "conversation.select",
            {"conversation_id": first["conversation_id"], "turn_id": first["turn_id"]},
        )
        turns = await history(wire, conversation_id=first["conversation_id"])
        assert shown(turns) == ["A", first["response"]]


async def test_a_request_sent_again_on_a_new_connection_while_the_first_runs(tmp_path: Path) -> None:
    async with (
        open_standin("ollama", token_delay_s=0.02) as standin,
        serving(tmp_path / "p.db", llm=llm_settings(standin)) as server,
        dial(server.url) as one,
        dial(server.url) as other,
    ):
        standin.reply = lambda body: "a b c d e f g h i j"
        where = (await one.call("persona.switch", {"persona_id": "aria"}))["conversation_id"]
        body = {"conversation_id": where, "client_msg_id": "m", "message": "A"}
        first = await begin(one, "chat", "chat_stream", **body)
        await first.receive_from(one, until_chunks=2)
        second = await begin(other, "chat", "chat_stream", **body)
        await second.receive_from(other)
        await first.receive_from(one)
        assert second.check().result["turn_id"] == first.check().result["turn_id"]
        assert len(second.chunks) == 1 < len(first.chunks)
        assert len(standin.requests) == 1


@by_style
async def test_a_conversation_deleted_under_a_stream_ends_it(
    style: Style, tmp_path: Path, serving: Serving
) -> None:
    async with (
        open_standin("ollama", token_delay_s=0.01) as standin,
        serving(tmp_path / "p.db", llm=llm_settings(standin, max_concurrency=1)) as server,
        dial(server.url) as wire,
        dial(server.url) as other,
    ):
        standin.reply = lambda body: "word " * 500
        where = (await wire.call("persona.switch", {"persona_id": "aria"}))["conversation_id"]
        running = await begin(wire, "chat", style, message="A long story")
        waiting = Exchange(await wire.start("persona.chat", {"message": "and one more"}), "chat")
        with trio.fail_after(5):
            await standin.wait_tokens(3)
        deleted = await other.call("conversation.delete", {"conversation_id": where})
        assert deleted == {
            "conversation_id": where,
            "deleted": True,
            "turns_deleted": 0,
            "current_turn_id": None,
        }
        with trio.fail_after(5):
            await standin.wait_client_closed()
        while running.reply is None or waiting.reply is None:
            frame = await wire.receive()
            assert running.feed(frame) or waiting.feed(frame)
        for exchange in (running, waiting):
            assert (exchange.error["code"], exchange.error["data"]["reason"]) == (-32004, "not_found")
        assert running.terminal_events == ([] if style == "chat" else ["stream_error"])

        # Nothing of it comes back, the slot is free, and the session begins another conversation.
        standin.reply, standin.token_delay_s = lambda body: "Here.", 0.0
        answer = await wire.call("persona.chat", {"message": "Are you there?"})
        assert answer["conversation_id"] != where
        assert shown(await history(wire)) == ["Are you there?", "Here."]
        for method, params in (
            ("conversation.history", {}),
            ("conversation.delete", {}),
            ("persona.chat", {"message": "x"}),
        ):
            error = await other.error(method, {"conversation_id": where, **params})
            assert error["data"]["reason"] == "not_found"
        status = await wire.call("persona.status")
        assert status["memory_stats"]["total_conversations"] == 1
    with contextlib.closing(sqlite3.connect(tmp_path / "p.db")) as conn:
        assert conn.execute("SELECT count(*) FROM turns").fetchone() == (2,)


async def test_a_branch_is_deleted_and_the_one_beside_it_shown(tmp_path: Path) -> None:
    async with (
        open_standin("ollama") as standin,
        serving(tmp_path / "p.db", llm=llm_settings(standin)) as server,
        dial(server.url) as wire,
    ):
        counted(standin)
        first = await wire.call("persona.chat", {"message": "A", "persona_id": "aria"})
        where = {"conversation_id": first["conversation_id"]}
        again = await wire.call("conversation.regenerate", where)
        await wire.call("persona.chat", {"message": "B", **where})
        deleted = await wire.call("conversation.delete", {**where, "turn_id": again["turn_id"]})
        assert (deleted["turns_deleted"], deleted["current_turn_id"]) == (3, first["turn_id"])
        turns = await history(wire, **where)
        assert shown(turns) == ["A", "1: A"]
        assert [turn["sibling_count"] for turn in turns] == [1, 1]
        # The answer alone: the line stays, and can be answered again.
        await wire.call("conversation.delete", {**where, "turn_id": first["turn_id"]})
        assert shown(await history(wire, **where)) == ["A"]
        await wire.call("conversation.regenerate", where)
        assert shown(await history(wire, **where)) == ["A", "4: A"]
        gone = await wire.call("conversation.delete", {**where, "turn_id": first["parent_id"]})
        assert (gone["turns_deleted"], gone["current_turn_id"]) == (2, None)
        assert await history(wire, **where) == []


async def test_a_conversation_of_two_thousand_turns_is_no_burden(tmp_path: Path) -> None:
    said = [
        NewTurn(role=role, speaker_id="s", content=f"{n} " + "x" * 300, created_at=float(n))
        for n in range(1000)
        for role in ("user", "assistant")
    ]
    file = tmp_path / "p.db"
    async with serving(file) as server, dial(server.url) as wire:
        where = (await wire.call("persona.switch", {"persona_id": "aria"}))["conversation_id"]
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as conn:
        conn.execute("BEGIN IMMEDIATE")
        first, *_ = append_turns(conn, where, said)
        conn.execute("COMMIT")
    async with (
        open_standin("ollama") as standin,
        serving(file, llm=llm_settings(standin), personas={"recovery_s": 0}) as server,
        dial(server.url) as wire,
    ):
        counted(standin)
        there = {"conversation_id": where}
        durations = []
        for number in range(11):
            began = trio.current_time()
            page = await wire.call("conversation.history", there)
            page = await wire.call("conversation.history", {**there, "before": page["next_before"]})
            assert len(page["turns"]) == 20
            await wire.call("persona.chat", {"message": f"line {number}", **there})
            await wire.call("conversation.regenerate", there)
            durations.append(trio.current_time() - began)
        # About 7 ms for the four, where it is idle.
        assert sorted(durations)[5] < 0.5
        # What the model gets are the newest.
        assert talk_of(standin)[-1] == "line 10"
        assert len(talk_of(standin)) < 100
        selected = await wire.call("conversation.select", {**there, "turn_id": first.id})
        assert selected["current_turn_id"] > first.id + 2000
        deleted = await wire.call("conversation.delete", {**there, "turn_id": first.id})
        assert deleted["turns_deleted"] == 2000 + 33


async def test_a_database_of_version_1_is_taken_over(tmp_path: Path) -> None:
    """Written with that version's own schema; then read, gone on with, and branched in."""
    file = tmp_path / "p.db"
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as conn:
        conn.execute("PRAGMA journal_mode = WAL")
        schema.migrate(conn, file, migrations=schema.MIGRATIONS[:1])
        (aria,) = conn.execute("SELECT id FROM personas WHERE name = 'Aria'").fetchone()
        conn.execute("INSERT INTO conversations VALUES ('old', ?, 'anonymous', 1, 2, 2)", (aria,))
        details = (
            '{"response_type":"llm","model":"m","processing_time_s":1.0,"time_to_first_token_s":0.5,'
            '"continue_score":80.0,"social_energy":99.0,"available_time_s":298.5,"interaction_fatigue":1.0}'
        )
        conn.executemany(
            """
            INSERT INTO turns (conversation_id, parent_id, role, speaker_id, content, created_at,
                tokens_used, finish_reason, client_msg_id, details)
            VALUES ('old', ?, ?, ?, ?, ?, 0, ?, ?, ?)
            """,
            [
                (None, "user", "anonymous", "Hello", 1.0, None, "m1", None),
                (1, "assistant", aria, "Well met", 2.0, "stop", None, details),
            ],
        )
    async with (
        open_standin("ollama") as standin,
        serving(file, llm=llm_settings(standin)) as server,
        dial(server.url) as wire,
    ):
        counted(standin)
        where = {"conversation_id": "old"}
        assert shown(await history(wire, **where)) == ["Hello", "Well met"]
        body = {**where, "message": "Hello", "client_msg_id": "m1"}
        assert (await wire.call("persona.chat", body))["response"] == "Well met"
        error = await wire.error("persona.chat", {**body, "message": "Hi"})
        assert error["data"]["reason"] == "conflict"
        assert standin.requests == []
        await wire.call("conversation.regenerate", where)
        await wire.call("persona.chat", {"message": "More", **where})
        assert talk_of(standin) == ["Hello", "1: Hello", "More"]
        turns = await history(wire, **where)
        assert [turn["sibling_count"] for turn in turns] == [1, 2, 1, 1]
