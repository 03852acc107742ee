"""Bad clients, on bare sockets and cheap: what is measured beside them must not be their own work.

Each abuse does its worst once and says what came of it for every socket: `http 503`, a close code, `closed`
(the server ended the connection without a word), or `open`, if it was let go on.

`python -m tests.e2e.abusers NAME PORT` does the same over and over in a process of its own, with a line
each time it stands at its worst.
"""

import contextlib
import select
import socket
import struct
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator

HEAD = (
    b"GET /mcp HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OWFiY2RlZg==\r\n\r\n"
)
TEXT, CONTINUATION, CLOSE, PING, PONG = 0x1, 0x0, 0x8, 0x9, 0xA
_ENDED = getattr(select, "POLLRDHUP", 0) | select.POLLHUP | select.POLLERR
PATIENCE_S = 20.0
PAUSE_S = 0.1

Fates = Counter[str]
AtWorst = Callable[[], None]
"""Called when all that the abuse has is at the door or inside."""


def frame(opcode: int, payload: bytes = b"", *, is_final: bool = True) -> bytes:
    """A client's frame, masked with zeros: a mask like any other."""
    first = opcode | (0x80 if is_final else 0)
    if len(payload) < 126:
        return struct.pack("!BBI", first, 0x80 | len(payload), 0) + payload
    if len(payload) < 65536:
        return struct.pack("!BBHI", first, 0xFE, len(payload), 0) + payload
    return struct.pack("!BBQI", first, 0xFF, len(payload), 0) + payload


def declared(size_bytes: int) -> bytes:
    """The header of a text message that is said to have so many bytes."""
    return struct.pack("!BBQI", 0x81, 0xFF, size_bytes, 0)


