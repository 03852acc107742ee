"""Ctrl-C, and a person at a real terminal."""

import io
import os
import pty
import signal
import sys
import termios

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from persona.terminal import chat
from tests.client.fake_server import FakeServer, listening
from tests.terminal.desk import Desk, answer_back, once_upon, running


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
