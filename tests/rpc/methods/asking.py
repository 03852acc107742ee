"""Calls as a client makes them, to a whole server in the test's task tree."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from persona.client import Client, RemoteError
from persona.config.sections import AuthToken
from persona.llm.backend import Backend
from persona.testing import MemoryServer, open_server
from persona.transport.admission import token_hash

TOKENS = (AuthToken("ann", "user", token_hash("ann")), AuthToken("root", "admin", token_hash("root")))
"""Two users, each with their name for a token: `open_party(auth={"tokens": TOKENS})`."""


@attrs.frozen
class Asking:
    """One client. Results come as they are on the wire."""

    client: Client

    async def ask(self, method: str, /, **params: Any) -> Any:
        """The result."""
        return await self.client.call(method, params)

    async def refused(self, method: str, /, **params: Any) -> RemoteError:
        """The error."""
        with pytest.raises(RemoteError) as caught:
            await self.client.call(method, params)
        return caught.value

    async def news(self) -> list[Any]:
        """The notifications that have come, without waiting for more."""
        await wait_all_tasks_blocked()
        events, came = self.client.events(), []
        while True:
            try:
                came.append(events.receive_nowait().params)
            except trio.WouldBlock:
                return came


@attrs.frozen
class Party:
    server: MemoryServer
    _nursery: trio.Nursery

    async def join(self, token: str | None = None) -> Asking:
        """A client that stays to the end."""
        return await self._nursery.start(self._stay, token)

    async def _stay(self, token: str | None, *, task_status: trio.TaskStatus[Asking]) -> None:
        async with self.server.connect(token=token) as client:
            task_status.started(Asking(client))
            await trio.sleep_forever()


@asynccontextmanager
async def open_party(*, backend: Backend | None = None, **sections: dict[str, Any]) -> AsyncIterator[Party]:
    async with open_server(backend=backend, **sections) as server, trio.open_nursery() as nursery:
        yield Party(server, nursery)
        nursery.cancel_scope.cancel()
