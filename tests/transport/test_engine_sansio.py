"""What is particular to the fast engine."""

import attrs
import pytest
import trio
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from persona.transport import engine_sansio
from persona.transport.engine import BadMessage, PeerGone
from persona.transport.engine_sansio import (
    MAX_PONG_BYTES,
    PARSE_BYTES,
    AcceptSansio,
    SansioEngine,
    TextFramer,
)
from persona.transport.frames import text_header
from persona.transport.sockets import HAS_EPOLL, READ_BYTES
from tests.transport.link import (
    CLOSE,
    OPENING_HEAD,
    OPTIONS,
    PING,
    PONG,
    TEXT,
    Pair,
    RawClient,
    close,
    code_of,
    fragments,
    frame,
    open_link,
    over_sockets,
    reset,
    text,
)

needs_sockets = pytest.mark.skipif(not HAS_EPOLL, reason="this system has no epoll, and no stream of ours")
TOO_MUCH = b"x" * 8_000_000
"""More than the buffers of a loopback connection hold."""


@attrs.define
class Watched(trio.abc.HalfCloseableStream):
    """A stream that keeps what is asked of it, and gives at most `most` bytes at a time."""

    stream: trio.abc.HalfCloseableStream
    most: int | None = None
    asked: list[int | None] = attrs.field(factory=list)
    sent: list[bytes] = attrs.field(factory=list)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        self.asked.append(max_bytes)
        return await self.stream.receive_some(self.most or max_bytes)

    async def send_all(self, data: bytes) -> None:
        self.sent.append(data)
        await self.stream.send_all(data)

    async def send_eof(self) -> None:
        await self.stream.send_eof()

    async def wait_send_all_might_not_block(self) -> None:
        await self.stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self.stream.aclose()


async def opened(
    pair: Pair | None = None, *, most: int | None = None, **options: float
) -> tuple[SansioEngine, RawClient, Watched]:
    """An engine without an owner, its client, and its stream."""
    ours, theirs = memory_stream_pair() if pair is None else pair
    watched = Watched(ours, most)
    async with trio.open_nursery() as nursery:
        engine = await AcceptSansio()(
            nursery,
            watched if pair is None else ours,
            OPENING_HEAD,
            subprotocol=None,
            options=attrs.evolve(OPTIONS, **options),
        )
        assert not nursery.child_tasks
    client = RawClient(theirs)
    await client.opening()
    watched.sent.clear()
    return engine, client, watched


# What is sent


def test_a_message_for_many_is_framed_once() -> None:
    framer = TextFramer()
    message, same = b"x" * 200, bytes(bytearray(b"x" * 200))
    framed = framer.frame(message)
    assert framed == text_header(200) + message
    assert framer.frame(message) is framed
    # Another message with the same text is another one, and right all the same.
    assert framer.frame(same) == framed
    assert framer.frame(b"y") == b"\x81\x01y"
    assert framer.frame(message) == framed


async def test_connections_of_one_listener_share_the_frame() -> None:
    accept = AcceptSansio()
    message = b"for everybody"
    sent = []
    for _ in range(3):
        ours, theirs = memory_stream_pair()
        watched = Watched(ours)
        async with trio.open_nursery() as nursery:
            engine = await accept(nursery, watched, OPENING_HEAD, subprotocol=None, options=OPTIONS)
        await engine.send([message])
        sent.append(watched.sent[-1])
        await theirs.aclose()
    assert sent[0] == b"\x81\x0dfor everybody"
    assert sent[1] is sent[0]
    assert sent[2] is sent[0]


async def test_what_is_sent_together_is_one_write_with_what_was_unsent() -> None:
    engine, client, stream = await opened()
    await client.send(frame(PING, b"?"), text("x"))
    assert await engine.receive() == ["x"]
    assert engine.has_unsent
    await engine.send([b"a", b"bc"])
    assert stream.sent == [b"\x8a\x01?\x81\x01a\x81\x02bc"]
    assert not engine.has_unsent


async def test_it_tells_its_owner_of_what_it_has_to_say_by_itself() -> None:
    engine, client, stream = await opened()
    told = []
    engine.on_unsent = lambda: told.append(engine.has_unsent)
    await client.send(text("x"), frame(PONG), text("y"))
    assert await engine.receive() == ["x", "y"]
    assert told == []
    await client.send(frame(PING), text("z"))
    await engine.receive()
    assert told == [True]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.ping)
        await wait_all_tasks_blocked()
        assert told == [True, True]
        # It never writes of its own accord.
        assert stream.sent == []
        await engine.send([])
        assert stream.sent == [b"\x8a\x00\x89\x00"]
        nursery.cancel_scope.cancel()


async def test_pongs_that_nobody_takes_are_bounded() -> None:
    count = 2 * MAX_PONG_BYTES // 127
    engine, client, stream = await opened()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send, *(frame(PING, b"%125d" % n) for n in range(count)), text("x"))
        assert await engine.receive() == ["x"]
    await engine.send([b"y"])
    (sent,) = stream.sent
    kept = (len(sent) - 3) // 127
    assert MAX_PONG_BYTES <= kept * 127 < MAX_PONG_BYTES + 127
    assert sent == b"".join(b"\x8a\x7d%125d" % n for n in range(kept)) + b"\x81\x01y"
    # Once they are taken it answers again.
    await client.send(frame(PING, b"late"), text("z"))
    await engine.receive()
    await engine.send([])
    assert stream.sent[1:] == [b"\x8a\x04late"]


