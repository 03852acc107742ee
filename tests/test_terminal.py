import io
import os
import pty
import signal
import sys
import termios
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TextIO

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from persona.client import open_client
from persona.console import MAX_LINE_BYTES, Console, Interrupts, LineTooLong, printable
from persona.terminal import HELP, NO_MODEL, chat
from tests.client.fake_server import FakeConnection, FakeServer, history_of, listening
from tests.serving import serving

Request = dict[str, Any]


class Screen(io.StringIO):
    """Standard output that a test can wait on."""

    def __init__(self) -> None:
        super().__init__()
        self._news = trio.Event()

    def write(self, text: str) -> int:
        self._news.set()
        self._news = trio.Event()
        return super().write(text)

    async def wait_for(self, text: str) -> None:
        while text not in self.getvalue():
            await self._news.wait()


class Keyboard:
    """A pipe to type into."""

    def __init__(self) -> None:
        read_fd, self._write_fd = os.pipe()
        self.file = os.fdopen(read_fd)

    def type(self, text: str) -> None:
        os.write(self._write_fd, text.encode())

    def end(self) -> None:
        if self._write_fd >= 0:
            os.close(self._write_fd)
            self._write_fd = -1


class Desk:
    """Everything a user has in front of them, and the server."""

    def __init__(self, url: str, server: FakeServer, keyboard: Keyboard) -> None:
        self.url = url
        self.server = server
        self.keyboard = keyboard
        self.screen = Screen()
        self.errors = Screen()
        self.interrupts = Interrupts()
        self.status: int | None = None

    async def chat(self, *, typed: str | None = None, **options: Any) -> int:
        """Run to the end, with this typed, or whatever the keyboard gives."""
        self.status = await chat(
            self.url,
            options.pop("persona", "aria"),
            stdin=self.keyboard.file if typed is None else io.StringIO(typed),
            stdout=self.screen,
            stderr=self.errors,
            interrupts=self.interrupts,
            **options,
        )
        return self.status


@pytest.fixture
def server() -> FakeServer:
    return FakeServer()


@pytest.fixture
async def desk(server: FakeServer) -> AsyncIterator[Desk]:
    keyboard = Keyboard()
    async with listening(server.serve_stream) as url:
        with keyboard.file, trio.fail_after(20):
            yield Desk(url, server, keyboard)
    keyboard.end()


