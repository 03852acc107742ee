"""The composition root: binding, refusals to start, and what is left behind."""

import os
from pathlib import Path

import pytest
import trio

from persona.app import open_listeners, run_server
from persona.errors import DatabaseError, StartupError
from persona.testing import settings_with
from tests.serving import dial, serving


async def test_port_0_picks_one_and_one_address_only() -> None:
    (listener,) = await open_listeners("localhost", 0)
    assert listener.socket.getsockname()[1] > 0
    await listener.aclose()


async def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    async with serving(tmp_path / "a.db") as server:
        with pytest.raises(StartupError, match=rf"cannot listen on 127.0.0.1:{server.port}: "):
            await open_listeners("127.0.0.1", server.port)


async def test_the_network_is_not_served_without_tokens() -> None:
    with pytest.raises(StartupError, match=r"auth\.tokens"):
        await run_server(settings_with(server={"host": "0.0.0.0"}), on_listening=print)


async def test_a_bad_database_refuses_to_start_and_frees_the_port(tmp_path: Path) -> None:
    (listener,) = await open_listeners("127.0.0.1", 0)
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    settings = settings_with(server={"port": port}, database={"path": str(tmp_path)})
    with pytest.raises(DatabaseError, match=str(tmp_path)):
        await run_server(settings, on_listening=print)
    for again in await open_listeners("127.0.0.1", port):
        await again.aclose()


async def test_nothing_is_left_behind(tmp_path: Path) -> None:
    def counts() -> tuple[int, int]:
        return len(os.listdir("/proc/self/fd")), trio.lowlevel.current_statistics().tasks_living  # noqa: PTH208

    async with serving(tmp_path / "warm-up.db"):
        pass
    before = counts()
    async with serving(tmp_path / "p.db") as server:
        async with dial(server.url) as one, dial(server.url) as two:
            await one.call("persona.switch", {"persona_id": "aria"})
            await one.start("persona.chat_stream", {"message": "Hello"})
            await two.alive()
        with trio.fail_after(10):
            while (await _connections(server.url)) > 1:
                await trio.sleep(0.01)
    assert counts() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["p.db", "warm-up.db"]


async def _connections(url: str) -> int:
    async with dial(url) as wire:
        return int((await wire.call("system.status"))["active_connections"])
