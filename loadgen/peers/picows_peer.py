"""The fastest peer there is: picows, whose frames are read and written in Cython. It shows whether the load
generator, and not the server, is what a figure is bounded by."""

import socket
import sys

import uvloop
from picows import WSFrame, WSListener, WSMsgType, WSTransport, WSUpgradeRequest, ws_create_server

from loadgen.peers.answer import announce, answer


class Peer(WSListener):  # type: ignore[misc]
    """One connection."""

    def __init__(self, subscribers: set[WSTransport]) -> None:
        self._subscribers = subscribers

    def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
        """See picows."""
        if frame.msg_type == WSMsgType.TEXT:
            reply = answer(
                frame.get_payload_as_bytes(), lambda: self._subscribers.add(transport), self._publish
            )
            transport.send(WSMsgType.TEXT, reply)
        elif frame.msg_type == WSMsgType.PING:
            transport.send_pong(frame.get_payload_as_bytes())
        elif frame.msg_type == WSMsgType.CLOSE:
            transport.send_close(frame.get_close_code(), frame.get_close_message())
            transport.disconnect()

    def on_ws_disconnected(self, transport: WSTransport) -> None:
        """See picows."""
        self._subscribers.discard(transport)

    def _publish(self, frame: bytes) -> int:
        for transport in self._subscribers:
            transport.send(WSMsgType.TEXT, frame)
        return len(self._subscribers)


async def main(port: int) -> None:
    """Serve until killed."""
    subscribers: set[WSTransport] = set()

    def listener(_request: WSUpgradeRequest) -> WSListener:
        return Peer(subscribers)

    listening = socket.create_server(("127.0.0.1", port), backlog=1024)
    server = await ws_create_server(listener, sock=listening)
    announce(listening.getsockname()[1])
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(main(int(sys.argv[1])))
