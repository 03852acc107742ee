"""`persona demo`: a server and a chat with it, in one process, on the real clock."""

from pathlib import Path
from typing import Any

import pytest
import trio

from persona import terminal
from persona.config import Settings
from persona.demo import run_demo
from persona.errors import StartupError
from persona.testing import settings_with
from tests.serving import FAST


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_with(**FAST, database={"path": str(tmp_path / "p.db")})


async def demo(settings: Settings, **options: Any) -> int:
    with trio.fail_after(20):
        return await run_demo(settings, **{"say": None, "persona": "aria", **options})


async def test_one_line_is_answered_and_the_server_ends_with_the_chat(
    settings: Settings, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    urls = []
    chat = terminal.chat

    async def noted(url: str, *args: Any, **options: Any) -> int:
        urls.append(url)
        return await chat(url, *args, **options)

    monkeypatch.setattr(terminal, "chat", noted)
    assert await demo(settings, say="Are you an AI?") == 0
    assert "scripted stand-in" in capsys.readouterr().out
    (url,) = urls
    port = int(url.removeprefix("ws://127.0.0.1:").removesuffix("/mcp"))
    assert port != 0
    with pytest.raises(OSError, match="connect"):
        await trio.open_tcp_stream("127.0.0.1", port)


async def test_another_day_goes_on_with_the_conversation(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    async def talk(url: str, persona: str, say: str | None, *, conversation_id: str | None) -> int:
        async with terminal.open_client(url) as client:
            answer = await client.chat(say or "", persona_id=persona, conversation_id=conversation_id)
            history = await client.history(conversation_id=answer.conversation_id)
            seen.append((answer.conversation_id, [turn.content for turn in history.turns][::2]))
        return 0

    monkeypatch.setattr(terminal, "chat", talk)
    await demo(settings, say="one")
    await demo(settings, say="two", conversation_id=seen[0][0])
    assert seen[1] == (seen[0][0], ["one", "two"])


@pytest.mark.parametrize("code", [0, 1, 7])
async def test_the_exit_code_is_the_chats(
    code: int, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def talk(*_args: Any, **_options: Any) -> int:
        return code

    monkeypatch.setattr(terminal, "chat", talk)
    assert await demo(settings) == code


async def test_nobody_by_that_name_is_a_failure_and_no_hang(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert await demo(settings, say="Hello", persona="nobody") == 1
    assert "persona_not_found" in capsys.readouterr().err


async def test_a_chat_that_crashes_takes_the_server_with_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def talk(*_args: Any, **_options: Any) -> int:
        raise ZeroDivisionError

    monkeypatch.setattr(terminal, "chat", talk)
    with pytest.RaisesGroup(ZeroDivisionError, flatten_subgroups=True):
        await demo(settings)


async def test_a_server_that_cannot_start_says_why_and_nobody_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    talked = []

    async def talk(*_args: Any, **_options: Any) -> int:
        talked.append(True)
        return 0

    monkeypatch.setattr(terminal, "chat", talk)
    (tmp_path / "p.db").write_text("this is no database, and long enough to be told from one" * 100)
    settings = settings_with(**FAST, database={"path": str(tmp_path / "p.db")})
    with pytest.RaisesGroup(StartupError, flatten_subgroups=True, allow_unwrapped=True):
        await demo(settings)
    assert talked == []
