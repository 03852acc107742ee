"""Standard input and output, and Ctrl-C; what a whole chat makes of them is in `tests/terminal`."""

import io
import os
import pty
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from persona.console import MAX_LINE_BYTES, Console, Interrupts, LineTooLong, printable


class Pipe:
    """A pipe: the test's end is a file descriptor, the console's is a file."""

    def __init__(self) -> None:
        self._read_fd, self._write_fd = os.pipe()
        self.files: list[TextIO] = []

    def into(self) -> TextIO:
        """The end to read from, for the console."""
        self.files.append(os.fdopen(self._read_fd))
        return self.files[-1]

    def out_of(self) -> TextIO:
        """The end to write to, for the console."""
        self.files.append(os.fdopen(self._write_fd, "w"))
        return self.files[-1]

    def put(self, data: bytes) -> None:
        os.write(self._write_fd, data)

    def hang_up(self) -> None:
        os.close(self._write_fd)


@pytest.fixture
def pipe() -> Iterator[Pipe]:
    pipe = Pipe()
    yield pipe
    for file in pipe.files:
        file.close()


class Terminal:
    """A terminal: `file` is the console's side, `fd` the person's."""

    def __init__(self) -> None:
        self.fd, theirs = pty.openpty()
        self.file = io.TextIOWrapper(os.fdopen(theirs, "r+b", buffering=0), write_through=True)

    def hang_up(self) -> None:
        os.close(self.fd)


@pytest.fixture
def terminal() -> Iterator[Terminal]:
    terminal = Terminal()
    with terminal.file:
        yield terminal


async def lines(console: Console) -> list[str | None]:
    """What `read_line` gives to the end of input; a line that is too long is `None`."""
    read: list[str | None] = []
    while True:
        try:
            line = await console.read_line("> ")
        except LineTooLong:
            read.append(None)
            continue
        if line is None:
            return read
        read.append(line)


# Lines in


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        (b"", []),
        (b"one\ntwo\n", ["one", "two"]),
        (b"one\r\n\r\n two \n", ["one", "", " two "]),
        (b"no end", ["no end"]),
        (b"f\xc3\xbcr\n\xff\n\xed\xa0\x80\n", ["für", "�", "���"]),
        (b"a" * MAX_LINE_BYTES + b"\n", ["a" * MAX_LINE_BYTES]),
        (b"a" * (MAX_LINE_BYTES + 1) + b"\nnext\n", [None, "next"]),
        (b"a" * (3 * MAX_LINE_BYTES), [None]),
    ],
)
async def test_lines_come_without_their_ends(
    typed: bytes, expected: list[str | None], pipe: Pipe, tmp_path: Path
) -> None:
    """From a pipe, in pieces, and from a file on disk, which cannot be waited for."""
    (tmp_path / "typed").write_bytes(typed)

    async def type_it() -> None:
        async with await trio.open_file(tmp_path / "typed", "rb") as source:
            while piece := await source.read(50_001):
                await trio.to_thread.run_sync(pipe.put, piece)
        pipe.hang_up()

    with trio.fail_after(10), (tmp_path / "typed").open(encoding="utf-8") as file:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(type_it)
            assert await lines(Console(pipe.into(), None, None)) == expected
        assert await lines(Console(file, None, None)) == expected


async def test_an_object_in_memory_is_read_and_no_input_is_the_end_of_it() -> None:
    assert await lines(Console(io.StringIO("one\r\ntwo\nthree"), None, None)) == ["one", "two", "three"]
    assert await lines(Console(None, None, None)) == []


async def test_text_that_cannot_be_sent_on_is_made_so() -> None:
    (line,) = await lines(Console(io.StringIO("a\udcffb"), None, None))
    assert line == "a?b"


async def test_a_cancelled_read_can_be_tried_again(pipe: Pipe) -> None:
    console = Console(pipe.into(), None, None)
    pipe.put(b"hal")
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(console.read_line, "> ")
            await wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    pipe.put(b"f\n")
    assert await console.read_line("> ") == "half"
    pipe.hang_up()


async def test_a_prompt_is_for_a_person_only(pipe: Pipe) -> None:
    screen = io.StringIO()
    pipe.put(b"one\n")
    pipe.hang_up()
    console = Console(pipe.into(), screen, None)
    assert not console.is_interactive
    assert await console.read_line("you> ") == "one"
    assert screen.getvalue() == ""


