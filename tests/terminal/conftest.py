"""A desk, and the server that a test plays."""

from collections.abc import AsyncIterator

import pytest
import trio

from tests.client.fake_server import FakeServer, listening
from tests.terminal.desk import Desk, Keyboard


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
