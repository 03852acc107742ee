"""The echo that the fuzzing client talks to is the real server but for its answers."""

import pytest
import trio

from tests.autobahn.echo import MAX_MESSAGE_BYTES, open_echo
from tests.serving import dial


@pytest.mark.parametrize("engine", ["trio-websocket", "sansio"])
async def test_text_comes_back_as_it_was_and_binary_is_refused(engine: str) -> None:
    async with open_echo(engine) as url, dial(url) as wire:
        for text in ("", "no JSON: κόσμε", "a" * MAX_MESSAGE_BYTES):
            await wire.socket.send_message(text)
            with trio.fail_after(10):
                assert await wire.socket.get_message() == text
        await wire.socket.send_message(b"binary")
        assert await wire.close_code() == 1003
