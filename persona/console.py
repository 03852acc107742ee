"""Standard input and output, and Ctrl-C, for a program on trio.

Reading and writing wait for the file descriptor in trio and then do what cannot block, so both can
be cancelled and neither holds up other tasks (a whole server, in `persona demo`). The one
exception is a line editor: see `_EditedInput`.
"""

import errno
import importlib
import io
import os
import signal
import sys
import termios
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Protocol, TextIO

import trio

MAX_LINE_BYTES = 1024 * 1024
"""Longest line read; far above what any server takes, and a bound for what a pipe can make us keep."""
READ_BYTES = 65536
WRITE_BYTES = 512
"""What a pipe or terminal takes without blocking once it is writable: POSIX's least PIPE_BUF."""

# A C0 or C1 control can move the cursor, rename the window or answer for the user; a bidirectional
# override can make text read as something else than it is.
_CONTROLS = {
    code: None
    for code in (*range(0x20), *range(0x7F, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A))
    if chr(code) not in "\n\t"
}


def printable(text: str) -> str:
    """`text` without what could drive a terminal; newlines and tabs stay."""
    return text.translate(_CONTROLS)


def sendable(text: str) -> str:
    """`text` with each lone surrogate, from an undecodable byte, made a question mark: JSON has none."""
    return text.encode("utf-8", "replace").decode()


class LineTooLong(Exception):
    """A line of more than `MAX_LINE_BYTES`; it was skipped."""


class _Input(Protocol):
    async def read_line(self, prompt: str) -> str | None: ...


class Console:
    """One user at one terminal, or what stands in for them. For one task at a time."""

    def __init__(self, stdin: TextIO | None, stdout: TextIO | None, stderr: TextIO | None) -> None:
        self._out = _Output(stdout)
        self._err = _Output(stderr)
        self.is_interactive = _is_terminal(stdin) and _is_terminal(stdout)
        """Whether somebody sits there, to be shown a prompt and passing remarks."""
        self.has_colour = (
            _is_terminal(stdout) and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"
        )
        self._input = self._open_input(stdin)

    def _open_input(self, stdin: TextIO | None) -> _Input:
        fd = _fileno(stdin)
        if stdin is None:
            return _TextInput(io.StringIO())
        if fd is None:
            return _TextInput(stdin)
        if self.is_interactive and stdin is sys.stdin and _has_line_editor():
            return _EditedInput()
        return _FdInput(fd, self._out)

    async def read_line(self, prompt: str) -> str | None:
        """The next line without its end, or `None` at the end of input. Raises `LineTooLong`.

        `prompt` is shown to a person only. Cancelling is safe, but may lose a line half typed.
        """
        line = await self._input.read_line(prompt if self.is_interactive else "")
        return None if line is None else sendable(line)

    async def write(self, text: str) -> None:
        """Write to standard output. Raises `OSError` when nobody is there to read, `BrokenPipeError`
        for one."""
        await self._out.write(text)

    async def complain(self, line: str) -> None:
        """Write a line to standard error, or nothing where that is closed."""
        with suppress(OSError):
            await self._err.write(f"{line}\n")

    def styled(self, text: str, code: int) -> str:
        """`text` in an ANSI style, where there are colours."""
        return f"\x1b[{code}m{text}\x1b[0m" if self.has_colour else text

    @contextmanager
    def restored(self) -> Iterator[None]:
        """Leave the terminal as it was found, also when a line editor was left in mid-line."""
        try:
            saved = termios.tcgetattr(0) if isinstance(self._input, _EditedInput) else None
        except termios.error:
            saved = None
        try:
            yield
        finally:
            if saved is not None:
                with suppress(termios.error):
                    termios.tcsetattr(0, termios.TCSADRAIN, saved)