async def test_a_person_at_a_terminal_is_prompted_and_a_hang_up_is_the_end(terminal: Terminal) -> None:
    console = Console(terminal.file, terminal.file, None)
    assert console.is_interactive
    os.write(terminal.fd, b"hello\n")
    with trio.fail_after(5):
        assert await console.read_line("you> ") == "hello"
        shown = b""
        while b"you> " not in shown:  # what was typed is echoed, and need not come with it
            await trio.lowlevel.wait_readable(terminal.fd)
            shown += os.read(terminal.fd, 1000)
        terminal.hang_up()
        with pytest.raises(OSError, match="Input/output"):
            await console.write("anybody there?")
        assert await console.read_line("") is None


# Text out


async def test_text_goes_out_whole_and_in_the_files_own_encoding(tmp_path: Path) -> None:
    text = "für alle \u2028" * 100
    with (tmp_path / "out").open("w", encoding="latin-1", errors="strict") as file:
        await Console(None, file, None).write(text)
    assert (tmp_path / "out").read_bytes() == text.encode("latin-1", "replace")


async def test_writing_waits_for_who_reads_and_can_be_cancelled(pipe: Pipe) -> None:
    console = Console(None, pipe.out_of(), None)
    reader = pipe.into().fileno()
    text = "".join(f"{number:06}\n" for number in range(50_000))
    with trio.CancelScope() as scope:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(console.write, text)
            await wait_all_tasks_blocked()
            scope.cancel()
    assert scope.cancelled_caught
    first = os.read(reader, len(text))
    # What went out before is the text's beginning, without a gap.
    assert 0 < len(first) < len(text)
    assert text.startswith(first.decode())


async def test_a_reader_that_has_gone_is_a_broken_pipe_and_no_complaint(pipe: Pipe) -> None:
    console = Console(None, pipe.out_of(), pipe.files[0])
    pipe.into().close()
    with pytest.raises(BrokenPipeError):
        await console.write("anybody there?")
    await console.complain("nobody reads this")


async def test_a_closed_output_is_an_error_and_no_complaint() -> None:
    console = Console(None, None, None)
    with pytest.raises(OSError, match="Bad file descriptor"):
        await console.write("x")
    await console.complain("x")
    assert not console.has_colour


async def test_a_complaint_is_a_line_on_standard_error() -> None:
    screen, errors = io.StringIO(), io.StringIO()
    console = Console(None, screen, errors)
    await console.write("said")
    await console.complain("wrong")
    assert (screen.getvalue(), errors.getvalue()) == ("said", "wrong\n")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("tabs\tand\nlines stay", "tabs\tand\nlines stay"),
        ("\x1b[2Jgone\x07\r\x08", "[2Jgone"),
        ("\x9b31mred\x7f", "31mred"),
        ("abc\u202edef\u2066ghi\u2069", "abcdefghi"),
        ("fü ß 語 😀 e\u0301 \u200d", "fü ß 語 😀 e\u0301 \u200d"),
    ],
)
def test_printable_text_cannot_drive_a_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown


# Ctrl-C


async def test_an_interrupt_stops_the_innermost_block_only() -> None:
    interrupts, ended = Interrupts(), []

    async def work() -> None:
        with interrupts.stoppable() as outer:
            with interrupts.stoppable() as inner:
                await trio.sleep_forever()
            ended.append(("inner", inner.cancelled_caught, outer.cancel_called))
            await trio.sleep_forever()
        ended.append(("outer", outer.cancelled_caught, True))

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(work)
            for _ in range(2):
                await wait_all_tasks_blocked()
                interrupts.interrupt()
    assert ended == [("inner", True, False), ("outer", True, True)]


async def test_an_interrupt_with_nothing_to_stop_is_harmless_also_later() -> None:
    interrupts = Interrupts()
    interrupts.interrupt()
    with interrupts.stoppable() as scope:
        await trio.lowlevel.checkpoint()
    assert not scope.cancelled_caught
    with pytest.raises(ZeroDivisionError), interrupts.stoppable():
        raise ZeroDivisionError
    interrupts.interrupt()


async def test_while_it_is_watched_sigint_is_an_interrupt_each_time() -> None:
    interrupts = Interrupts()
    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            await nursery.start(interrupts.watch)
            for _ in range(2):
                with interrupts.stoppable() as scope:
                    signal.raise_signal(signal.SIGINT)
                    await trio.sleep_forever()
                assert scope.cancelled_caught
            nursery.cancel_scope.cancel()
