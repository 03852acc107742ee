"""`persona tasks`: over a real socket, as text and as JSON; and what it says when it cannot."""

import json
from pathlib import Path

import pytest

from persona.config.sections import AuthToken
from persona.errors import StartupError
from persona.tasks import read_tasks
from persona.transport.admission import token_hash
from tests.serving import serving


async def test_it_reads_a_running_server(tmp_path: Path) -> None:
    async with serving(tmp_path / "p.db") as server:
        text = await read_tasks(server.url, token=None, siblings=1, as_json=False)
        tree = json.loads(await read_tasks(server.url, token=None, siblings=1, as_json=True))
    assert "- monitor " in text
    assert "background worker" in text
    assert text.splitlines()[-1].endswith(" tasks")
    assert tree["name"] == "<init>"
    assert tree["nurseries"]


async def test_a_client_without_the_role_is_told_so_in_one_line(tmp_path: Path) -> None:
    tokens = (AuthToken("ann", "user", token_hash("ann")),)
    async with serving(tmp_path / "p.db", auth={"tokens": tokens}) as server:
        with pytest.raises(StartupError, match=r"system\.tasks needs the admin role"):
            await read_tasks(server.url, token="ann", siblings=1, as_json=False)
        with pytest.raises(StartupError, match=r"^ws://[^\n]*$"):
            await read_tasks(server.url, token=None, siblings=1, as_json=False)


async def test_a_server_that_is_not_there_is_one_line() -> None:
    with pytest.raises(StartupError, match=r"^ws://127\.0\.0\.1:1/mcp: [^\n]+$"):
        await read_tasks("ws://127.0.0.1:1/mcp", token=None, siblings=1, as_json=False)
