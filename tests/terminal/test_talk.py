"""A conversation, line by line."""

from typing import Any

import trio

from persona.console import MAX_LINE_BYTES, printable
from persona.terminal import HELP
from tests.client.fake_server import FakeConnection, FakeServer, history_of
from tests.terminal.desk import Desk, Request


async def test_a_whole_conversation(desk: Desk) -> None:
    assert await desk.chat(typed="Hello\n/switch kira\n  Hi\n\n/list\n/quit\nnever said\n") == 0
    assert desk.screen.getvalue().splitlines() == [
        "  Aria: elven bard",
        "  Kira: human scholar (rests for 12 s)",
        "/help lists the commands",
        "you talk to Aria",
        "Aria: You said Hello.",
        "you talk to Kira",
        "Kira: You said Hi.",
        "  Aria: elven bard",
        "  Kira: human scholar (rests for 12 s)",
    ]
    assert desk.errors.getvalue() == ""
    assert "\x1b" not in desk.screen.getvalue()


async def test_the_end_of_input_ends_it(desk: Desk) -> None:
    assert await desk.chat(typed="") == 0
    await desk.server.wait_closed()
    assert desk.server.closed == [(1000, None)]


async def test_each_pasted_line_is_a_message(desk: Desk) -> None:
    desk.keyboard.type("one\ntwo\r\n\n\nGrüße")
    desk.keyboard.end()
    assert await desk.chat() == 0
    said = [request["params"]["message"] for request in desk.server.of("persona.chat_stream")]
    assert said == ["one", "two", "Grüße"]


async def test_history_help_and_new(desk: Desk) -> None:
    assert await desk.chat(typed="/history\n/HELP\n/new\nHi\n", conversation_id="c-7") == 0
    text = desk.screen.getvalue()
    assert "you: Hello\nAria: Well met!\n" in text
    assert HELP in text
    methods = [message["method"] for message in desk.server.received]
    assert methods[-3:] == ["session.clear", "persona.switch", "persona.chat_stream"]
    assert desk.server.of("conversation.history")[-1]["params"] == {"conversation_id": "c-7"}
    assert "conversation_id" not in desk.server.of("persona.chat_stream")[0]["params"]


async def test_a_conversation_that_is_not_there_is_told_at_once(desk: Desk) -> None:
    async def missing(connection: FakeConnection, request: Request) -> None:
        await connection.error(request, -32004, "not_found", "no such conversation")

    desk.server.on("conversation.history", missing)
    assert await desk.chat(typed="Hello\n", conversation_id="nope") == 1
    assert desk.screen.getvalue() == ""
    assert desk.errors.getvalue() == "! not_found: no such conversation\n"
    assert desk.server.of("persona.chat_stream") == []


async def test_a_history_that_cannot_be_read_at_the_start_is_no_end(desk: Desk) -> None:
    async def fail(connection: FakeConnection, request: Request) -> None:
        await connection.error(request, -32002, "memory_error", "the database does not answer")

    desk.server.on("conversation.history", fail)
    assert await desk.chat(typed="Hello\n", conversation_id="c-7") == 0
    assert desk.screen.getvalue().endswith("Aria: You said Hello.\n")


ANSWERS = ("Well met!", "Hello yourself!", "Hm?")


def with_branches(server: FakeServer) -> None:
    """One line with three answers, of which the second is shown."""
    shown = 1

    async def history(connection: FakeConnection, request: Request) -> None:
        turns: list[dict[str, Any]] = [
            {"id": 1, "role": "user", "speaker_id": "u", "content": "Hello", "parent_id": None},
            {
                "id": 2 + shown,
                "role": "assistant",
                "speaker_id": "p-aria",
                "content": ANSWERS[shown],
                "parent_id": 1,
                "sibling_index": shown + 1,
                "sibling_count": len(ANSWERS),
                "previous_sibling_id": 1 + shown if shown else None,
                "next_sibling_id": 3 + shown if shown + 1 < len(ANSWERS) else None,
            },
        ]
        await connection.result(request, history_of(*turns))

    async def select(connection: FakeConnection, request: Request) -> None:
        nonlocal shown
        turn_id = request["params"]["turn_id"]
        shown = turn_id - 2
        await connection.result(
            request, {"conversation_id": "c-1", "turn_id": turn_id, "current_turn_id": turn_id}
        )

    server.on("conversation.history", history)
    server.on("conversation.select", select)


