"""The HTTP side alone, on a real socket, with the rest of the server as the test says."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs
import httpx2
import trio

from persona.app import open_listeners
from persona.config import ServerSettings
from persona.metrics import Metrics
from persona.web.app import Site, make_app
from persona.web.server import WebServer


@attrs.define(kw_only=True)
class OpenSite:
    """`refusal`, `asks_for_token` and `ask_database` are what the rest of the server says."""

    metrics: Metrics = attrs.field(factory=Metrics)
    refusal: str | None = None
    asks_for_token: bool = False
    ask_database: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
    web: WebServer = attrs.field(init=False)
    client: httpx2.AsyncClient = attrs.field(init=False)
    port: int = 0

    async def get(self, path: str, **headers: str) -> httpx2.Response:
        return await self.client.get(
            path, headers={name.replace("_", "-"): text for name, text in headers.items()}
        )

    async def asked(self) -> None:
        await self.ask_database()


@asynccontextmanager
async def open_site(*, write_deadline_s: float = 10.0, **server: Any) -> AsyncIterator[OpenSite]:
    """Serve on a free port; `server` are settings of that section."""
    (listener,) = await open_listeners("127.0.0.1", 0)
    port = listener.socket.getsockname()[1]
    house = OpenSite(port=port)
    site = Site(
        server=attrs.evolve(ServerSettings(), http_port=port, **server),
        websocket_path="/mcp",
        registry=house.metrics.registry,
        refusal=lambda: house.refusal,
        asks_for_token=lambda: house.asks_for_token,
        ask_database=house.asked,
    )
    house.web = WebServer(make_app(site, house.metrics), house.metrics, write_deadline_s=write_deadline_s)
    async with trio.open_nursery() as nursery:
        await nursery.start(house.web.serve, [listener])
        async with httpx2.AsyncClient(
            base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=20
        ) as client:
            house.client = client
            yield house
        await house.web.drain()
