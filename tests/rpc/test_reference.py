"""`docs/protocol.md` and the code say the same."""

from pathlib import Path

import pytest
from trio.testing import MockClock

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
    import trio

    trio.run(_write)