async def test_there_and_back_between_answers(desk: Desk) -> None:
    with_branches(desk.server)
    typed = "/history\n/next\n/next\n/previous\n/previous\n/previous\n"
    assert await desk.chat(typed=typed, conversation_id="c-1") == 0
    assert desk.screen.getvalue().splitlines()[-7:] == [
        "you: Hello",
        "Aria [2 of 3]: Hello yourself!",
        "Aria [3 of 3]: Hm?",
        "! there is no other answer there",
        "Aria [2 of 3]: Hello yourself!",
        "Aria [1 of 3]: Well met!",
        "! there is no other answer there",
    ]
    for request in desk.server.of("conversation.select"):
        assert request["params"]["conversation_id"] == "c-1"


async def test_the_last_line_is_answered_again_or_said_differently(desk: Desk) -> None:
    async def anew(connection: FakeConnection, request: Request) -> None:
        await connection.answer(request, "Once ", "more.")

    with_branches(desk.server)
    desk.server.on("conversation.regenerate_stream", anew)
    desk.server.on("conversation.edit_stream", anew)
    typed = "/regenerate\n/edit  Hello there\n/edit\n"
    assert await desk.chat(typed=typed, conversation_id="c-1") == 0
    assert desk.screen.getvalue().splitlines()[-3:] == [
        "Aria: Once more.",
        "Aria: Once more.",
        "! /edit needs the line as it should have been",
    ]
    (regenerated,) = desk.server.of("conversation.regenerate_stream")
    assert regenerated["params"] == {"conversation_id": "c-1", "token_budget": 500}
    (edited,) = desk.server.of("conversation.edit_stream")
    assert edited["params"] == {**regenerated["params"], "turn_id": 1, "message": "Hello there"}


async def test_where_nothing_was_said_there_is_nothing_to_go_back_to(desk: Desk) -> None:
    async def nothing(connection: FakeConnection, request: Request) -> None:
        await connection.result(request, history_of())

    desk.server.on("conversation.history", nothing)
    assert await desk.chat(typed="/edit x\n/previous\n/next\n") == 0
    assert desk.screen.getvalue().splitlines()[-3:] == [
        "! nothing was said yet",
        "! there is no other answer there",
        "! there is no other answer there",
    ]


async def test_a_conversation_is_deleted_and_another_begun(desk: Desk) -> None:
    async def delete(connection: FakeConnection, request: Request) -> None:
        deleted = {"conversation_id": "c-1", "deleted": True, "turns_deleted": 2, "current_turn_id": None}
        await connection.result(request, deleted)

    desk.server.on("conversation.delete", delete)
    assert await desk.chat(typed="/delete\nHi\n", conversation_id="c-1") == 0
    assert desk.server.of("conversation.delete")[0]["params"] == {"conversation_id": "c-1"}
    methods = [message["method"] for message in desk.server.received]
    assert methods[-4:] == ["conversation.delete", "session.clear", "persona.switch", "persona.chat_stream"]
    assert "conversation_id" not in desk.server.of("persona.chat_stream")[0]["params"]
    assert "deleted\n" in desk.screen.getvalue()


async def test_errors_are_one_line_and_the_talk_goes_on(desk: Desk) -> None:
    assert await desk.chat(typed="/switch zed\n/dance\n/switch\nHello\n") == 0
    assert desk.screen.getvalue().splitlines()[-4:] == [
        "! persona_not_found: there is no such persona",
        "! unknown command /dance; /help lists them",
        "! /switch needs a name; /list shows who there is",
        "Aria: You said Hello.",
    ]


async def test_an_unknown_persona_at_the_start_is_no_end(desk: Desk) -> None:
    assert await desk.chat(typed="/switch kira\nHello\n", persona="zed") == 0
    assert "! persona_not_found: there is no such persona\n" in desk.screen.getvalue()
    assert desk.screen.getvalue().endswith("Kira: You said Hello.\n")


