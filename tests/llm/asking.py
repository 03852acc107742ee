"""What the tests of the backends share: a backend that points at a stand-in, and one question."""

import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from typing import Any

import httpx2
import trio

from persona.llm.backend import Backend, Completed, Delta, GenerateOptions, Message
from persona.llm.http import HTTPBackend
from persona.llm.ollama import OllamaBackend
from persona.llm.openai import OpenAIBackend
from persona.llm.upstream import new_client
from tests.llm.dialects import Kind
from tests.llm.standin import StandIn, open_standin

MESSAGES = (Message("system", "You are Aria."), Message("user", "Sing of the sea, naïve 海 🎉 friend"))
OPTIONS = GenerateOptions(max_tokens=100)


def backend_for(
    kind: Kind, client: httpx2.AsyncClient, base_url: str, *, model: str = "stand-in", api_key: str = ""
) -> HTTPBackend:
    if kind == "ollama":
        return OllamaBackend(client, base_url=base_url, model=model)
    return OpenAIBackend(client, base_url=base_url, model=model, api_key=api_key)


@asynccontextmanager
async def opened(
    kind: Kind, *, model: str = "stand-in", api_key: str = "", **options: Any
) -> AsyncIterator[tuple[StandIn, HTTPBackend]]:
    """A stand-in and a backend that asks it, for at most 5 s."""
    with trio.fail_after(5):
        async with new_client() as client, open_standin(kind, **options) as server:
            yield server, backend_for(kind, client, server.base_url, model=model, api_key=api_key)


@asynccontextmanager
async def open_raw_server(answer: bytes, *, hang: bool = False) -> AsyncIterator[tuple[str, trio.Event]]:
    """A server that takes one request and sends `answer` byte for byte, HTTP or not, then closes, or
    with `hang` waits. Gives its address and an event: the client hung up. For at most 5 s."""
    hung_up = trio.Event()

    async def handler(stream: trio.SocketStream) -> None:
        head, body, length = b"", b"", 0
        while not head or len(body) < length:
            body += await stream.receive_some(65536)
            if not head and b"\r\n\r\n" in body:
                head, _, body = body.partition(b"\r\n\r\n")
                found = re.search(rb"(?i)content-length: (\d+)", head)
                length = int(found[1]) if found else 0
        await stream.send_all(answer)
        if hang:
            await stream.receive_some(1)
            hung_up.set()

    with trio.fail_after(5):
        async with trio.open_nursery() as nursery:
            (listener,) = await nursery.start(partial(trio.serve_tcp, handler, 0, host="127.0.0.1"))
            yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}", hung_up
            nursery.cancel_scope.cancel()


async def ask(
    backend: Backend, messages: tuple[Message, ...] = MESSAGES, options: GenerateOptions = OPTIONS
) -> tuple[str, Completed]:
    """The whole answer. Checks that what comes is deltas that are not empty, then one `Completed`."""
    text = ""
    completed = None
    async with backend.generate(messages, options) as events:
        async for event in events:
            assert completed is None
            if isinstance(event, Delta):
                assert event.text
                text += event.text
            else:
                completed = event
    assert completed is not None
    return text, completed
