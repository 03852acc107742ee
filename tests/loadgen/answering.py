"""A WebSocket server on blocking sockets and threads, as little like what is tested as can be. It answers as
the test says, rightly or not."""

import base64
import hashlib
import socket
import struct
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import IO, Any

import orjson

from loadgen.link import Target

Frames = list[bytes]
Answer = Callable[[dict[str, Any]], Iterable[bytes]]


def text_frame(payload: bytes) -> bytes:
    if len(payload) < 126:
        return struct.pack("!BB", 0x81, len(payload)) + payload
    if len(payload) < 65_536:
        return struct.pack("!BBH", 0x81, 126, len(payload)) + payload
    return struct.pack("!BBQ", 0x81, 127, len(payload)) + payload


def message(**fields: Any) -> bytes:
    return text_frame(orjson.dumps({"jsonrpc": "2.0", **fields}))


def result(request: dict[str, Any], value: Any) -> bytes:
    return message(id=request["id"], result=value)


def error(request: dict[str, Any], reason: str, **data: Any) -> bytes:
    return message(
        id=request["id"], error={"code": -32000, "message": reason, "data": {"reason": reason, **data}}
    )


def echo(request: dict[str, Any]) -> Frames:
    """Pings as they should be, and an empty result for the rest."""
    payload = (request.get("params") or {}).get("payload")
    return [result(request, {"pong": True, "payload": payload})]


class Answering:
    """A running server. `received` holds every request, `heads` every opening request."""

    def __init__(self, answer: Answer, head: bytes | None) -> None:
        self.answer = answer
        self.head = head
        self.received: list[dict[str, Any]] = []
        self.heads: list[str] = []
        self.pongs: list[bytes] = []
        self.goodbyes = 0
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.port = self._listener.getsockname()[1]
        self.url = f"ws://127.0.0.1:{self.port}/mcp"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    @property
    def target(self) -> Target:
        return Target.of(self.url)

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._serve, args=(client,)))
            self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as reader:
            try:
                self._open(client, reader)
                while head := reader.read(2):
                    self._frame(client, reader, head)
            except (OSError, struct.error):
                pass  # The client dropped it, as some tests want.

    def _open(self, client: socket.socket, reader: IO[bytes]) -> None:
        lines = []
        while line := reader.readline().strip():
            lines.append(line.decode())
        self.heads.append("\n".join(lines))
        if self.head is not None:
            client.sendall(self.head)
            return
        (key,) = (line.split(": ")[1] for line in lines if line.startswith("Sec-WebSocket-Key"))
        accept = base64.b64encode(
            hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()
        ).decode()
        client.sendall(
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept}\r\n\r\n".encode()
        )

    def _frame(self, client: socket.socket, reader: IO[bytes], head: bytes) -> None:
        length = head[1] & 0x7F
        if length == 126:
            (length,) = struct.unpack("!H", reader.read(2))
        elif length == 127:
            (length,) = struct.unpack("!Q", reader.read(8))
        assert head[1] & 0x80
        mask = reader.read(4)
        assert mask == bytes(4)
        payload = reader.read(length)
        if head[0] == 0x88:
            self.goodbyes += 1
            client.sendall(struct.pack("!BB", 0x88, len(payload)) + payload)
            client.shutdown(socket.SHUT_WR)
        elif head[0] == 0x8A:
            self.pongs.append(payload)
        else:
            request = orjson.loads(payload)
            self.received.append(request)
            for frame in self.answer(request):
                client.sendall(frame)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)


@contextmanager
def answering(answer: Answer = echo, *, head: bytes | None = None) -> Iterator[Answering]:
    """A server for the body's length. `head` is sent in place of the welcome."""
    server = Answering(answer, head)
    try:
        yield server
    finally:
        server.close()
