"""The outbox: bounded by messages and by bytes, and never a wait for producers."""

import attrs
import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from persona.transport.outbox import MAX_JOINED_BYTES, Outbox


async def test_messages_come_out_in_order() -> None:
    outbox = Outbox(max_messages=10, max_bytes=100)
    for message in (b"a", b"b", b"c"):
        assert outbox.offer(message)
    assert len(outbox) == outbox.pending_bytes == 3
    assert [await outbox.take() for _ in range(3)] == [b"a", b"b", b"c"]
    assert len(outbox) == outbox.pending_bytes == 0


@pytest.mark.parametrize(
    ("max_messages", "max_bytes", "messages"),
    [(2, 1000, [b"x", b"x", b"x"]), (1000, 10, [b"12345", b"12345", b"1"])],
)
async def test_just_under_the_bound_fits_and_one_more_closes(
    max_messages: int, max_bytes: int, messages: list[bytes]
) -> None:
    outbox = Outbox(max_messages=max_messages, max_bytes=max_bytes)
    *fitting, one_more = messages
    assert all(outbox.offer(message) for message in fitting)
    assert not outbox.offer(one_more)
    assert not outbox.offer(b"")
    # What was taken in is still there; the hole comes after it.
    assert [await outbox.take() for _ in fitting] == fitting
    assert await outbox.take() is None


async def test_one_message_alone_may_be_larger_than_the_bound() -> None:
    outbox = Outbox(max_messages=10, max_bytes=10)
    for _ in range(2):
        assert outbox.offer(b"x" * 100)
        assert await outbox.take() == b"x" * 100
    assert outbox.offer(b"x" * 100)
    assert not outbox.offer(b"x")


async def test_the_consumer_waits_for_a_message() -> None:
    outbox = Outbox(max_messages=1, max_bytes=10)
    got: list[bytes | None] = []

    async def consume() -> None:
        while (message := await outbox.take()) is not None:
            got.append(message)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(consume)
        await wait_all_tasks_blocked()
        outbox.offer(b"1")
        await wait_all_tasks_blocked()
        outbox.offer(b"2")
        outbox.close()
    assert got == [b"1", b"2"]


async def test_a_cancelled_take_loses_nothing() -> None:
    outbox = Outbox(max_messages=1, max_bytes=10)
    with trio.CancelScope() as scope:
        scope.cancel()
        await outbox.take()
    assert scope.cancelled_caught
    outbox.offer(b"1")
    assert await outbox.take() == b"1"


@attrs.define
class Chunk:
    """One character a chunk, and ten bytes each."""

    series: object
    text: str
    was_joined: bool = False

    @property
    def size_bytes(self) -> int:
        return 10 * len(self.text)

    def join(self, later: "Chunk") -> None:
        self.text += later.text
        later.was_joined = True

    def encode(self) -> bytes:
        return self.text.encode()


async def test_chunks_are_joined_only_when_the_client_falls_behind() -> None:
    outbox = Outbox(max_messages=4, max_bytes=1000)
    one, other = "one stream", "another"
    chunks = [
        Chunk(series, text) for series, text in zip([one, one, one, other, one, other], "abcdef", strict=True)
    ]
    assert all(outbox.offer(chunk) for chunk in chunks)
    assert [chunk.was_joined for chunk in chunks] == [False, False, True, False, True, True]
    assert (len(outbox), outbox.pending_bytes) == (3, 60)
    assert [await outbox.take() for _ in range(3)] == [b"a", b"bce", b"df"]
    assert (len(outbox), outbox.pending_bytes) == (0, 0)


async def test_a_chunk_is_never_joined_to_one_that_is_gone() -> None:
    outbox = Outbox(max_messages=2, max_bytes=1000)
    assert outbox.offer(Chunk("stream", "a"))
    assert await outbox.take() == b"a"
    assert outbox.offer(b"1")
    assert outbox.offer(Chunk("stream", "b"))
    assert [await outbox.take(), await outbox.take()] == [b"1", b"b"]


async def test_joined_chunks_are_bounded_too() -> None:
    outbox = Outbox(max_messages=2, max_bytes=100)
    assert all(outbox.offer(Chunk("stream", "x")) for _ in range(10))
    assert (len(outbox), outbox.pending_bytes) == (1, 100)
    assert not outbox.offer(Chunk("stream", "x"))
    assert outbox.overflowed


async def test_a_chunk_that_has_grown_large_takes_in_no_more() -> None:
    outbox = Outbox(max_messages=4, max_bytes=10 * MAX_JOINED_BYTES)
    long = "x" * (MAX_JOINED_BYTES // 20)
    for _ in range(5):
        assert outbox.offer(Chunk("stream", long))
    assert len(outbox) == 3
    assert [len(await outbox.take() or b"") for _ in range(3)] == [len(long), 3 * len(long), len(long)]