class Interrupts:
    """What Ctrl-C stops: the innermost `stoppable` block."""

    def __init__(self) -> None:
        self._scopes: list[trio.CancelScope] = []

    @contextmanager
    def stoppable(self) -> Iterator[trio.CancelScope]:
        """A block that `interrupt` cancels; look at `cancelled_caught` behind it."""
        with trio.CancelScope() as scope:
            self._scopes.append(scope)
            try:
                yield scope
            finally:
                self._scopes.remove(scope)

    def interrupt(self) -> None:
        """Cancel the innermost block, if there is one."""
        if self._scopes:
            self._scopes[-1].cancel()

    async def watch(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Interrupt at every SIGINT, until cancelled. For the main thread only."""
        with trio.open_signal_receiver(signal.SIGINT) as signals:
            task_status.started()
            async for _ in signals:
                self.interrupt()


class _Output:
    def __init__(self, file: TextIO | None) -> None:
        self._file = file
        self._fd = _fileno(file)
        self._encoding = getattr(file, "encoding", None) or "utf-8"

    async def write(self, text: str) -> None:
        if self._file is None:
            raise OSError(errno.EBADF, os.strerror(errno.EBADF))
        if self._fd is None:
            self._file.write(text)
            self._file.flush()
            await trio.lowlevel.checkpoint()
            return
        data = memoryview(text.encode(self._encoding, "replace"))
        while data:
            # A file on disk cannot be waited for, and need not be.
            with suppress(PermissionError):
                await trio.lowlevel.wait_writable(self._fd)
            with suppress(BlockingIOError):
                data = data[os.write(self._fd, data[:WRITE_BYTES]) :]


class _TextInput:
    """An object in memory: reading it does not block."""

    def __init__(self, file: TextIO) -> None:
        self._file = file

    async def read_line(self, prompt: str) -> str | None:
        await trio.lowlevel.checkpoint()
        line = self._file.readline()
        return line.rstrip("\r\n") if line else None


class _FdInput:
    """A pipe, a file, or a terminal that edits lines itself."""

    def __init__(self, fd: int, out: _Output) -> None:
        self._fd = fd
        self._out = out
        self._buffer = bytearray()
        self._skipping = False
        self._at_end = False

    async def read_line(self, prompt: str) -> str | None:
        if prompt:
            await self._out.write(prompt)
        while True:
            end = self._buffer.find(b"\n")
            if end >= 0 or self._at_end:
                break
            if len(self._buffer) > MAX_LINE_BYTES:
                self._skipping = True
                self._buffer.clear()
            await self._read()
        if end < 0 and not self._buffer and not self._skipping:
            return None
        line = bytes(self._buffer[: end if end >= 0 else None])
        del self._buffer[: end + 1 if end >= 0 else None]
        if self._skipping or len(line) > MAX_LINE_BYTES:
            self._skipping = False
            raise LineTooLong(f"the line is longer than {MAX_LINE_BYTES} bytes")
        return line.decode("utf-8", "replace").rstrip("\r")

    async def _read(self) -> None:
        # A file on disk cannot be waited for, and need not be.
        with suppress(PermissionError):
            await trio.lowlevel.wait_readable(self._fd)
        try:
            data = os.read(self._fd, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""  # The terminal has hung up.
        self._buffer += data
        self._at_end = not data


class _EditedInput:
    """A person at a terminal, with Python's line editor: history, arrow keys.

    The editor can only be called and waited for, so it gets a thread, which is abandoned when
    the wait is cancelled: nothing can interrupt it, and the program ends soon after. It holds no
    resource but the terminal, which `Console.restored` puts right, and takes the input from the
    terminal itself, not through a buffer whose lock the interpreter wants at its end.
    """

    def __init__(self) -> None:
        self._limiter = trio.CapacityLimiter(1)
        self._lines: list[str] = []

    async def read_line(self, prompt: str) -> str | None:
        while not self._lines:
            try:
                text = await trio.to_thread.run_sync(
                    input, prompt, abandon_on_cancel=True, limiter=self._limiter
                )
            except (EOFError, OSError):
                return None
            # Some editors hand out several pasted lines as one text.
            self._lines = [line.rstrip("\r") for line in text.split("\n")]
        return self._lines.pop(0)


def _has_line_editor() -> bool:
    # Importing it is what makes `input` use it. Python turns its bracketed paste off, so that
    # each line of a paste is a line here, too.
    try:
        importlib.import_module("readline")
    except ImportError:
        return False
    return True


def _is_terminal(file: TextIO | None) -> bool:
    return file is not None and not file.closed and file.isatty()


def _fileno(file: TextIO | None) -> int | None:
    try:
        return None if file is None else file.fileno()
    except (OSError, ValueError):
        return None
