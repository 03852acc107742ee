"""A WebSocket client that costs next to nothing, to drive servers that are fast.

Many connections on one epoll set, without an event loop library: the work a message makes here is one
`recv`, one `send`, a few bytes of framing and one `orjson.loads`. Every answer is read and checked.
Frames are masked with a key of zeros, which is a mask like any other to the server.
"""

import base64
import os
import select
import socket
import struct
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from urllib.parse import SplitResult, urlsplit

import attrs
import orjson

SILENCE_S = 10.0
CONNECT_S = 30.0


TEXT, PING, PONG, CLOSE = 0x81, 0x89, 0x8A, 0x88
"""First bytes of frames that are whole."""
FIRST, MIDDLE, LAST = 0x01, 0x00, 0x80
"""Those of a text in pieces."""
MAX_CONTROL_BYTES = 125
"""RFC 6455's, of what a ping, a pong or a close carries."""


class WrongAnswer(Exception):
    """The server closed, or said what it should not have."""


class WrongFrame(WrongAnswer):
    """A frame that no right server sends."""


@attrs.define(eq=False)
class WireConnection:
    """One open WebSocket. `send_nowait` and `receive_nowait` never block."""

    sock: socket.socket
    _buffer: bytes = b""
    asked: int = 0
    answered: int = 0
    asked_at: float = 0.0

    def __enter__(self) -> "WireConnection":
        return self

    def __exit__(self, *_: object) -> None:
        self.sock.close()

    @classmethod
    def open(cls, url: str, *, token: str = "") -> "WireConnection":
        """Connect, with a bearer token if there is one, and upgrade. Raises `WrongAnswer` when refused."""
        parts = urlsplit(url)
        try:
            sock = socket.create_connection((parts.hostname, parts.port), timeout=CONNECT_S)
        except OSError as exc:
            raise WrongAnswer(f"cannot connect: {exc}") from None
        try:
            return cls(sock, cls._upgrade(sock, path_of(parts), parts.netloc, token))
        except OSError as exc:
            sock.close()
            raise WrongAnswer(f"lost in the handshake: {exc}") from None
        except BaseException:
            sock.close()
            raise

    @staticmethod
    def _upgrade(sock: socket.socket, path: str, host: str, token: str) -> bytes:
        """What came after the server's welcome."""
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        key = base64.b64encode(os.urandom(16)).decode()
        authorization = f"Authorization: Bearer {token}\r\n" if token else ""
        sock.sendall(
            f"GET {path} HTTP/1.1\r\nHost: {host}\r\n{authorization}"
            "Connection: Upgrade\r\nUpgrade: websocket\r\n"
            f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        head = b""
        while b"\r\n\r\n" not in head:
            data = sock.recv(65536)
            if not data:
                break
            head += data
        if not head.startswith(b"HTTP/1.1 101"):
            raise WrongAnswer(head.partition(b"\r\n")[0].decode("ascii", "replace"))
        sock.setblocking(False)
        return head.partition(b"\r\n\r\n")[2]

    def fileno(self) -> int:
        """For epoll."""
        return self.sock.fileno()

    def send(self, data: bytes) -> None:
        """Send all of `data`. What is asked at once is small: the kernel takes it. Raises `WrongAnswer`."""
        try:
            sent = self.sock.send(data)
        except BlockingIOError:
            sent = 0
        except OSError as exc:
            raise WrongAnswer(f"the connection broke: {exc}") from None
        if sent != len(data):
            raise WrongAnswer("the server does not read")

    def receive(self) -> Iterator[Any]:
        """The messages that are there, decoded; pings are answered. Raises `WrongAnswer`."""
        try:
            data = self.sock.recv(262_144)
        except BlockingIOError:
            return
        except TimeoutError:
            raise WrongAnswer(f"no answer for {SILENCE_S} s") from None
        except OSError as exc:
            raise WrongAnswer(f"the connection broke: {exc}") from None
        if not data:
            raise WrongAnswer("the server closed the connection")
        buffer = self._buffer + data if self._buffer else data
        start = 0
        try:
            while (frame := read_frame(buffer, start)) is not None:
                head, payload, start = frame
                if head == TEXT:
                    try:
                        yield orjson.loads(payload)
                    except orjson.JSONDecodeError:
                        raise WrongFrame("a text that is no JSON") from None
                elif head == PING:
                    self.send(pong_frame(payload))
                else:
                    raise WrongFrame(f"a frame that begins with {head:#04x}; fragments are not read here")
        finally:
            # Also for who takes the first message and leaves.
            self._buffer = buffer[start:]

    def call(self, method: str, params: dict[str, Any]) -> Any:
        """One request and its result, waiting for it. Raises `WrongAnswer`."""
        self.sock.settimeout(SILENCE_S)
        self.send(request_frame(-1, method, params))
        while True:
            for message in self.receive():
                if not isinstance(message, dict):
                    raise WrongAnswer(str(message))
                if message.get("id") == -1:
                    self.sock.setblocking(False)
                    if "result" not in message:
                        raise WrongAnswer(str(message))
                    return message["result"]


def path_of(url: SplitResult) -> str:
    """What is asked for: the path with its query."""
    return (url.path or "/") + (f"?{url.query}" if url.query else "")


def read_frame(buffer: bytes, start: int) -> tuple[int, bytes, int] | None:
    """First byte, payload and the end of the frame at `start`; `None` when it is not all there. Raises
    `WrongFrame` for one that is masked, and for a control frame that is too long."""
    there = len(buffer) - start
    if there < 2:
        return None
    length, body = buffer[start + 1], start + 2
    if length > MAX_CONTROL_BYTES:
        if length > 127:
            raise WrongFrame("a masked frame")
        if buffer[start] & 0x08:
            raise WrongFrame(f"a control frame of more than {MAX_CONTROL_BYTES} bytes")
        width, size = (2, "!H") if length == 126 else (8, "!Q")
        if there < 2 + width:
            return None
        length, body = struct.unpack_from(size, buffer, body)[0], body + width
    end = body + length
    if end > len(buffer):
        return None
    return buffer[start], buffer[body:end], end


def pong_frame(payload: bytes) -> bytes:
    """The answer to a ping."""
    return struct.pack("!BBI", 0x8A, 0x80 | len(payload), 0) + payload


def request_frame(request_id: int, method: str, params: dict[str, Any]) -> bytes:
    """A masked text frame with one request."""
    text = orjson.dumps({"jsonrpc": "2.0", "id": request_id, "method": method, "params": params})
    if len(text) < 126:
        return struct.pack("!BBI", 0x81, 0x80 | len(text), 0) + text
    if len(text) < 65_536:
        return struct.pack("!BBHI", 0x81, 0xFE, len(text), 0) + text
    return struct.pack("!BBQI", 0x81, 0xFF, len(text), 0) + text


@contextmanager
def connected(url: str, count: int) -> Iterator[list[WireConnection]]:
    """So many open connections."""
    connections: list[WireConnection] = []
    try:
        for _ in range(count):
            connections.append(WireConnection.open(url))  # noqa: PERF401 - those open are closed
        yield connections
    finally:
        for connection in connections:
            connection.sock.close()


def _poll(epoll: select.epoll) -> list[tuple[int, int]]:
    """What is ready. Never sleeps: to wake a sleeping client costs a server several microseconds a
    message, and only a server slow enough to let it sleep would pay."""
    end = time.perf_counter() + SILENCE_S
    while not (events := epoll.poll(0)):
        if time.perf_counter() > end:
            raise WrongAnswer(f"no answer for {SILENCE_S} s")
    return events


PADDING = "x" * 40
"""Makes a ping about 120 bytes, like a short chat line."""


def ping_loop(
    connections: list[WireConnection], *, seconds: float, in_flight: int = 1, is_echo: bool = False
) -> "array[float]":
    """Closed loop: each connection has `in_flight` pings under way, and asks anew when all are answered.

    The latencies of the rounds, in seconds. Raises `WrongAnswer`. With `is_echo` the requests themselves
    have to come back.
    """
    latencies = array("d")
    epoll = select.epoll()
    by_fd = {connection.fileno(): connection for connection in connections}

    def ask(connection: WireConnection) -> None:
        first = connection.asked
        connection.asked += in_flight
        frames = [
            request_frame(n, "system.ping", {"payload": f"{n}-{PADDING}"})
            for n in range(first, first + in_flight)
        ]
        connection.asked_at = time.perf_counter()
        connection.send(b"".join(frames))

    for fd, connection in by_fd.items():
        epoll.register(fd, select.EPOLLIN)
        ask(connection)
    end = time.perf_counter() + seconds
    waiting = len(connections)
    while waiting:
        events = _poll(epoll)
        for fd, _ in events:
            connection = by_fd[fd]
            answered_before = connection.answered
            for message in connection.receive():
                if not _is_answer(message, connection.answered, is_echo=is_echo):
                    raise WrongAnswer(str(message))
                connection.answered += 1
            # What came may have been a ping of the server's.
            if answered_before < connection.answered == connection.asked:
                now = time.perf_counter()
                latencies.append(now - connection.asked_at)
                if now < end:
                    ask(connection)
                else:
                    waiting -= 1
    epoll.close()
    return latencies


def _is_answer(message: Any, n: int, *, is_echo: bool) -> bool:
    try:
        result = message["params" if is_echo else "result"]
        return bool(
            message["id"] == n
            and result["payload"] == f"{n}-{PADDING}"
            and (is_echo or result["pong"] is True)
        )
    except (KeyError, TypeError, IndexError):
        return False


def subscribe(connections: list[WireConnection], topic: str) -> None:
    """All but the first, which is the publisher, hear of `topic` from now on. Raises `WrongAnswer`."""
    for subscriber in connections[1:]:
        result = subscriber.call("events.subscribe", {"topics": [topic]})
        if not isinstance(result, dict) or result.get("topics") != [topic]:
            raise WrongAnswer(f"subscribed to {topic}, and was told {result}")


def broadcast(
    connections: list[WireConnection], topic: str, *, size_bytes: int, rounds: int
) -> "array[float]":
    """The first connection publishes to those that `subscribe` made hear: the seconds until the last of them
    has it, for each round. Each has to get it once. Raises `WrongAnswer`."""
    publisher, *subscribers = connections
    epoll = select.epoll()
    by_fd = {connection.fileno(): connection for connection in connections}
    for fd in by_fd:
        epoll.register(fd, select.EPOLLIN)
    times = array("d")
    for n in range(rounds):
        data = f"{n}-" + "x" * size_bytes
        started = time.perf_counter()
        publisher.send(request_frame(n, "system.broadcast", {"topic": topic, "type": "bench", "data": data}))
        left = set(by_fd)
        while left:
            events = _poll(epoll)
            for fd, _ in events:
                for message in by_fd[fd].receive():
                    if fd not in left or not (
                        _was_published(message, len(subscribers))
                        if by_fd[fd] is publisher
                        else _is_event(message, data)
                    ):
                        raise WrongAnswer(str(message))
                    left.discard(fd)
        times.append(time.perf_counter() - started)
    epoll.close()
    return times


def _was_published(message: Any, subscribers: int) -> bool:
    result = message.get("result") if isinstance(message, dict) else None
    return isinstance(result, dict) and result.get("delivered") == subscribers


def _is_event(message: Any, data: str) -> bool:
    params = message.get("params") if isinstance(message, dict) else None
    return isinstance(params, dict) and params.get("data") == data
