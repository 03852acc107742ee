"""TCP streams that wait together: one epoll set for all of them, inside trio's own.

trio registers a socket anew with the kernel for each wait, which is one more system call a message. Here
each socket is registered once, edge-triggered, with a set of its own kind, and one task waits for the
descriptor of that set: one registration a turn of the loop, whatever the number of sockets.

Edge-triggered means that the kernel tells of a change once. So a stream remembers what it was told until
a call shows otherwise: a read that gives less than it could has emptied the socket (epoll(7), question 9),
unless the peer has ended its side, which is told only once too, or has ever sent urgent data, at which a
read stops.

Where there is no epoll (`HAS_EPOLL`), trio's own streams do the same work.
"""

import select
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import structlog
import trio

log = structlog.get_logger()

HAS_EPOLL = hasattr(select, "epoll")
READ_BYTES = 64 * 1024
"""What one system call takes in: a whole message of the default bound, or a burst of small ones."""

if HAS_EPOLL:
    _UNSURE = select.EPOLLRDHUP | select.EPOLLHUP | select.EPOLLERR | select.EPOLLPRI
    _READABLE = select.EPOLLIN | _UNSURE
    _WRITABLE = select.EPOLLOUT | select.EPOLLHUP | select.EPOLLERR
    _WATCHED = select.EPOLLIN | select.EPOLLPRI | select.EPOLLOUT | select.EPOLLRDHUP | select.EPOLLET


class Readiness:
    """The epoll set, and whom it tells. `run` is the service."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._streams: dict[int, SocketStream] = {}
        # Goodbyes are said under shields, and their streams must be told of the answers. The bound is
        # `stop`, which the last of them comes before.
        self._running = trio.CancelScope(shield=True)

    def watch(self, fd: int, stream: "SocketStream") -> None:
        """Tell `stream` of what happens to `fd`, from now on."""
        self._epoll.register(fd, _WATCHED)
        self._streams[fd] = stream

    def forget(self, fd: int) -> None:
        """To be called before `fd` is closed: its number may come again at once."""
        del self._streams[fd]
        self._epoll.unregister(fd)

    async def run(self) -> None:
        """Wake the streams that can go on, until `stop`; a cancellation does not end it."""
        with self._running:
            while True:
                await trio.lowlevel.wait_readable(self._epoll.fileno())
                for fd, events in self._epoll.poll(0):
                    self._streams[fd].notify(events)

    def stop(self) -> None:
        """Let `run` return."""
        self._running.cancel()

    def close(self) -> None:
        """Give the descriptor back; no stream may be open any more."""
        self._epoll.close()


@asynccontextmanager
async def open_readiness() -> AsyncIterator[Readiness]:
    """A running `Readiness` for the body's length, also where the body is being cancelled."""
    readiness = Readiness()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(readiness.run)
            try:
                yield readiness
            finally:
                readiness.stop()
    finally:
        readiness.close()