def frames(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The whole frames of a server in `data`: opcode and payload."""
    start = 0
    while len(data) - start >= 2:
        length, body = data[start + 1], start + 2
        if length == 126:
            length, body = int.from_bytes(data[body : body + 2], "big"), body + 2
        elif length == 127:
            length, body = int.from_bytes(data[body : body + 8], "big"), body + 8
        if body + length > len(data):
            return
        yield data[start] & 0x0F, data[body : body + length]
        start = body + length


def knock(port: int, *, receive_buffer_bytes: int = 0) -> socket.socket:
    """A connected socket. A small receive buffer is soon full."""
    sock = socket.socket()
    if receive_buffer_bytes:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
    sock.settimeout(PATIENCE_S)
    sock.connect(("127.0.0.1", port))
    return sock


def upgraded(port: int, *, receive_buffer_bytes: int = 0) -> socket.socket:
    """An open WebSocket, as the server sees it."""
    sock = knock(port, receive_buffer_bytes=receive_buffer_bytes)
    sock.sendall(HEAD)
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        # Byte by byte: what follows the head belongs to the frames.
        data = sock.recv(1)
        if not data:
            raise ConnectionError(head.decode("ascii", "replace"))
        head += data
    if not head.startswith(b"HTTP/1.1 101"):
        raise ConnectionError(head.partition(b"\r\n")[0].decode("ascii", "replace"))
    return sock


def reset(sock: socket.socket) -> None:
    """Vanish: the server's next look at the connection finds it broken."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    sock.close()


def fate(received: bytes, *, has_ended: bool) -> str:
    """What the server made of a connection, from all it sent after the upgrade or instead of it."""
    if received.startswith(b"HTTP/"):
        return "http " + received[9:12].decode()
    for opcode, payload in frames(received):
        if opcode == CLOSE:
            return str(int.from_bytes(payload[:2], "big"))
    return "closed" if has_ended else "open"


def ending(sock: socket.socket, *, within_s: float = PATIENCE_S) -> str:
    """Read to the end, and close."""
    return pour(sock, b"", within_s=within_s)


def pour(sock: socket.socket, data: bytes, *, within_s: float = PATIENCE_S) -> str:
    """Send `data`, as far as it is taken, and read meanwhile and to the end; then close."""
    # A server that has had enough closes with data unread, which is a reset: what it said before is still
    # there to be read, although nothing can be sent any more.
    received, rest, has_ended = b"", memoryview(data), False
    sock.setblocking(False)
    poll = select.poll()
    poll.register(sock, select.POLLIN | (select.POLLOUT if data else 0))
    until = time.monotonic() + within_s
    with sock:
        while not has_ended and time.monotonic() < until:
            for _, events in poll.poll(50):
                if events & select.POLLOUT and rest:
                    try:
                        rest = rest[sock.send(rest[:65536]) :]
                    except BlockingIOError:
                        pass
                    except OSError:
                        rest = memoryview(b"")
                if events & (select.POLLIN | select.POLLHUP | select.POLLERR):
                    try:
                        piece = sock.recv(65536)
                    except BlockingIOError:
                        continue
                    except OSError:
                        piece = b""
                    received += piece
                    has_ended = not piece
            if not rest:
                poll.modify(sock, select.POLLIN)
    return fate(received, has_ended=has_ended)


def was_cut(sock: socket.socket, *, within_s: float) -> bool:
    """Whether the server ended the connection, found out without a read."""
    poll = select.poll()
    poll.register(sock, _ENDED)
    return bool(poll.poll(within_s * 1000))


def endings(socks: list[socket.socket], *, within_s: float = PATIENCE_S) -> Fates:
    """The fates of many that send no more."""
    until = time.monotonic() + within_s
    return Counter(ending(sock, within_s=max(0.0, until - time.monotonic())) for sock in socks)


def slow_handshakes(port: int, at_worst: AtWorst) -> Fates:
    """200 sockets that send a byte a second of their opening request."""
    socks = [knock(port) for _ in range(200)]
    for n in range(len(HEAD)):
        for sock in socks:
            with contextlib.suppress(OSError):
                sock.send(HEAD[n : n + 1])
        at_worst()
        # Who was sent away does not come to send the rest.
        if was_cut(socks[-1], within_s=1.0):
            break
    return endings(socks)


def half_open(port: int, at_worst: AtWorst) -> Fates:
    """A pile of sockets that say nothing at all."""
    socks = [knock(port) for _ in range(600)]
    at_worst()
    return endings(socks)


def ping_flood(port: int, at_worst: AtWorst) -> Fates:
    """Pings as fast as they go."""
    return _poured(port, frame(PING, b"x" * 100) * 20_000, at_worst)


def pong_flood(port: int, at_worst: AtWorst) -> Fates:
    """Answers to pings that nobody sent."""
    return _poured(port, frame(PONG) * 100_000, at_worst)


def empty_continuations(port: int, at_worst: AtWorst) -> Fates:
    """A message of a million fragments with nothing in them."""
    nothing = frame(CONTINUATION, is_final=False)
    return _poured(port, frame(TEXT, is_final=False) + nothing * 1_000_000, at_worst)


def one_byte_fragments(port: int, at_worst: AtWorst) -> Fates:
    """A message of the largest size, a byte at a time."""
    crumb = frame(CONTINUATION, b"x", is_final=False)
    return _poured(port, frame(TEXT, b"x", is_final=False) + crumb * 65_534 + frame(0, b"x"), at_worst)


def declared_lengths(port: int, at_worst: AtWorst) -> Fates:
    """Messages said to have up to 2^62 bytes, with the first few of them."""
    fates = Counter(pour(upgraded(port), declared(2**power) + b"x" * 100) for power in (17, 32, 62))
    at_worst()
    return fates


def never_reads(port: int, at_worst: AtWorst) -> Fates:
    """Asks on and on, and takes no answer."""
    text = b'{"jsonrpc": "2.0", "id": 1, "method": "system.ping", "params": {"payload": "%s"}}'
    question = memoryview(frame(TEXT, text % (b"x" * 30_000)) * 500)
    socks = [upgraded(port, receive_buffer_bytes=4096) for _ in range(10)]
    for sock in socks:
        sock.setblocking(False)
    rests = dict.fromkeys(socks, question)
    at_worst()
    until = time.monotonic() + PATIENCE_S
    fates: Fates = Counter()
    while rests and time.monotonic() < until:
        for sock, rest in tuple(rests.items()):
            if was_cut(sock, within_s=0):
                fates["cut"] += 1
                sock.close()
                del rests[sock]
                continue
            with contextlib.suppress(OSError):
                rests[sock] = rest[sock.send(rest[:65536]) :]
        time.sleep(0.01)
    fates["open"] += len(rests)
    return +fates


def vanishing(port: int, at_worst: AtWorst) -> Fates:
    """In the middle of a frame's header, of its payload, of a message, of the opening request."""
    fates: Fates = Counter()
    whole = frame(TEXT, b"x" * 1000)
    for sent in (whole[:1], whole[:3], whole[:500], frame(TEXT, b"x", is_final=False)):
        for leave in (reset, socket.socket.close):
            for _ in range(10):
                sock = upgraded(port)
                sock.sendall(sent)
                leave(sock)
                fates["gone"] += 1
    for _ in range(10):
        sock = knock(port)
        sock.sendall(HEAD[:50])
        reset(sock)
        fates["gone"] += 1
    at_worst()
    return fates


def message_flood(port: int, at_worst: AtWorst) -> Fates:
    """Calls as fast as they go, read or not."""
    return _poured(port, frame(TEXT, b'{"jsonrpc": "2.0", "method": "system.ping"}') * 20_000, at_worst)


def garbage(port: int, at_worst: AtWorst) -> Fates:
    """What is no WebSocket framing, and no HTTP."""
    fates = Counter(pour(upgraded(port), frame(0x3, b"x") * 1000) for _ in range(10))
    fates.update(pour(knock(port), b"\x16\x03\x01" + b"\xff" * 50_000) for _ in range(10))
    at_worst()
    return fates


def _poured(port: int, data: bytes, at_worst: AtWorst) -> Fates:
    sock = upgraded(port)
    at_worst()
    return Counter([pour(sock, data)])


ABUSES = {
    abuse.__name__: abuse
    for abuse in (
        slow_handshakes,
        half_open,
        ping_flood,
        pong_flood,
        empty_continuations,
        one_byte_fragments,
        declared_lengths,
        never_reads,
        vanishing,
        message_flood,
        garbage,
    )
}


def main(name: str, port: int) -> None:
    """Do it again and again, until killed."""
    while True:
        ABUSES[name](port, lambda: print("at its worst", flush=True))
        time.sleep(PAUSE_S)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
