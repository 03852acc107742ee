"""The composition root: binding, refusals to start, and what is left behind."""

import contextlib
import os
import sqlite3
from pathlib import Path

import httpx2
import pytest
import trio
import trio_websocket

from persona.app import open_http_listeners, open_listeners, run_server
from persona.errors import DatabaseError, StartupError
from persona.testing import settings_with
from tests.serving import dial, free_ports, serving


async def test_port_0_picks_one_and_one_address_only() -> None:
    (listener,) = await open_listeners("localhost", 0)
    assert listener.socket.getsockname()[1] > 0
    await listener.aclose()


async def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    async with serving(tmp_path / "a.db") as server:
        with pytest.raises(StartupError, match=rf"cannot listen on 127.0.0.1:{server.port}: "):
            await open_listeners("127.0.0.1", server.port)


async def test_the_http_port_in_use_is_one_line_and_frees_the_other(tmp_path: Path) -> None:
    (taken,) = await open_listeners("127.0.0.1", 0)
    async with taken:
        port, http_port = free_ports(1)[0], taken.socket.getsockname()[1]
        settings = settings_with(
            server={"port": port, "http_port": http_port}, database={"path": str(tmp_path / "p.db")}
        )
        with pytest.raises(StartupError) as caught:
            await run_server(settings, on_listening=print)
        assert str(caught.value) == (
            f"cannot listen on 127.0.0.1:{http_port}: Address already in use "
            "(for HTTP; --http-port takes another port, or 0 for none)"
        )
        for again in await open_listeners("127.0.0.1", port):
            await again.aclose()


async def test_without_a_port_there_is_no_http() -> None:
    assert await open_http_listeners(settings_with(server={"http_port": 0}).server) == []


async def test_http_is_served_beside_the_websocket(tmp_path: Path) -> None:
    (http_port,) = free_ports(1)
    async with (
        serving(tmp_path / "p.db", server={"http_port": http_port}) as server,
        httpx2.AsyncClient(base_url=server.pages, trust_env=False) as browser,
    ):
        assert server.pages == f"http://127.0.0.1:{http_port}"
        assert (await browser.get("/config.json")).json()["url"] == server.url
        assert (await browser.get("/readyz")).json() == {"ready": True}
        # The page's own origin is let in as it is, another site's is not.
        async with dial(server.url, Origin=server.pages) as wire:
            await wire.alive()
            figures = (await browser.get("/metrics")).text
            assert "\npersona_connections 1.0\n" in figures
        with pytest.RaisesGroup(trio_websocket.ConnectionRejected) as caught:
            async with dial(server.url, Origin="http://evil.example:8080"):
                pass
        (rejected,) = caught.value.exceptions
        assert isinstance(rejected, trio_websocket.ConnectionRejected)
        assert rejected.status_code == 403


async def test_not_ready_from_the_moment_the_drain_begins_until_the_end(tmp_path: Path) -> None:
    (http_port,) = free_ports(1)
    slow = {"backend": "scripted", "scripted_first_token_s": 0.0, "scripted_tokens_per_s": 0.5}
    async with (
        serving(
            tmp_path / "p.db", server={"http_port": http_port, "graceful_timeout_s": 60.0}, llm=slow
        ) as server,
        httpx2.AsyncClient(base_url=server.pages, trust_env=False) as browser,
        dial(server.url) as wire,
    ):
        await wire.call("events.subscribe", {"topics": ["system"]})
        chat = await wire.start("persona.chat_stream", {"persona_id": "aria", "message": "Hello"})
        while (await wire.receive())["result"]["event_type"] != "stream_chunk":
            pass
        server.stop.set()
        while (message := await wire.receive()).get("method") != "event":
            pass
        assert message["params"]["type"] == "system.draining"
        answer = await browser.get("/readyz")
        assert (answer.status_code, answer.json()) == (503, {"ready": False, "reason": "draining"})
        assert (await browser.get("/livez")).status_code == 200
        await wire.send({"jsonrpc": "2.0", "method": "stream.cancel", "params": {"request_id": chat}})
        assert await wire.close_code() == 1012
    with pytest.raises(OSError, match="all attempts to connect"):
        await trio.open_tcp_stream("127.0.0.1", http_port)


async def test_not_ready_while_another_program_holds_the_database(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("persona.web.app.DATABASE_TIMEOUT_S", 0.3)
    (http_port,) = free_ports(1)
    async with (
        serving(tmp_path / "p.db", server={"http_port": http_port}) as server,
        httpx2.AsyncClient(base_url=server.pages, trust_env=False, timeout=20) as browser,
    ):
        with contextlib.closing(sqlite3.connect(tmp_path / "p.db", isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            answer = await browser.get("/readyz")
            assert (answer.status_code, answer.json()) == (503, {"ready": False, "reason": "database"})
            assert (await browser.get("/livez")).status_code == 200
        with trio.fail_after(20):
            while (await browser.get("/readyz")).status_code != 200:
                await trio.sleep(0.05)


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

    (http_port,) = free_ports(1)
    sections = {"server": {"http_port": http_port}}
    async with serving(tmp_path / "warm-up.db", **sections):
        pass
    before = counts()
    async with serving(tmp_path / "p.db", **sections) as server:
        async with httpx2.AsyncClient(base_url=server.pages, trust_env=False) as browser:
            assert (await browser.get("/readyz")).status_code == 200
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
