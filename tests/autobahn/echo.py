"""The real listener on a real socket, and behind it an echo in place of JSON-RPC."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from persona.app import open_listeners
from persona.metrics import Metrics
from persona.rpc import jsonrpc
from persona.rpc.dispatch import Dispatcher, Registry
from persona.service.hub import Hub
from persona.service.sessions import Sessions
from persona.testing import settings_with
from persona.transport.admission import PATH
from persona.transport.connection import Connection
from persona.transport.listener import Listener

MAX_MESSAGE_BYTES = 1024 * 1024
"""Over the 256 KiB that case 7.1.6 sends; the default refuses that by contract."""


class Echo(Connection):
    """Gives each message back where the real one answers it. All else is the real one's: reader, outbox,
    writer, close."""

    def _take(self, data: str, nursery: trio.Nursery) -> bool:
        return self.offer(data.encode())


@asynccontextmanager
async def open_echo(engine: str) -> AsyncIterator[str]:
    """Serve with `engine` for the body's length; the URL."""
    settings = settings_with(server={"engine": engine}, limits={"max_message_bytes": MAX_MESSAGE_BYTES})
    metrics = Metrics()
    listener = Listener(
        settings,
        sessions=Sessions(),
        dispatcher=Dispatcher(Registry([]), settings.limits, metrics),
        hub=Hub(encode=jsonrpc.encode_notification, now=lambda: 0.0),
        metrics=metrics,
        connection_class=Echo,
    )
    sockets = await open_listeners("127.0.0.1", 0)
    async with trio.open_nursery() as nursery:
        await nursery.start(listener.keepalive.run)
        await nursery.start(listener.serve, sockets)
        port = sockets[0].socket.getsockname()[1]
        yield f"ws://127.0.0.1:{port}{PATH}"
        nursery.cancel_scope.cancel()