@asynccontextmanager
async def running(desk: Desk, **options: Any) -> AsyncIterator[None]:
    """A chat that has ended by itself when the block is left."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(lambda: desk.chat(**options))
        yield


async def once_upon(connection: FakeConnection, request: Request) -> None:
    """An answer that does not end."""
    await connection.event(request, "stream_start", persona_id="p-aria")
    await connection.event(request, "stream_chunk", chunk="Once upon")


# --say


async def test_say_prints_the_answer_and_nothing_else(desk: Desk) -> None:
    assert await desk.chat(say="Hello", persona="ARIA", token="t") == 0
    assert desk.screen.getvalue() == "You said Hello.\n"
    assert desk.errors.getvalue() == ""
    assert desk.server.of("persona.switch")[0]["params"] == {"persona_id": "ARIA"}
    assert desk.server.connections[0].headers[b"authorization"] == b"Bearer t"


async def test_say_goes_on_with_a_conversation(desk: Desk) -> None:
    assert await desk.chat(say="Hello", conversation_id="c-7") == 0
    assert desk.server.of("persona.chat_stream")[0]["params"]["conversation_id"] == "c-7"
    assert desk.server.of("persona.switch") == []


async def test_arguments_that_are_no_text_are_said_as_far_as_they_are(desk: Desk) -> None:
    assert await desk.chat(say="Hel\udcfflo", conversation_id="c\udcff") == 0
    (request,) = desk.server.of("persona.chat_stream")
    assert (request["params"]["message"], request["params"]["conversation_id"]) == ("Hel?lo", "c?")


async def test_say_to_nobody_fails_with_one_line(desk: Desk) -> None:
    assert await desk.chat(say="Hello", persona="zed") == 1
    assert desk.screen.getvalue() == ""
    assert desk.errors.getvalue() == "! persona_not_found: there is no such persona\n"


async def test_say_with_an_error_in_mid_answer_fails(desk: Desk) -> None:
    async def fail(connection: FakeConnection, request: Request) -> None:
        await once_upon(connection, request)
        await connection.error(request, -32003, "llm_unavailable", "the model is gone", retry_after_s=5)

    desk.server.on("persona.chat_stream", fail)
    assert await desk.chat(say="Hello") == 1
    assert desk.screen.getvalue() == "Once upon\n"
    assert desk.errors.getvalue() == "! llm_unavailable: the model is gone (try again in 5 s)\n"


async def test_say_with_an_answer_that_was_cut_short_fails(desk: Desk) -> None:
    async def drain(connection: FakeConnection, request: Request) -> None:
        await once_upon(connection, request)
        await connection.event(request, "stream_cancelled", reason="x", partial_response="Once upon")

    desk.server.on("persona.chat_stream", drain)
    assert await desk.chat(say="Hello") == 1
    assert desk.screen.getvalue() == "Once upon\n"
    assert desk.errors.getvalue() == "! cancelled: the answer is not complete\n"


async def test_say_stops_on_ctrl_c(desk: Desk) -> None:
    desk.server.on("persona.chat_stream", once_upon)
    async with running(desk, say="Hello"):
        await desk.screen.wait_for("Once upon")
        desk.interrupts.interrupt()
    assert desk.status == 1
    assert desk.screen.getvalue() == "Once upon\n"
    await desk.server.wait_closed()
    # Leaving the connection would stop it, too; asking first is what the protocol is for.
    assert len(desk.server.of("stream.cancel")) == 1


async def test_say_manages_with_a_server_that_announces_no_limits(desk: Desk) -> None:
    async def unknown(connection: FakeConnection, request: Request) -> None:
        await connection.error(request, -32601, "method_not_found", "?")

    desk.server.on("session.info", unknown)
    assert await desk.chat(say="Hello") == 0


# No connection


async def test_a_server_that_is_down_is_one_line(desk: Desk) -> None:
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    await listeners[0].aclose()
    desk.url = f"ws://127.0.0.1:{port}/mcp"
    assert await desk.chat(say="Hello") == 1
    assert desk.errors.getvalue() == f"cannot connect to ws://127.0.0.1:{port}: connection refused\n"
    assert await desk.chat() == 1
    assert desk.screen.getvalue() == ""


async def test_a_refusal_is_one_line() -> None:
    async def refuse(stream: trio.SocketStream) -> None:
        async with stream:
            await stream.receive_some()
            await stream.send_all(
                b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 14\r\n\r\nwho\nare\x1b[2Jyou"
            )

    errors = io.StringIO()
    with trio.fail_after(5):
        async with listening(refuse) as url:
            status = await chat(
                url, "aria", "Hi", stdin=io.StringIO(), stdout=io.StringIO(), stderr=errors, token="wrong"
            )
    assert status == 1
    assert errors.getvalue() == f"cannot connect to {url[:-4]}: HTTP 401: who are [2Jyou\n"


async def test_ctrl_c_while_connecting_gives_up() -> None:
    connecting = trio.Event()

    async def say_nothing(stream: trio.SocketStream) -> None:
        async with stream:
            connecting.set()
            await trio.sleep_forever()

    interrupts = Interrupts()
    status = None

    async def run() -> None:
        nonlocal status
        status = await chat(
            url,
            "aria",
            stdin=io.StringIO(),
            stdout=io.StringIO(),
            stderr=io.StringIO(),
            interrupts=interrupts,
        )

    with trio.fail_after(5):
        async with listening(say_nothing) as url, trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await connecting.wait()
            interrupts.interrupt()
    assert status == 1


async def test_a_connection_lost_at_the_prompt_is_noticed(desk: Desk) -> None:
    async with running(desk):
        await desk.screen.wait_for("you talk to Aria")
        await desk.server.connections[0].websocket.aclose(1012, "restart")
    assert desk.status == 1
    assert desk.errors.getvalue() == "the server closed the connection (1012: restart)\n"


async def test_a_server_killed_in_mid_answer_is_one_line(desk: Desk) -> None:
    async def die(connection: FakeConnection, request: Request) -> None:
        await once_upon(connection, request)
        await trio.aclose_forcefully(connection.stream)

    desk.server.on("persona.chat_stream", die)
    assert await desk.chat(typed="Hello\nHello again\n") == 1
    assert desk.screen.getvalue().endswith("Aria: Once upon\n")
    assert desk.errors.getvalue() == "the connection to the server broke off\n"


# The conversation


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
    assert desk.server.of("conversation.history")[0]["params"] == {"conversation_id": "c-7"}
    assert "conversation_id" not in desk.server.of("persona.chat_stream")[0]["params"]


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


# Ctrl-C


async def test_ctrl_c_stops_the_answer_then_leaves(desk: Desk) -> None:
    desk.server.on("persona.chat_stream", once_upon)
    async with running(desk):
        desk.keyboard.type("Hello\n")
        await desk.screen.wait_for("Once upon")
        desk.interrupts.interrupt()
        (cancel,) = await desk.server.wait_for("stream.cancel")
        assert cancel["params"]["request_id"] == desk.server.of("persona.chat_stream")[0]["id"]
        await desk.screen.wait_for("Once upon [stopped]\n")
        desk.server.on("persona.chat_stream", answer_back)
        desk.keyboard.type("And now?\n")
        await desk.screen.wait_for("Aria: Yes?\n")
        await wait_all_tasks_blocked(0.01)
        desk.interrupts.interrupt()
    assert desk.status == 0
    assert desk.errors.getvalue() == ""


async def answer_back(connection: FakeConnection, request: Request) -> None:
    await connection.answer(request, "Yes?")


async def test_sigint_is_what_interrupts(desk: Desk) -> None:
    desk.server.on("persona.chat_stream", once_upon)

    async def run() -> None:
        desk.status = await chat(
            desk.url, "aria", "Hello", stdin=io.StringIO(), stdout=desk.screen, stderr=desk.errors
        )

    before = signal.getsignal(signal.SIGINT)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await desk.screen.wait_for("Once upon")
        signal.raise_signal(signal.SIGINT)
    assert desk.status == 1
    assert signal.getsignal(signal.SIGINT) is before


# The console


def text_pipe() -> tuple[TextIO, TextIO]:
    read_fd, write_fd = os.pipe()
    return os.fdopen(read_fd), os.fdopen(write_fd, "w")


async def test_output_that_nobody_reads_can_be_left() -> None:
    reader, stdout = text_pipe()
    with stdout, reader:
        console = Console(None, stdout, None)
        with trio.fail_after(5):
            with trio.move_on_after(0.1) as scope:
                await console.write("x" * 10_000_000)
            assert scope.cancelled_caught


async def test_closed_output_ends_the_chat_quietly(desk: Desk) -> None:
    reader, stdout = text_pipe()
    reader.close()
    with stdout:
        status = await chat(
            desk.url,
            "aria",
            stdin=io.StringIO("Hello\n"),
            stdout=stdout,
            stderr=desk.errors,
            interrupts=desk.interrupts,
        )
    assert status == 1
    assert desk.errors.getvalue() == ""


async def test_files_on_disk_are_read_and_written(desk: Desk, tmp_path: Any) -> None:
    (tmp_path / "in").write_text("Hello\nlast line without an end")
    with (tmp_path / "in").open() as stdin, (tmp_path / "out").open("w") as stdout:
        status = await chat(
            desk.url, "aria", stdin=stdin, stdout=stdout, stderr=stdout, interrupts=desk.interrupts
        )
    assert status == 0
    lines = (tmp_path / "out").read_text().splitlines()
    assert lines[-2:] == ["Aria: You said Hello.", "Aria: You said last line without an end."]


async def test_a_closed_standard_input_is_an_end() -> None:
    assert await Console(None, None, None).read_line("> ") is None
    await Console(None, None, None).complain("nobody hears this")


async def test_the_longest_line_is_read_and_a_longer_one_is_not() -> None:
    async def type_lines() -> None:
        for text in ("x" * MAX_LINE_BYTES + "\n", "x" * (MAX_LINE_BYTES + 1) + "\n", "y\n"):
            await trio.to_thread.run_sync(keyboard.type, text)
        keyboard.end()

    keyboard = Keyboard()
    console = Console(keyboard.file, None, None)
    with keyboard.file, trio.fail_after(10):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(type_lines)
            assert await console.read_line("") == "x" * MAX_LINE_BYTES
            with pytest.raises(LineTooLong):
                await console.read_line("")
            assert await console.read_line("") == "y"
            assert await console.read_line("") is None


@pytest.mark.parametrize(
    ("environment", "expected"),
    [({}, "\x1b[1mAria\x1b[0m"), ({"NO_COLOR": "1"}, "Aria"), ({"TERM": "dumb"}, "Aria")],
)
def test_colours_are_for_terminals(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    master, slave = pty.openpty()
    with os.fdopen(master, "rb", 0), os.fdopen(slave, "w") as stdout:
        assert Console(None, stdout, None).styled("Aria", 1) == expected
    assert Console(None, io.StringIO(), None).styled("Aria", 1) == "Aria"


# The real server


async def test_without_a_model_it_says_so_and_the_talk_can_go_on_another_day(tmp_path: Path) -> None:
    async with serving(tmp_path / "p.db") as server:
        first, second, errors = io.StringIO(), io.StringIO(), io.StringIO()
        async with open_client(server.url) as client:
            conversation_id = (await client.switch("kira")).conversation_id
        for screen, line in ((first, "I am called Ann."), (second, "What did I say?")):
            status = await chat(
                server.url, "kira", line, conversation_id=conversation_id, stdout=screen, stderr=errors
            )
            assert status == 0
        assert errors.getvalue() == f"{NO_MODEL}\n" * 2
        assert "I am called Ann." in second.getvalue()


# A person at a terminal

PERSON = """
import fcntl, sys, termios, trio
fcntl.ioctl(0, termios.TIOCSCTTY, 0)
from persona.terminal import chat
sys.exit(trio.run(chat, sys.argv[1], "aria"))
"""


class Pty:
    """The outer side of a terminal."""

    def __init__(self) -> None:
        self.master, self.slave = pty.openpty()
        self.seen = ""
        self.transcript = ""
        self.attributes = termios.tcgetattr(self.slave)

    def type(self, text: str) -> None:
        os.write(self.master, text.encode())

    async def wait_for(self, text: str) -> None:
        """Wait until the text is shown behind what was waited for before."""
        while text not in self.seen:
            await trio.lowlevel.wait_readable(self.master)
            shown = os.read(self.master, 65536).decode()
            self.seen += shown
            self.transcript += shown
        self.seen = self.seen.partition(text)[2]

    def close(self) -> None:
        os.close(self.master)
        os.close(self.slave)


@pytest.mark.parametrize("leave_with", ["\x03", "\x04", "/quit\n"])
async def test_a_person_at_a_terminal(leave_with: str, server: FakeServer) -> None:
    server.on("persona.chat_stream", once_upon)
    terminal = Pty()
    try:
        with trio.fail_after(20):
            async with listening(server.serve_stream) as url, trio.open_nursery() as nursery:
                process = await nursery.start(_run_at, terminal, url)
                await terminal.wait_for("you> ")
                terminal.type("Hello\n")
                await terminal.wait_for("Once upon")
                terminal.type("\x03")
                await server.wait_for("stream.cancel")
                await terminal.wait_for("[stopped]")
                await terminal.wait_for("you> ")
                server.on("persona.chat_stream", answer_back)
                terminal.type("one\ntwo\n")
                await terminal.wait_for("Yes?")
                await terminal.wait_for("Yes?")
                await terminal.wait_for("you> ")
                terminal.type("half a line" if leave_with == "\x03" else "")
                terminal.type(leave_with)
                await terminal.wait_for("--conversation c-1")
                assert await process.wait() == 0
        said = [request["params"]["message"] for request in server.of("persona.chat_stream")]
        assert said == ["Hello", "one", "two"]
        # Bracketed paste would make one message of several lines, and the shell would have to undo it.
        assert "\x1b[?2004h" not in terminal.transcript
        # Ctrl-C leaves the line editor in mid-line; the shell must get its terminal back.
        assert termios.tcgetattr(terminal.slave) == terminal.attributes
    finally:
        terminal.close()


async def _run_at(
    terminal: Pty, url: str, *, task_status: trio.TaskStatus[trio.Process] = trio.TASK_STATUS_IGNORED
) -> None:
    process = await trio.lowlevel.open_process(
        [sys.executable, "-c", PERSON, url],
        stdin=terminal.slave,
        stdout=terminal.slave,
        stderr=terminal.slave,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm"},
    )
    try:
        task_status.started(process)
        await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
