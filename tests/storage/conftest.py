"""A database with one table."""

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from persona.storage.pool import Database, open_database
from tests.storage.lanes import create


@pytest.fixture
async def database(tmp_path: Path) -> AsyncIterator[Database]:
    with trio.fail_after(20):
        async with open_database(tmp_path / "p.db") as opened:
            await opened.write(create)
            yield opened
