"""The Python client: one WebSocket, typed calls, streamed answers.

    async with open_client("ws://127.0.0.1:8000/mcp") as client:
        await client.switch("aria")
        async with client.chat_stream("Hello!") as stream:
            async for delta in stream:
                print(delta, end="", flush=True)

A client may be used from any number of tasks at once. No call has a timeout of its own: wrap it
in `trio.fail_after` or `trio.move_on_after`.
"""

from persona.client.calls import Client
from persona.client.connect import open_client, wrap_client
from persona.client.errors import (
    ClientError,
    ConnectFailed,
    ConnectionLost,
    InvalidMessage,
    MessageTooLarge,
    RemoteError,
    UnexpectedAnswer,
)
from persona.client.link import ServerNotification
from persona.client.stream import ChatStream, StreamResult

__all__ = [
    "ChatStream",
    "Client",
    "ClientError",
    "ConnectFailed",
    "ConnectionLost",
    "InvalidMessage",
    "MessageTooLarge",
    "RemoteError",
    "ServerNotification",
    "StreamResult",
    "UnexpectedAnswer",
    "open_client",
    "wrap_client",
]
