"""The outbox: bounded by messages and by bytes, and never a wait for producers."""

import attrs
import pytest

from persona.transport.outbox import MAX_JOINED_BYTES, Outbox


def test_messages_come_out_in_order() -> None:
    outbox = Outbox(max_messages=10, max_bytes=100)
    for message in (b"a", b"b", b"c"):
        assert outbox.offer(message)
    assert len(outbox) == outbox.pending_bytes == 3
    assert outbox.take(100) == [b"a", b"b", b"c"]
    assert len(outbox) == outbox.pending_bytes == 0


@pytest.mark.parametrize(
    ("max_messages", "max_bytes", "messages"),
    [(2, 1000, [b"x", b"x", b"x"]), (1000, 10, [b"12345", b"12345", b"1"])],
)
def test_just_under_the_bound_fits_and_one_more_closes(
    max_messages: int, max_bytes: int, messages: list[bytes]
) -> None:
    outbox = Outbox(max_messages=max_messages, max_bytes=max_bytes)
    *fitting, one_more = messages
    assert all(outbox.offer(message) for message in fitting)
    assert not outbox.offer(one_more)
    assert not outbox.offer(b"")
    # What was taken in is still there; the hole comes after it.
    assert outbox.take(1000) == fitting
    assert outbox.take(1000) == []


def test_one_message_alone_may_be_larger_than_the_bound() -> None:
    outbox = Outbox(max_messages=10, max_bytes=10)
    for _ in range(2):
        assert outbox.offer(b"x" * 100)
        assert outbox.take(10) == [b"x" * 100]
    assert outbox.offer(b"x" * 100)
    assert not outbox.offer(b"x")


def test_as_much_is_taken_as_is_asked_for_and_one_at_least() -> None:
    outbox = Outbox(max_messages=10, max_bytes=1000)
    for message in (b"12345", b"123", b"12", b"x" * 100, b"1"):
        outbox.offer(message)
    assert outbox.take(9) == [b"12345", b"123"]
    assert outbox.take(9) == [b"12"]
    assert outbox.take(9) == [b"x" * 100]
    assert (outbox.take(9), outbox.take(9)) == ([b"1"], [])


def test_what_is_forgotten_is_gone_and_nothing_comes_after_it() -> None:
    outbox = Outbox(max_messages=10, max_bytes=1000)
    outbox.offer(b"1")
    outbox.clear()
    assert (len(outbox), outbox.pending_bytes) == (0, 0)
    assert not outbox.offer(b"2")
    assert not outbox.overflowed
    assert outbox.take(9) == []


def test_what_is_queued_can_be_taken_from_a_closed_one() -> None:
    outbox = Outbox(max_messages=10, max_bytes=1000)
    outbox.offer(b"1")
    outbox.close()
    assert not outbox.offer(b"2")
    assert not outbox.overflowed
    assert outbox.take(9) == [b"1"]


@pytest.mark.parametrize(("sizes", "half_full"), [([4, 5], False), ([4, 6], True), ([0, 0, 0, 0, 0], True)])
def test_it_tells_when_it_is_half_full(sizes: list[int], half_full: bool) -> None:
    outbox = Outbox(max_messages=10, max_bytes=20)
    for size in sizes:
        outbox.offer(b"x" * size)
    assert outbox.is_half_full is half_full


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


def test_chunks_are_joined_only_when_the_client_falls_behind() -> None:
    outbox = Outbox(max_messages=4, max_bytes=1000)
    one, other = "one stream", "another"
    chunks = [
        Chunk(series, text) for series, text in zip([one, one, one, other, one, other], "abcdef", strict=True)
    ]
    assert all(outbox.offer(chunk) for chunk in chunks)
    assert [chunk.was_joined for chunk in chunks] == [False, False, True, False, True, True]
    assert (len(outbox), outbox.pending_bytes) == (3, 60)
    assert outbox.take(1000) == [b"a", b"bce", b"df"]
    assert (len(outbox), outbox.pending_bytes) == (0, 0)


def test_a_chunk_is_never_joined_to_one_that_is_gone() -> None:
    outbox = Outbox(max_messages=2, max_bytes=1000)
    assert outbox.offer(Chunk("stream", "a"))
    assert outbox.take(1000) == [b"a"]
    assert outbox.offer(b"1")
    assert outbox.offer(Chunk("stream", "b"))
    assert outbox.take(1000) == [b"1", b"b"]


def test_joined_chunks_are_bounded_too() -> None:
    outbox = Outbox(max_messages=2, max_bytes=100)
    assert all(outbox.offer(Chunk("stream", "x")) for _ in range(10))
    assert (len(outbox), outbox.pending_bytes) == (1, 100)
    assert not outbox.offer(Chunk("stream", "x"))
    assert outbox.overflowed


def test_a_chunk_that_has_grown_large_takes_in_no_more() -> None:
    outbox = Outbox(max_messages=4, max_bytes=10 * MAX_JOINED_BYTES)
    long = "x" * (MAX_JOINED_BYTES // 20)
    for _ in range(5):
        assert outbox.offer(Chunk("stream", long))
    assert len(outbox) == 3
    assert [len(frame) for frame in outbox.take(10 * MAX_JOINED_BYTES)] == [
        len(long),
        3 * len(long),
        len(long),
    ]
