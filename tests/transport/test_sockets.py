"""Streams on one shared epoll set: trio's own stream contract, and the edges of edge-triggering."""

import errno
import os
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from structlog.testing import capture_logs
from trio.testing import check_half_closeable_stream, wait_all_tasks_blocked

from persona.transport.sockets import (
    HAS_EPOLL,
    READ_BYTES,
    Readiness,
    ReadyListener,
    SocketStream,
    open_readiness,
)

pytestmark = pytest.mark.skipif(not HAS_EPOLL, reason="this system has no epoll")

TOO_MUCH = bytes(16_000_000)
"""More than the buffers of a loopback connection hold."""


def connected() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        ours = socket.create_connection(server.getsockname())
        theirs, _ = server.accept()
    return ours, theirs


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[SocketStream, SocketStream]]:
    async with open_readiness() as readiness:
        ours, theirs = (SocketStream(sock, readiness) for sock in connected())
        try:
            yield ours, theirs
        finally:
            await trio.aclose_forcefully(ours)
            await trio.aclose_forcefully(theirs)


async def test_it_keeps_the_contract_of_a_trio_stream() -> None:
    async with open_readiness() as readiness:

        async def make() -> tuple[SocketStream, SocketStream]:
            # Not TCP: its buffers grow while one looks, and a clogged stream would not stay so.
            ours, theirs = socket.socketpair()
            return SocketStream(ours, readiness), SocketStream(theirs, readiness)

        async def make_clogged() -> tuple[SocketStream, SocketStream]:
            streams = await make()
            for stream in streams:
                while stream.send_nowait(TOO_MUCH):
                    pass
            return streams

        await check_half_closeable_stream(make, make_clogged)


async def test_data_and_the_end_that_arrive_together_are_both_seen() -> None:
    """Both are one event, and a read that gives less than it could would wait for the next one."""
    async with pair() as (ours, theirs):
        assert ours.send_nowait(b"last words") == 10
        await ours.send_eof()
        with trio.fail_after(5):
            assert await theirs.receive_some() == b"last words"
            assert [await theirs.receive_some() for _ in range(3)] == [b""] * 3


async def test_what_comes_after_urgent_data_is_seen() -> None:
    """A read stops there, and gives less than it could while there is more."""
    ours, theirs = connected()
    async with open_readiness() as readiness:
        with ours:
            stream = SocketStream(theirs, readiness)
            for _ in range(2):
                ours.sendall(b"before")
                ours.send(b"!", socket.MSG_OOB)
                ours.sendall(b"after")
                got = b""
                with trio.fail_after(5):
                    # All of it is there before the first read.
                    await wait_all_tasks_blocked()
                    while len(got) < 11:
                        got += await stream.receive_some()
                assert got == b"beforeafter"
            await stream.aclose()


async def test_what_was_there_before_the_socket_was_taken_over_is_read() -> None:
    ours, theirs = connected()
    with ours:
        ours.sendall(b"early")
        ours.shutdown(socket.SHUT_WR)
        async with open_readiness() as readiness:
            stream = SocketStream(theirs, readiness)
            with trio.fail_after(5):
                assert await stream.receive_some(3) == b"ear"
                assert await stream.receive_some() == b"ly"
                assert await stream.receive_some() == b""
            await stream.aclose()


async def test_who_has_a_shield_is_told_while_all_else_is_cancelled() -> None:
    """Goodbyes are said under shields, when the listener and the set with it are cancelled already."""
    ours, theirs = connected()
    with ours, trio.CancelScope() as outside:
        async with open_readiness() as readiness:
            stream = SocketStream(theirs, readiness)
            outside.cancel()
            with trio.fail_after(5, shield=True):
                await wait_all_tasks_blocked()
                ours.sendall(b"goodbye")
                assert await stream.receive_some() == b"goodbye"
            await trio.aclose_forcefully(stream)


@pytest.mark.parametrize("size", [1, 7, READ_BYTES])
async def test_a_read_that_fills_its_measure_is_followed_by_another(size: int) -> None:
    data = bytes(range(256)) * 1000
    got = bytearray()
    async with pair() as (ours, theirs), trio.open_nursery() as nursery:
        nursery.start_soon(ours.send_all, data[: size * 5000])
        with trio.fail_after(20):
            while len(got) < len(data[: size * 5000]):
                got += await theirs.receive_some(size)
    assert got == data[: size * 5000]


