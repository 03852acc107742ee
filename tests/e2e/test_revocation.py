"""A token that is taken out of the settings file is of no use from then on, to whoever holds it."""

from pathlib import Path

import pytest
import trio

from persona.client import ConnectFailed, open_client
from tests.e2e.process import STREAMING, server_process
from tests.serving import dial
from tests.transport.test_tokens import ANN, BOB, line

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("engine", ["trio-websocket", "sansio"])
async def test_whoever_holds_it_is_sent_away_within_five_seconds(tmp_path: Path, engine: str) -> None:
    file = tmp_path / "settings.toml"
    file.write_text(line(ANN, BOB))
    endless = {**STREAMING, "PERSONA_LLM_SCRIPTED_TOKENS_PER_S": "1"}
    async with (
        server_process(tmp_path, PERSONA_CONFIG=str(file), PERSONA_SERVER_ENGINE=engine, **endless) as server,
        dial(server.url, Authorization="Bearer ann's") as ann,
        dial(server.url, Authorization="Bearer bob's") as bob,
    ):
        await ann.start("persona.chat_stream", {"persona_id": "aria", "message": "Tell me a long story"})
        file.write_text(line(BOB))
        with trio.fail_after(5):
            assert await ann.close_code() == 1008
        await bob.alive()
        assert await _refusal(server.url, "ann's") == 401
        file.write_text(line(ANN, BOB))
        with trio.fail_after(5):
            while await _refusal(server.url, "ann's") is not None:
                await trio.sleep(0.2)
        async with dial(server.url, Authorization="Bearer ann's") as ann:
            (conversation,) = (await ann.call("conversation.list"))["conversations"]
            history = await ann.call("conversation.history", {"conversation_id": conversation["id"]})
            assert [turn["finish_reason"] for turn in history["turns"]][1:] in ([], ["disconnected"])
        await bob.alive()


async def _refusal(url: str, token: str) -> int | None:
    try:
        async with open_client(url, token=token):
            return None
    except ConnectFailed as refused:
        return refused.status
