"""What a user has in front of them, and answers that a server plays."""

import io
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from persona.console import Interrupts
from persona.terminal import chat
from tests.client.fake_server import FakeConnection, FakeServer

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


async def answer_back(connection: FakeConnection, request: Request) -> None:
    await connection.answer(request, "Yes?")
