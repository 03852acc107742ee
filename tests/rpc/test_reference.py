"""`docs/protocol.md` and the code say the same."""

import json
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import MockClock
from trio_websocket import wrap_client_stream

from persona.rpc.reference import errors_markdown, methods_markdown
from persona.testing import open_server

PAGE = Path(__file__).parents[2] / "docs" / "protocol.md"


def between(page: str, name: str) -> str:
    return page.split(f"<!-- {name}: begin -->\n")[1].split(f"<!-- {name}: end -->")[0].strip()


async def test_the_methods_are_those_of_the_registry(autojump_clock: MockClock) -> None:
    async with open_server() as server:
        expected = methods_markdown(server.server.registry.specs()).strip()
    assert between(PAGE.read_text(), "methods") == expected, "run: python -m tests.rpc.test_reference"


def test_the_errors_are_those_of_the_tree() -> None:
    assert between(PAGE.read_text(), "errors") == errors_markdown().strip()


@pytest.mark.parametrize("code", [1003, 1008, 1009, 1012, 1013])
def test_every_close_code_we_use_is_there(code: int) -> None:
    assert f"| {code} |" in PAGE.read_text()


def fits(shown: Any, real: Any) -> bool:
    """Whether an answer is as the page shows it; fields that the page leaves out may be there."""
    match shown:
        case dict():
            return isinstance(real, dict) and all(
                name in real and fits(value, real[name]) for name, value in shown.items()
            )
        case list():
            return len(shown) == len(real) and all(map(fits, shown, real))
    return bool(shown == real)


async def test_the_frames_of_the_example_are_real(autojump_clock: MockClock) -> None:
    asked = 0
    async with open_server() as server, server.connect() as client, trio.open_nursery() as nursery:
        where = (await client.switch("aria")).conversation_id
        wire = await wrap_client_stream(nursery, server.connect_stream(), "localhost", "/mcp")
        for line in between(PAGE.read_text(), "branches").strip("`\n").splitlines():
            frame = line[4:].replace("CONVERSATION", where).replace(", ...", "")
            if line.startswith("-->"):
                await wire.send_message(frame)
                asked += 1
            else:
                reply = json.loads(await wire.get_message())
                assert fits(json.loads(frame), reply), (line, reply)
        nursery.cancel_scope.cancel()
    assert asked == 9


def test_a_frame_that_is_not_real_would_be_noticed() -> None:
    real = {"id": 1, "result": {"turns": [{"id": 7}], "more": True}}
    assert fits({"id": 1, "result": {"turns": [{"id": 7}]}}, real)
    for shown in (
        {"id": 2},
        {"error": {}},
        {"result": {"turns": []}},
        {"result": {"turns": [{"id": 8}]}},
        {"result": {"less": True}},
    ):
        assert not fits(shown, real)


async def _write() -> None:
    async with open_server() as server:
        methods = methods_markdown(server.server.registry.specs()).strip()
    page = PAGE.read_text()
    for name, text in (("methods", methods), ("errors", errors_markdown().strip())):
        old = page.split(f"<!-- {name}: begin -->\n")[1].split(f"<!-- {name}: end -->")[0]
        page = page.replace(
            f"<!-- {name}: begin -->\n{old}<!-- {name}: end -->",
            f"<!-- {name}: begin -->\n{text}\n<!-- {name}: end -->",
        )
    PAGE.write_text(page)


if __name__ == "__main__":
    trio.run(_write)