async def test_the_place_in_the_queue_is_shown(desk: Desk) -> None:
    async def queue(connection: FakeConnection, request: Request) -> None:
        await connection.event(request, "stream_start", persona_id="p-aria")
        await connection.event(request, "stream_queued", position=3)
        await desk.screen.wait_for("place 3")
        await connection.event(request, "stream_chunk", chunk="Hi")
        await connection.complete(request, "Hi")

    desk.server.on("persona.chat_stream", queue)
    assert await desk.chat(typed="Hello\n") == 0
    assert desk.screen.getvalue().endswith("[waiting for the model: place 3]\nAria: Hi\n")


async def test_an_answer_that_was_cut_off_says_so(desk: Desk) -> None:
    async def cut(connection: FakeConnection, request: Request) -> None:
        await connection.event(request, "stream_complete", full_response="", finish_reason="length")

    desk.server.on("persona.chat_stream", cut)
    assert await desk.chat(typed="Hello\n") == 0
    assert desk.screen.getvalue().endswith("Aria: \n[cut off: the token budget is spent]\n")


async def test_what_the_server_sends_cannot_drive_the_terminal(desk: Desk) -> None:
    evil = "a\x1b[2Jb\x07c\rd\x9b31me\u202ef\x7f\x00"

    async def switch(connection: FakeConnection, request: Request) -> None:
        await connection.error(request, -32000, evil, f"{evil}\n{evil}")

    async def talk(connection: FakeConnection, request: Request) -> None:
        await connection.event(request, "stream_chunk", chunk="\x1b")
        await connection.event(request, "stream_chunk", chunk=f"[31m{evil}\nnew\tline")
        await connection.complete(request, "")

    async def people(connection: FakeConnection, request: Request) -> None:
        person = {"id": "x", "name": f"A\n{evil}", "description": evil, "available": True}
        person |= {"social_energy": 1, "current_priority": "none", "cooldown_remaining": 0}
        await connection.result(request, {"personas": [person], "total_count": 1, "available_count": 1})

    desk.server.on("persona.switch", switch)
    desk.server.on("persona.chat_stream", talk)
    desk.server.on("persona.list", people)
    assert await desk.chat(typed="Hello\n") == 0
    text = desk.screen.getvalue()
    assert {c for c in text if not c.isprintable()} == {"\n", "\t"}
    assert "a[2Jbcd31mef" in text
    assert "new\tline" in text


def test_printable_keeps_text_and_drops_controls() -> None:
    text = "Grüße \N{ROCKET} \N{WOMAN}\N{ZERO WIDTH JOINER}\N{ROCKET}\n\t\N{HEBREW LETTER ALEF}"
    assert printable(text) == text
    assert printable("".join(map(chr, range(32))) + "\x7f\x80\x9f\u2066") == "\t\n"


async def test_a_line_the_server_would_not_take_gets_a_word(desk: Desk) -> None:
    assert await desk.chat(typed="x" * 70_000 + "\nHello\n") == 0
    lines = desk.screen.getvalue().splitlines()
    assert lines[-2].startswith("! message_too_large: the message is 70")
    assert lines[-1] == "Aria: You said Hello."
    assert len(desk.server.of("persona.chat_stream")) == 1


async def test_a_line_without_end_is_skipped(desk: Desk) -> None:
    async def type_much() -> None:
        for _ in range(2 * MAX_LINE_BYTES // 4096):
            await trio.to_thread.run_sync(desk.keyboard.type, "x" * 4096)
        desk.keyboard.type("\nHello\n")
        desk.keyboard.end()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(type_much)
        assert await desk.chat() == 0
    lines = desk.screen.getvalue().splitlines()
    assert lines[-2].startswith("! message_too_large: the line is longer than")
    assert lines[-1] == "Aria: You said Hello."


async def test_an_undecodable_line_is_said_all_the_same(desk: Desk) -> None:
    assert await desk.chat(typed="caf\udce9\n") == 0
    assert desk.screen.getvalue().endswith("Aria: You said caf?.\n")
