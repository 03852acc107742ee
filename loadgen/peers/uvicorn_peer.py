"""The peer on Starlette and uvicorn, with uvloop."""

import asyncio
import socket
import sys

import uvicorn
from starlette.applications import Starlette
from starlette.routing import WebSocketRoute
from starlette.websockets import WebSocket, WebSocketDisconnect

from loadgen.peers.answer import announce, answer


def main(port: int) -> None:
    """Serve until killed."""
    subscribers: set[WebSocket] = set()
    sending: set[asyncio.Future[list[None]]] = set()

    def publish(frame: bytes) -> int:
        text = frame.decode()
        everybody = asyncio.gather(*(ws.send_text(text) for ws in subscribers))
        sending.add(everybody)
        everybody.add_done_callback(sending.discard)
        return len(subscribers)

    async def serve(ws: WebSocket) -> None:
        await ws.accept()
        try:
            while True:
                message = await ws.receive_text()
                reply = answer(message, lambda: subscribers.add(ws), publish)
                await ws.send_text(reply.decode())
        except WebSocketDisconnect:
            pass
        finally:
            subscribers.discard(ws)

    app = Starlette(routes=[WebSocketRoute("/mcp", serve)])
    with socket.create_server(("127.0.0.1", port), backlog=1024) as server:
        announce(server.getsockname()[1])
        config = uvicorn.Config(
            app, loop="uvloop", ws="auto", ws_per_message_deflate=False, log_level="error", lifespan="off"
        )
        uvicorn.Server(config).run(sockets=[server])


if __name__ == "__main__":
    main(int(sys.argv[1]))
