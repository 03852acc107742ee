"""One client connection that never waits: TCP connect, opening handshake, frames in and out.

The loop of `driver` calls it when the socket is ready. No event loop library lies between, so that two
thousand connections cost one epoll set and no tasks, and so that the time of an answer is taken when the
kernel has it and not when a scheduler comes to it.
"""

import base64
import errno
import hashlib
import os
import select
import socket
import struct
import time
from typing import Any, Literal
from urllib.parse import urlsplit

import attrs
import orjson

from loadgen.wire import (
    CLOSE,
    FIRST,
    LAST,
    MIDDLE,
    PING,
    PONG,
    TEXT,
    WrongFrame,
    path_of,
    pong_frame,
    read_frame,
)

MAX_UNSENT_BYTES = 1_048_576
"""What may wait for a server that does not read. One more request than that loses the connection."""
MAX_HEAD_BYTES = 65_536
MAX_MESSAGE_BYTES = 67_108_864
"""Many times what our server sends. More is a wrong frame, so that no server fills the memory."""
RECEIVE_BYTES = 262_144
_ACCEPT_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"

State = Literal["connecting", "upgrading", "open", "closed"]


class Refused(Exception):
    """The connection never opened. `kind` is what the report counts."""

    def __init__(self, kind: str, *, retry_after_s: float | None = None) -> None:
        super().__init__(kind)
        self.kind = kind
        self.retry_after_s = retry_after_s


class Lost(Exception):
    """The connection was open and is no longer. `kind` is what the report counts."""

    def __init__(self, kind: str) -> None:
        super().__init__(kind)
        self.kind = kind


@attrs.frozen
class Target:
    """Where the server is."""

    family: socket.AddressFamily
    address: tuple[Any, ...]
    host: str
    path: str

    @classmethod
    def of(cls, url: str) -> "Target":
        """Look the name up, once. Raises `ValueError` on what is no ws:// URL, and `OSError`."""
        parts = urlsplit(url)
        if parts.scheme != "ws" or not parts.hostname:
            raise ValueError(f"{url} is no ws:// URL")
        found = socket.getaddrinfo(parts.hostname, parts.port or 80, type=socket.SOCK_STREAM)
        family, _, _, _, address = found[0]
        return cls(family, address, parts.netloc.rpartition("@")[2], path_of(parts))


