"""The peer on aiohttp."""

import asyncio
import sys

from aiohttp import WSMsgType, web

from loadgen.peers.answer import announce, answer


async def main(port: int) -> None:
    """Serve until killed."""
    subscribers: set[web.WebSocketResponse] = set()
    sending: set[asyncio.Future[list[None]]] = set()

    def publish(frame: bytes) -> int:
        # All at once: measured faster than one after the other.
        text = frame.decode()
        everybody = asyncio.gather(*(ws.send_str(text) for ws in subscribers))
        sending.add(everybody)
        everybody.add_done_callback(sending.discard)
        return len(subscribers)

    async def serve(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(compress=False, heartbeat=20)
        await ws.prepare(request)
        try:
            async for message in ws:
                if message.type is WSMsgType.TEXT:
                    reply = answer(message.data, lambda: subscribers.add(ws), publish)
                    await ws.send_str(reply.decode())
        finally:
            subscribers.discard(ws)
        return ws

    app = web.Application()
    app.router.add_get("/mcp", serve)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
    address = runner.addresses[0]
    announce(address[1])
    await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