@needs_sockets
async def test_what_the_socket_does_not_take_at_once_goes_before_all_else() -> None:
    async with open_link("sansio", over_sockets) as link:
        engine = link.engine
        assert engine.sends_at_once
        engine.send_nowait([b"small"])
        assert not engine.has_unsent
        engine.send_nowait([TOO_MUCH])
        assert engine.has_unsent
        engine.send_nowait([b"second"])
        async with trio.open_nursery() as nursery:
            nursery.start_soon(engine.send, [b"third"])
            frames = [await link.client.frame() for _ in range(4)]
        assert frames == [(TEXT, part) for part in (b"small", TOO_MUCH, b"second", b"third")]
        assert not engine.has_unsent


@needs_sockets
async def test_a_goodbye_comes_after_what_the_socket_had_not_taken() -> None:
    async with open_link("sansio", over_sockets) as link, trio.open_nursery() as nursery:
        link.engine.send_nowait([TOO_MUCH])
        nursery.start_soon(link.aclose, 1001, "bye")
        assert await link.client.frame() == (TEXT, TOO_MUCH)
        assert await link.client.frame() == (CLOSE, b"\x03\xe9bye")
        await link.client.send(close(1001))
        assert await link.client.rest() == b""


@needs_sockets
async def test_sending_at_once_to_a_peer_that_has_reset() -> None:
    async with open_link("sansio", over_sockets) as link:
        reset(link.client)
        await link.client.stream.aclose()
        with pytest.raises(PeerGone) as caught:
            while True:
                link.engine.send_nowait([b"x"])
                await trio.lowlevel.checkpoint()
        assert caught.value.code == 1006
        await link.engine.aclose(1000, "")


async def test_memory_streams_cannot_send_at_once() -> None:
    engine, _, _ = await opened()
    assert not engine.sends_at_once


# What is read


async def test_it_reads_as_much_as_there_is_and_gives_it_all() -> None:
    engine, client, stream = await opened()
    await client.send(*[text("x")] * 100, frame(PING), *fragments(b"y", b"z"))
    assert await engine.receive() == ["x"] * 100 + ["yz"]
    assert stream.asked == [READ_BYTES]


async def test_a_read_of_tiny_frames_is_parsed_in_fair_shares() -> None:
    engine, client, stream = await opened()
    count = READ_BYTES // 7
    await client.send(text("x") * count)
    turns, shares = 0, []

    async def another() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(another)
        while sum(shares) < count:
            shares.append(len(await engine.receive()))
        nursery.cancel_scope.cancel()
    assert stream.asked == [READ_BYTES]
    assert max(shares) <= PARSE_BYTES // 7 + 1
    assert len(shares) >= READ_BYTES // (PARSE_BYTES + 7)
    # One each, but for the order within a turn of the loop.
    assert turns >= len(shares) - 2


async def test_frames_that_bring_no_message_are_parsed_in_fair_shares_too() -> None:
    engine, client, _ = await opened()
    await client.send(frame(PONG) * (READ_BYTES // 6 - 2), text("x"))
    turns = 0

    async def another() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with trio.open_nursery() as nursery:
        nursery.start_soon(another)
        assert await engine.receive() == ["x"]
        nursery.cancel_scope.cancel()
    assert turns >= READ_BYTES // PARSE_BYTES - 1


class CountingBytearray(bytearray):
    """Counts the bytes that are copied into it and out of it."""

    copied = 0

    def __init__(self, data: bytes = b"") -> None:
        CountingBytearray.copied += len(data)
        super().__init__(data)

    def __iadd__(self, data: bytes) -> "CountingBytearray":
        CountingBytearray.copied += len(data)
        super().__iadd__(data)
        return self

    def __getitem__(self, key: slice | int) -> bytearray | int:
        got = super().__getitem__(key)
        if isinstance(key, slice):
            CountingBytearray.copied += len(got)
        return got


@pytest.mark.parametrize("parts", [1, 2])
async def test_a_long_message_in_tiny_reads_is_not_copied_for_each(
    parts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(engine_sansio, "bytearray", CountingBytearray, raising=False)
    monkeypatch.setattr(CountingBytearray, "copied", 0)
    size = 20_000
    message = b"x" * size
    engine, client, stream = await opened(most=1, max_message_bytes=size)
    cut = size // parts
    await client.send(*fragments(*(message[start : start + cut] for start in range(0, size, cut))))
    assert await engine.receive() == [message.decode()]
    assert len(stream.asked) > size
    assert CountingBytearray.copied < 4 * size
    # In one piece it is gathered here; fragments go to the protocol as they come.
    assert (CountingBytearray.copied >= size) == (parts == 1)


async def test_a_fault_is_raised_again_and_again() -> None:
    engine, client, _ = await opened()
    await client.send(text("x"), frame(3), text("late"))
    assert await engine.receive() == ["x"]
    for _ in range(3):
        with pytest.raises(BadMessage) as caught:
            await engine.receive()
        assert code_of(caught.value) == (BadMessage, 1002)


async def test_any_pong_will_do_and_one_ping_is_under_way_at_a_time() -> None:
    engine, client, _ = await opened()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.ping)
        await wait_all_tasks_blocked()
        await client.send(frame(PONG, b"from before"), text("x"))
        await engine.receive()
    assert engine.has_unsent
    await engine.send([])
    assert await client.frame() == (PING, b"")