class Link:
    """Connecting from the start. Raises `Refused` where that cannot begin. `fd` and `wants_write` are for
    epoll."""

    def __init__(self, target: Target, *, token: str | None = None, now: float | None = None) -> None:
        self.state: State = "connecting"
        self.started_at = time.perf_counter() if now is None else now
        self.connected_at = 0.0
        self.opened_at = 0.0
        self.close_code: int | None = None
        self._target = target
        self._token = token
        self._key = base64.b64encode(os.urandom(16))
        self._in = b""
        self._out = b""
        self._pieces: bytes | None = None
        """Of a text that comes in fragments: what there is of it."""
        try:
            self._socket = socket.socket(target.family, socket.SOCK_STREAM)
        except OSError as exc:
            raise Refused(_connect_error(exc.errno or 0)) from None
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        code = self._socket.connect_ex(target.address)
        if code not in (0, errno.EINPROGRESS):
            self._socket.close()
            raise Refused(_connect_error(code))
        self.fd = self._socket.fileno()

    @property
    def wants_write(self) -> bool:
        """Whether there is something to do once the socket takes more."""
        return self.state == "connecting" or bool(self._out)

    def handle(self, mask: int) -> list[Any]:
        """Do what the socket is ready for; the messages that came. Raises `Refused`, `Lost`, `WrongFrame`."""
        if self.state == "connecting":
            self._connected()
        elif mask & select.EPOLLOUT and self._out:
            self._flush()
        if mask & ~select.EPOLLOUT:
            return self._receive()
        return []

    def send(self, frame: bytes) -> None:
        """Send, or keep what the socket does not take now. Raises `Lost`."""
        self._out += frame
        self._flush()
        if len(self._out) > MAX_UNSENT_BYTES:
            raise Lost("server_does_not_read")

    def say_goodbye(self) -> None:
        """Send a close frame; the server's answer is seen as `Lost("closed_1000")`."""
        self.send(struct.pack("!BBIH", 0x88, 0x82, 0, 1000))

    def close(self, *, abruptly: bool = False) -> None:
        """Close the socket; with a reset where `abruptly`."""
        if self.state != "closed":
            self.state = "closed"
            if abruptly:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._socket.close()

    def _connected(self) -> None:
        code = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if code:
            raise Refused(_connect_error(code))
        self.connected_at = time.perf_counter()
        self.state = "upgrading"
        lines = [
            f"GET {self._target.path} HTTP/1.1",
            f"Host: {self._target.host}",
            "Connection: Upgrade",
            "Upgrade: websocket",
            "Sec-WebSocket-Version: 13",
            f"Sec-WebSocket-Key: {self._key.decode()}",
        ]
        if self._token is not None:
            lines.append(f"Authorization: Bearer {self._token}")
        self.send("\r\n".join([*lines, "", ""]).encode())

    def _flush(self) -> None:
        try:
            self._out = self._out[self._socket.send(self._out) :]
        except BlockingIOError:
            pass
        except OSError as exc:
            raise self._broken(exc) from None

    def _broken(self, exc: OSError) -> Refused | Lost:
        if self.state != "open":
            return Refused(_connect_error(exc.errno or 0))
        return Lost("reset" if exc.errno in (errno.ECONNRESET, errno.EPIPE) else "connection_lost")

    def _receive(self) -> list[Any]:
        try:
            data = self._socket.recv(RECEIVE_BYTES)
        except BlockingIOError:
            return []
        except OSError as exc:
            raise self._broken(exc) from None
        if not data:
            raise Refused("closed_in_handshake") if self.state != "open" else Lost("connection_lost")
        self._in += data
        if self.state == "upgrading" and not self._upgraded():
            return []
        return self._messages()

    def _upgraded(self) -> bool:
        head, end, rest = self._in.partition(b"\r\n\r\n")
        if not end:
            if len(head) > MAX_HEAD_BYTES:
                raise Refused("malformed_handshake")
            return False
        status, *lines = head.decode("latin-1").split("\r\n")
        headers = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
        }
        version, _, code = status.partition(" ")
        if not version.startswith("HTTP/1.1") or not code[:3].isdigit():
            raise Refused("malformed_handshake")
        if code[:3] != "101":
            wait = headers.get("retry-after", "")
            is_seconds = wait.isascii() and wait.isdigit()
            raise Refused(f"http_{code[:3]}", retry_after_s=float(wait) if is_seconds else None)
        # SHA-1 is what RFC 6455 asks for; it protects nothing here.
        accept = base64.b64encode(hashlib.sha1(self._key + _ACCEPT_GUID, usedforsecurity=False).digest())
        if headers.get("sec-websocket-accept") != accept.decode():
            raise Refused("malformed_handshake")
        self.opened_at = time.perf_counter()
        self.state = "open"
        self._in = rest
        return True

    def _messages(self) -> list[Any]:
        messages: list[Any] = []
        start, buffer = 0, self._in
        while (frame := read_frame(buffer, start)) is not None:
            head, payload, start = frame
            if head == TEXT and self._pieces is None:
                messages.append(_decoded(payload))
            elif head == PING:
                self.send(pong_frame(payload))
            elif head == CLOSE:
                self.close_code = struct.unpack("!H", payload[:2])[0] if len(payload) >= 2 else 1005
                if not messages:
                    raise Lost(f"closed_{self.close_code}")
                # What was said before the close is handed out first.
                self._in = buffer[start:]
                return messages
            elif head != PONG:
                messages += self._piece(head, payload)
        self._in = buffer[start:]
        if len(self._in) + len(self._pieces or b"") > MAX_MESSAGE_BYTES:
            raise WrongFrame(f"a message of more than {MAX_MESSAGE_BYTES} bytes")
        return messages

    def _piece(self, head: int, payload: bytes) -> list[Any]:
        """Take a fragment; the message that it makes whole, if it does."""
        if head != FIRST and not (head in (MIDDLE, LAST) and self._pieces is not None):
            raise WrongFrame(f"a frame that begins with {head:#04x}")
        if head == FIRST and self._pieces is not None:
            raise WrongFrame("a text within another one's fragments")
        self._pieces = (self._pieces or b"") + payload
        if head != LAST:
            return []
        whole, self._pieces = self._pieces, None
        return [_decoded(whole)]


def _decoded(text: bytes) -> Any:
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError:
        raise WrongFrame("a text that is no JSON") from None


def _connect_error(code: int) -> str:
    if code == errno.ECONNREFUSED:
        return "connection_refused"
    return f"connect_{errno.errorcode.get(code, 'failed').lower()}"