async def test_sending_at_once_stops_where_the_kernel_does_and_the_rest_follows() -> None:
    async with pair() as (ours, theirs):
        sent = ours.send_nowait(TOO_MUCH)
        assert 0 < sent < len(TOO_MUCH)
        while more := ours.send_nowait(TOO_MUCH):
            sent += more
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ours.send_all, b"x" * 1000)
            await wait_all_tasks_blocked()
            got = 0
            with trio.fail_after(20):
                while got < sent + 1000:
                    got += len(await theirs.receive_some())
        assert got == sent + 1000


async def test_a_cancelled_receive_loses_nothing() -> None:
    async with pair() as (ours, theirs):
        with trio.move_on_after(0.01) as scope:
            await theirs.receive_some()
        assert scope.cancelled_caught
        ours.send_nowait(b"whole")
        with trio.fail_after(5):
            await wait_all_tasks_blocked()
            with trio.CancelScope() as cancelled:
                cancelled.cancel()
                await theirs.receive_some()
            assert await theirs.receive_some() == b"whole"


async def test_a_peer_that_resets_breaks_both_directions() -> None:
    async with pair() as (ours, theirs):
        ours._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
        await ours.aclose()
        with trio.fail_after(5), pytest.raises(trio.BrokenResourceError):
            await theirs.receive_some()
        with pytest.raises(trio.BrokenResourceError):
            theirs.send_nowait(b"x")
        with pytest.raises(trio.BrokenResourceError):
            await theirs.send_eof()


async def test_a_number_that_comes_again_is_another_socket() -> None:
    """A descriptor is given out anew at once; what is told of it must not reach the old stream."""
    async with open_readiness() as readiness:
        for n in range(20):
            ours, theirs = connected()
            stream = SocketStream(theirs, readiness)
            with ours:
                ours.sendall(b"%d" % n)
                with trio.fail_after(5):
                    assert await stream.receive_some() == b"%d" % n
                await stream.aclose()


async def test_a_socket_that_never_stops_sending_holds_up_nobody() -> None:
    turns = 0
    async with pair() as (ours, theirs), trio.open_nursery() as nursery:

        async def flood() -> None:
            while True:
                await ours.send_all(bytes(READ_BYTES))

        async def swallow() -> None:
            while True:
                await theirs.receive_some(1024)

        nursery.start_soon(flood)
        nursery.start_soon(swallow)
        with trio.fail_after(5):
            for turns in range(100):  # noqa: B007
                await trio.lowlevel.checkpoint()
        nursery.cancel_scope.cancel()
    assert turns == 99


async def test_it_takes_over_a_socket_of_trio() -> None:
    ours, theirs = connected()
    with ours:
        theirs.setblocking(False)
        trios = trio.SocketStream(trio.socket.from_stdlib_socket(theirs))
        async with open_readiness() as readiness:
            stream = SocketStream.adopt(trios, readiness)
            ours.sendall(b"hello")
            with trio.fail_after(5):
                assert await stream.receive_some() == b"hello"
            assert stream._socket.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            await stream.aclose()


async def test_a_listener_accepts_streams_of_the_set_and_closes_with_its_own() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with open_readiness() as readiness, ReadyListener(listener, readiness) as ready:
        with socket.create_connection(listener.socket.getsockname()) as ours:
            async with await ready.accept() as stream:
                assert isinstance(stream, SocketStream)
                ours.sendall(b"hello")
                with trio.fail_after(5):
                    assert await stream.receive_some() == b"hello"
    with pytest.raises(trio.ClosedResourceError):
        await listener.accept()


async def test_a_socket_that_the_kernel_will_not_watch_is_closed_and_the_next_one_is_accepted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """`fs.epoll.max_user_watches` is a bound for all programs of a user's."""
    watch, asked = Readiness.watch, 0

    def full_at_first(self: Readiness, fd: int, stream: SocketStream) -> None:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        watch(self, fd, stream)

    monkeypatch.setattr(Readiness, "watch", full_at_first)
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with open_readiness() as readiness, ReadyListener(listener, readiness) as ready:
        with (
            socket.create_connection(listener.socket.getsockname(), timeout=5) as first,
            socket.create_connection(listener.socket.getsockname()) as second,
            capture_logs() as logs,
        ):
            with trio.fail_after(5):
                stream = await ready.accept()
                assert first.recv(1) == b""
                second.sendall(b"hello")
                assert await stream.receive_some() == b"hello"
            await stream.aclose()
    assert [(entry["event"], entry["problem"]) for entry in logs] == [
        ("socket_not_watched", os.strerror(errno.ENOSPC))
    ]


async def test_the_set_gives_its_descriptor_back() -> None:
    readiness = Readiness()
    readiness.close()
    with pytest.raises(ValueError, match="closed"):
        readiness.watch(0, None)  # type: ignore[arg-type]
