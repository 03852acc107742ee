"""What is particular to the fast engine."""

import attrs
import pytest
import trio
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from persona.transport import engine_sansio
from persona.transport.engine import BadMessage
from persona.transport.engine_sansio import (
    PARSE_BYTES,
    AcceptSansio,
    SansioEngine,
)
from persona.transport.sockets import HAS_EPOLL, READ_BYTES
from tests.transport.link import (
    OPENING_HEAD,
    OPTIONS,
    PING,
    PONG,
    Pair,
    RawClient,
    code_of,
    fragments,
    frame,
    text,
)

needs_sockets = pytest.mark.skipif(not HAS_EPOLL, reason="this system has no epoll, and no stream of ours")


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
