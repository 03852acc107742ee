"""A whole server in one task tree, over memory streams: no sockets, no threads, no disk.

    async def test_greeting(autojump_clock):
        async with open_server() as server, server.connect() as client:
            await client.switch("aria")
            answer = await client.chat("Hello")

Every part is the real one but three: streams are trio's memory streams, the database is SQLite in
memory and runs in the event loop, and the model is the scripted one. So under a `MockClock` time
is free and a test is exact; wall-clock times follow trio's clock from a fixed start.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import attrs
import trio
import trio.testing

from persona.app import open_server as open_real_server
from persona.assembly import Server
from persona.client import Client, wrap_client
from persona.config import Settings
from persona.groups import ungrouped
from persona.llm.backend import Backend
from persona.llm.scripted import ScriptedBackend
from persona.storage.pool import open_database

EPOCH = 1_767_225_600.0
"""2026-01-01T00:00:00Z: what the wall clock shows when the test begins."""
RESIDENT_BYTES = 50_000_000

QUIET: dict[str, dict[str, Any]] = {
    # Servers of several tests would meet on its port.
    "server": {"http_port": 0},
    # Time does not pass while a test works, so the bucket would never fill again.
    "limits": {"rate_limit_per_minute": 0},
    # Exactly one virtual second to the first token, then ten a second.
    "llm": {"backend": "scripted", "scripted_first_token_s": 1.0, "scripted_tokens_per_s": 10.0},
}
"""Where the settings differ from the defaults unless the test says otherwise."""


@attrs.frozen(kw_only=True)
class MemoryServer:
    """A running server. `server` holds its parts, to be looked at."""

    server: Server
    _nursery: trio.Nursery

    def connect(self, *, token: str | None = None) -> AbstractAsyncContextManager[Client]:
        """A client over a new memory stream."""
        return wrap_client(self.connect_stream(), token=token)

    def connect_stream(self) -> trio.abc.Stream:
        """The client's end of a new memory stream, for tests that speak the wire themselves."""
        ours, theirs = trio.testing.memory_stream_pair()
        self._nursery.start_soon(self.server.listener.serve_stream, theirs)
        return ours

    async def drain(self) -> None:
        """Stop as SIGTERM does: finish what runs, then send everybody away."""
        await self.server.listener.drain()


@asynccontextmanager
async def open_server(
    *, backend: Backend | None = None, **sections: dict[str, Any]
) -> AsyncIterator[MemoryServer]:
    """Run a server for the body's length.

    `sections` are settings by section, over the defaults and `QUIET`:
    `open_server(limits={"max_in_flight": 2}, personas={"recovery_s": 0})`. `backend` stands in
    for the scripted model.
    """
    settings = settings_with(**sections)
    started_at = trio.current_time()
    with ungrouped():
        async with (
            open_database(":memory:", threads=False) as database,
            open_real_server(
                settings,
                database=database,
                backend=backend or scripted_backend(settings),
                now=lambda: EPOCH + trio.current_time() - started_at,
                resident_bytes=lambda: RESIDENT_BYTES,
            ) as server,
            trio.open_nursery() as nursery,
        ):
            yield MemoryServer(server=server, nursery=nursery)
            nursery.cancel_scope.cancel()


def settings_with(**sections: dict[str, Any]) -> Settings:
    """The settings `open_server` uses for these sections."""
    settings = Settings()
    for name in {*QUIET, *sections}:
        values = {**QUIET.get(name, {}), **sections.get(name, {})}
        settings = attrs.evolve(settings, **{name: attrs.evolve(getattr(settings, name), **values)})
    return settings


def scripted_backend(settings: Settings) -> ScriptedBackend:
    """The scripted model as the settings want it."""
    llm = settings.llm
    return ScriptedBackend(
        seed=llm.scripted_seed,
        first_token_s=llm.scripted_first_token_s,
        tokens_per_s=llm.scripted_tokens_per_s,
    )
