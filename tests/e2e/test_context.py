"""A long conversation through a real model server: what is sent upstream fits, and the answer says what it
was made of."""

from pathlib import Path
from typing import Any

import pytest
import trio

from persona.llm.prompt import EARLIER, SUMMARISE
from tests.e2e.exchanges import llm_settings
from tests.llm.standin import open_standin
from tests.serving import dial, serving

pytestmark = pytest.mark.usefixtures("nothing_crashed")
LINE = "word " * 60


def reply(body: dict[str, Any]) -> str:
    return "They met." if body["messages"][0]["content"] == SUMMARISE else "It is so."


async def test_a_conversation_longer_than_the_context_is_summed_up_and_answered(tmp_path: Path) -> None:
    asked = {"persona_id": "aria", "token_budget": 100, "include_context": True}
    async with open_standin("ollama", reply=reply) as model:
        llm = llm_settings(model, context_tokens=1024)
        limits = {"rate_limit_per_minute": 0}
        async with serving(tmp_path / "p.db", llm=llm, limits=limits) as server, dial(server.url) as wire:
            with trio.fail_after(20):
                for number in range(40):
                    answer = await wire.call("persona.chat", {"message": f"{number} {LINE}", **asked})
                    used = answer["context"]
                    assert used["estimated_tokens"] <= 1024 - 100
                    if used["summary"]:
                        break
    assert used["summary"]
    last = model.requests[-1].body["messages"]
    assert last[1]["content"].startswith(EARLIER.format("They met."))
    assert used["turns"] == len(last) - 2


async def test_what_was_used_is_told_in_every_style_and_only_when_asked(tmp_path: Path) -> None:
    llm = {"backend": "scripted", "scripted_first_token_s": 0, "scripted_tokens_per_s": 0}
    said = {"message": "Hello", "persona_id": "aria"}
    async with serving(tmp_path / "p.db", llm=llm) as server, dial(server.url) as wire:
        assert (await wire.call("persona.chat", said))["context"] is None
        asked = {**said, "include_context": True}
        used = (await wire.call("persona.chat", asked))["context"]
        assert (used["turns"], used["summary"]) == (2, False)
        assert used["estimated_tokens"] > 0
        for params, expected in ((said, None), (asked, 6)):
            await wire.start("persona.chat_stream", params)
            while (event := (await wire.receive())["result"])["event_type"] != "stream_complete":
                pass
            assert event["data"].get("context", {}).get("turns") == expected
