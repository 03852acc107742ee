"""`persona demo`: a server and a chat with it, in one process."""

import trio

from persona import terminal
from persona.app import run_server
from persona.config import Settings


async def run_demo(
    settings: Settings, *, say: str | None, persona: str, conversation_id: str | None = None
) -> int:
    """Serve on a free port until the chat ends; the chat's exit code.

    Raises `StartupError` as `run_server` does.
    """
    urls_send, urls = trio.open_memory_channel[str](1)
    done = trio.Event()
    exit_code = 1

    async def talk() -> None:
        nonlocal exit_code
        # The channel closes without a URL when the server cannot start; it then says why itself.
        async for url in urls:
            exit_code = await terminal.chat(url, persona, say, conversation_id=conversation_id)
        done.set()

    async def serve() -> None:
        with urls_send:
            await run_server(settings, on_listening=announce, stop=done.wait)

    def announce(url: str) -> None:
        urls_send.send_nowait(url)
        urls_send.close()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk)
        nursery.start_soon(serve)
    return exit_code
