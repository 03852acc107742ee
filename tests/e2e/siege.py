"""A server in this process, on a real socket, with its parts to be looked at; and what it holds, counted."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import psutil
import trio
from prometheus_client import Counter
from trio.testing import wait_all_tasks_blocked

from persona.app import Server, open_listeners, open_server
from persona.llm.backend import Backend
from persona.storage.pool import open_database
from persona.testing import scripted_backend, settings_with
from tests.serving import FAST

ENGINES = ("trio-websocket", "sansio")


@attrs.frozen
class Held:
    """What this process holds, its server and everything else."""

    tasks: int
    descriptors: int

    @classmethod
    async def settled(cls) -> "Held":
        """What it holds when nothing is going on."""
        await wait_all_tasks_blocked(0.02)
        return cls.now()

    @classmethod
    def now(cls) -> "Held":
        return cls(trio.lowlevel.current_statistics().tasks_living, psutil.Process().num_fds())


@attrs.frozen(kw_only=True)
class Besieged:
    """A running server."""

    server: Server
    port: int

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/mcp"

    @property
    def refused(self) -> dict[str, int]:
        """Handshakes refused, by reason."""
        return _counts(self.server.metrics.refused)

    @property
    def closed(self) -> dict[str, int]:
        """Connections ended, by cause."""
        return _counts(self.server.metrics.closed)

    @property
    def connections(self) -> int:
        return len(self.server.listener.connections)

    async def deserted(self, *, within_s: float = 10.0) -> None:
        """Nobody is connected any more."""
        await until(lambda: not self.connections, within_s=within_s)


def _counts(counter: Counter) -> dict[str, int]:
    return {
        next(iter(sample.labels.values())): int(sample.value)
        for family in counter.collect()
        for sample in family.samples
        if sample.name.endswith("_total")
    }


async def until(condition: Callable[[], object], *, within_s: float = 10.0) -> None:
    """Wait for what no event tells of; fails when it does not come."""
    with trio.fail_after(within_s):
        while not condition():
            await trio.sleep(0.005)


async def back_to(before: Held, *, within_s: float = 10.0) -> None:
    """Everything that came since `before` has gone again."""
    held = Held.now()
    with trio.move_on_after(within_s):
        while held != before:
            await trio.sleep(0.01)
            held = Held.now()
    assert held == before


@asynccontextmanager
async def besieged(
    folder: Path, engine: str, *, backend: Backend | None = None, **sections: dict[str, Any]
) -> AsyncIterator[Besieged]:
    """Serve on a free port for the body's length; `sections` over `FAST`."""
    sections["server"] = {"engine": engine, **sections.get("server", {})}
    merged = {name: {**FAST.get(name, {}), **sections.get(name, {})} for name in {*FAST, *sections}}
    settings = settings_with(**merged)
    (listener,) = await open_listeners("127.0.0.1", 0)
    stop, started = trio.Event(), trio.Event()
    async with (
        open_database(str(folder / "siege.db")) as database,
        open_server(settings, database=database, backend=backend or scripted_backend(settings)) as server,
        trio.open_nursery() as nursery,
    ):

        async def serve() -> None:
            await server.serve([listener], stop=stop.wait, on_listening=started.set)

        nursery.start_soon(serve)
        with trio.fail_after(20):
            await started.wait()
        yield Besieged(server=server, port=listener.socket.getsockname()[1])
        stop.set()