class SocketStream(trio.abc.HalfCloseableStream):
    """A connected TCP socket. One task may receive while another sends.

    `send_nowait` is what trio's own stream lacks. Cancelling a receive is safe; after a send that was
    cut, a part of the data may be on the wire.
    """

    __slots__ = (
        "_did_send_eof",
        "_fd",
        "_is_unsure",
        "_may_read",
        "_reader",
        "_readiness",
        "_sender",
        "_socket",
    )

    def __init__(self, sock: socket.socket, readiness: Readiness) -> None:
        sock.setblocking(False)
        self._socket = sock
        self._fd = sock.fileno()
        self._readiness = readiness
        self._may_read = False
        self._is_unsure = self._did_send_eof = False
        self._reader: trio.lowlevel.Task | None = None
        self._sender: trio.lowlevel.Task | None = None
        readiness.watch(self._fd, self)

    @classmethod
    def adopt(cls, stream: trio.SocketStream, readiness: Readiness) -> "SocketStream":
        """Take over the socket of `stream`, which nobody may use any more. Raises `OSError` where the kernel
        watches no more sockets; this one is closed then."""
        sock = socket.socket(fileno=stream.socket.detach())
        try:
            return cls(sock, readiness)
        except OSError:
            sock.close()
            raise

    @property
    def peer_address(self) -> str:
        """The peer's IP address. Raises `OSError` when it has gone."""
        return str(self._socket.getpeername()[0])

    def notify(self, events: int) -> None:
        """Take up what the kernel told, and wake who waits for it."""
        if events & _READABLE:
            self._may_read = True
            if events & _UNSURE:
                # From now on only a read that gives nothing has emptied it.
                self._is_unsure = True
            if self._reader is not None:
                trio.lowlevel.reschedule(self._reader)
                self._reader = None
        if events & _WRITABLE and self._sender is not None:
            trio.lowlevel.reschedule(self._sender)
            self._sender = None

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See `trio.abc.ReceiveStream`."""
        size = READ_BYTES if max_bytes is None else max_bytes
        if size < 1:
            raise ValueError("max_bytes must be at least 1")
        if self._may_read:
            # Before the read: what was read must not be lost to a cancellation.
            await trio.lowlevel.checkpoint()
        # To close is told like data, once and for all.
        while not self._may_read or (data := self._recv(size)) is None:
            if self._reader is not None:
                raise trio.BusyResourceError("another task is receiving")
            self._reader = trio.lowlevel.current_task()
            await trio.lowlevel.wait_task_rescheduled(self._abort_receive)
        return data

    def _recv(self, size: int) -> bytes | None:
        if self._fd < 0:
            self._check_open()
        try:
            data = self._socket.recv(size)
        except BlockingIOError:
            self._may_read = False
            return None
        except OSError as exc:
            raise trio.BrokenResourceError(f"the connection broke: {exc.strerror}") from exc
        self._may_read = len(data) == size or self._is_unsure
        return data

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Send what the kernel takes at once; how many bytes. Must not be called while `send_all` runs.

        Raises `trio.BrokenResourceError`, `trio.ClosedResourceError`.
        """
        if self._fd < 0 or self._did_send_eof:
            self._check_may_send()
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0
        except OSError as exc:
            raise trio.BrokenResourceError(f"the connection broke: {exc.strerror}") from exc

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """See `trio.abc.SendStream`."""
        await trio.lowlevel.checkpoint()
        self._check_may_send()
        with memoryview(data) as rest:
            start = 0
            while start < len(rest):
                self._check_idle()
                sent = self.send_nowait(rest[start:])
                if not sent:
                    await self._wait_for_room()
                start += sent

    async def wait_send_all_might_not_block(self) -> None:
        """See `trio.abc.SendStream`."""
        await trio.lowlevel.checkpoint()
        self._check_may_send()
        self._check_idle()
        asked = select.poll()
        asked.register(self._fd, select.POLLOUT)
        if not asked.poll(0):
            await self._wait_for_room()

    def _check_idle(self) -> None:
        if self._sender is not None:
            raise trio.BusyResourceError("another task is sending")

    async def _wait_for_room(self) -> None:
        # The kernel tells of room only once it has said that there is none.
        self._sender = trio.lowlevel.current_task()
        await trio.lowlevel.wait_task_rescheduled(self._abort_send)
        self._check_open()

    async def send_eof(self) -> None:
        """See `trio.abc.HalfCloseableStream`."""
        await trio.lowlevel.checkpoint()
        self._check_open()
        self._check_idle()
        self._did_send_eof = True
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError as exc:
            raise trio.BrokenResourceError(f"the connection broke: {exc.strerror}") from exc

    async def aclose(self) -> None:
        """Close the socket, at once even when cancelled. Who waits gets `trio.ClosedResourceError`."""
        if self._fd >= 0:
            self._readiness.forget(self._fd)
            self._socket.close()
            self._fd = -1
            self.notify(_READABLE | _WRITABLE)
        await trio.lowlevel.checkpoint()

    def _check_open(self) -> None:
        if self._fd < 0:
            raise trio.ClosedResourceError("the stream was closed")

    def _check_may_send(self) -> None:
        self._check_open()
        if self._did_send_eof:
            raise trio.ClosedResourceError("the stream's end was sent")

    def _abort_receive(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._reader = None
        return trio.lowlevel.Abort.SUCCEEDED

    def _abort_send(self, _raise_cancel: object) -> trio.lowlevel.Abort:
        self._sender = None
        return trio.lowlevel.Abort.SUCCEEDED


class ReadyListener(trio.abc.Listener[SocketStream]):
    """Accepts as `listener` does, which it closes with itself, and gives streams that `readiness` tells."""

    def __init__(self, listener: trio.SocketListener, readiness: Readiness) -> None:
        self._listener = listener
        self._readiness = readiness

    async def accept(self) -> SocketStream:
        """See `trio.abc.Listener`. Who cannot be watched is not served, and the next one is waited for."""
        while True:
            stream = await self._listener.accept()
            try:
                return SocketStream.adopt(stream, self._readiness)
            except OSError as exc:
                log.error("socket_not_watched", problem=exc.strerror)

    async def aclose(self) -> None:
        """See `trio.abc.AsyncResource`."""
        await self._listener.aclose()
