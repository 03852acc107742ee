"""A listener in the test's task tree, and clients at its door."""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from persona.client import Client, ConnectFailed, wrap_client
from persona.config import Settings
from persona.metrics import Metrics
from persona.rpc import jsonrpc
from persona.rpc.dispatch import Caller, Dispatcher, Registry, Work
from persona.service.hub import Hub
from persona.service.sessions import Sessions
from persona.testing import settings_with
from persona.transport.connection import Connection
from persona.transport.listener import Listener
from tests.rpc.desk import Methods

HEAD = (
    b"GET /mcp HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
)


class Fragile(Dispatcher):
    """Has a bug that some frames meet."""

    def accept(self, caller: Caller, message: jsonrpc.Message) -> Work | bytes | None:
        if isinstance(message, jsonrpc.Notification) and message.method == "t.crash":
            raise ZeroDivisionError
        return super().accept(caller, message)


class Door(trio.abc.Listener[trio.abc.Stream]):
    """A listener that accepts what the test lets in."""

    def __init__(self) -> None:
        self.knock, self._knocking = trio.open_memory_channel[trio.abc.Stream](100)

    async def accept(self) -> trio.abc.Stream:
        return await self._knocking.receive()

    async def aclose(self) -> None:
        self._knocking.close()
        await trio.lowlevel.checkpoint()


@attrs.define
class House:
    """A listener, with the methods of the dispatcher's tests behind it."""

    settings: Settings
    nursery: trio.Nursery
    metrics: Metrics = attrs.field(factory=Metrics)
    sessions: Sessions = attrs.field(factory=Sessions)
    methods: Methods = attrs.field(factory=Methods)
    has_memory: bool = True
    hub: Hub = attrs.field(init=False)
    listener: Listener = attrs.field(init=False)
    door: Door = attrs.field(factory=Door)

    def __attrs_post_init__(self) -> None:
        self.hub = Hub(encode=jsonrpc.encode_notification, now=lambda: 0.0)
        self.listener = Listener(
            self.settings,
            sessions=self.sessions,
            dispatcher=Fragile(Registry([self.methods]), self.settings.limits, self.metrics),
            hub=self.hub,
            metrics=self.metrics,
            has_memory=lambda: self.has_memory,
        )

    def knock(self) -> tuple[trio.StapledStream[Any, Any], trio.StapledStream[Any, Any]]:
        """Both ends of a stream that is being served, the client's first."""
        ours, theirs = memory_stream_pair()
        self.door.knock.send_nowait(theirs)
        return ours, theirs

    def connect(self, token: str = "") -> AbstractAsyncContextManager[Client]:
        return self.over(self.knock()[0], token)

    def over(self, stream: trio.abc.Stream, token: str = "") -> AbstractAsyncContextManager[Client]:
        """A client on the other end of `stream`, which is being served."""
        return wrap_client(stream, token=token or None)

    async def join(self) -> Client:
        """A client that stays until it is sent away."""
        return await self.nursery.start(self._stay)

    async def _stay(self, *, task_status: trio.TaskStatus[Client]) -> None:
        async with self.connect() as client:
            task_status.started(client)
            await client.wait_closed()

    async def refusal(self) -> ConnectFailed:
        with pytest.raises(ConnectFailed) as caught:
            await self.join()
        return caught.value

    def connection_of(self, number: int) -> Connection:
        """The connection that came `number`-th."""
        return self.listener.connections[f"s{number}"]

    def value(self, name: str, **labels: str) -> float:
        return self.metrics.value(name, **labels)


@asynccontextmanager
async def open_house(**sections: dict[str, Any]) -> AsyncIterator[House]:
    """Serve until `drain`, or for the body's length; then nothing of any connection is left."""
    sections["limits"] = {"ping_interval_s": 0, **sections.get("limits", {})}
    async with trio.open_nursery() as clients, trio.open_nursery() as nursery:
        house = House(settings_with(**sections), clients)
        await nursery.start(house.listener.keepalive.run)
        await nursery.start(house.listener.serve, [house.door])
        yield house
        nursery.cancel_scope.cancel()
    assert house.listener.connections == {}
    assert len(house.sessions) == house.value("connections") == house.value("handshakes") == 0


async def open_by_hand(house: House) -> trio.StapledStream[Any, Any]:
    """A client that speaks only when the test does."""
    stream, _ = house.knock()
    await stream.send_all(HEAD)
    await wait_all_tasks_blocked()
    assert (await stream.receive_some())[:12] == b"HTTP/1.1 101"
    return stream


async def stay_on(stream: trio.abc.Stream, *, task_status: trio.TaskStatus[Client]) -> None:
    async with wrap_client(stream) as client:
        task_status.started(client)
        await client.wait_closed()
