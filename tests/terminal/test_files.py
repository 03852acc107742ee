"""What is read from and written to: pipes, files, nothing at all; and the real server."""

import io
import os
import pty
from pathlib import Path
from typing import Any, TextIO

import pytest
import trio

from persona.client import open_client
from persona.console import MAX_LINE_BYTES, Console, LineTooLong
from persona.terminal import NO_MODEL, chat
from tests.serving import serving
from tests.terminal.desk import Desk, Keyboard


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
