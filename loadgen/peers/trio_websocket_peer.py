"""A bare trio-websocket echo: what the default engine is measured against. It answers nothing, it only
sends back what comes, so it has less to do than any other."""

import logging
import sys

import trio
from trio_websocket import ConnectionClosed, WebSocketRequest, serve_websocket

from loadgen.peers.answer import announce


async def main(port: int) -> None:
    """Serve until killed."""
    logging.getLogger("trio-websocket").setLevel(logging.WARNING)

    async def echo(request: WebSocketRequest) -> None:
        ws = await request.accept()
        try:
            while True:
                await ws.send_message(await ws.get_message())
        except ConnectionClosed:
            pass

    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve_websocket, echo, "127.0.0.1", port, None)
        announce(server.port)


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]))
