"""Sends that take too long, and last words."""

import pytest
import trio
from trio.testing import MockClock, memory_stream_pair, wait_all_tasks_blocked
from websockets.exceptions import ProtocolError

from persona.transport.closing import (
    LINGER_BYTES,
    LINGER_S,
    TooSlow,
    close_frame,
    linger,
    say_goodbye,
    send_within,
)


def test_a_close_frame() -> None:
    assert close_frame(1012, "") == b"\x88\x02\x03\xf4"
    assert close_frame(1009, "zu groß") == b"\x88\x0a\x03\xf1zu gro\xc3\x9f"
    assert close_frame(1000, "x" * 123) == b"\x88\x7d\x03\xe8" + b"x" * 123
    with pytest.raises(ProtocolError):
        close_frame(1000, "x" * 124)


@pytest.mark.parametrize(("takes_s", "is_in_time"), [(0, True), (9.9, True), (10.1, False)])
async def test_a_send_has_its_time_and_no_more(
    autojump_clock: MockClock, takes_s: float, is_in_time: bool
) -> None:
    ours, theirs = memory_stream_pair()
    deliver = ours.send_stream.send_all_hook
    assert deliver is not None

    async def slowly() -> None:
        await trio.sleep(takes_s)
        await deliver()

    ours.send_stream.send_all_hook = slowly
    if is_in_time:
        await send_within(ours, b"data", 10.0)
        assert await theirs.receive_some() == b"data"
    else:
        with pytest.raises(TooSlow):
            await send_within(ours, b"data", 10.0)
        assert trio.current_time() == 10


async def test_a_send_over_a_broken_stream_is_not_too_slow() -> None:
    ours, theirs = memory_stream_pair()
    await theirs.aclose()
    with pytest.raises(trio.BrokenResourceError) as caught:
        await send_within(ours, b"data", 10.0)
    assert not isinstance(caught.value, TooSlow)


async def test_words_then_the_end_and_the_stream_stays_open(autojump_clock: MockClock) -> None:
    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(say_goodbye, ours, b"bye")
        assert await theirs.receive_some() == b"bye"
        assert await theirs.receive_some() == b""
        await theirs.send_eof()
    assert trio.current_time() == 0
    with pytest.raises(trio.ClosedResourceError):
        await ours.send_all(b"more")  # its end was sent
    assert await ours.receive_some() == b""  # and not closed


async def test_a_peer_that_says_nothing_gets_a_moment(autojump_clock: MockClock) -> None:
    ours, _theirs = memory_stream_pair()
    await linger(ours)
    assert trio.current_time() == pytest.approx(LINGER_S)


async def test_what_the_peer_sends_meanwhile_is_read_up_to_a_bound(autojump_clock: MockClock) -> None:
    ours, theirs = memory_stream_pair()
    await theirs.send_all(bytes(LINGER_BYTES + 100))
    await linger(ours)
    # It may not have read yet, so the time is waited out.
    assert trio.current_time() == pytest.approx(LINGER_S)
    assert len(await ours.receive_some()) == 100


async def test_a_peer_that_goes_on_does_not_buy_time(autojump_clock: MockClock) -> None:
    ours, theirs = memory_stream_pair()

    async def babble() -> None:
        while True:
            await theirs.send_all(b"x")
            await trio.sleep(0.1)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(babble)
        await linger(ours)
        assert trio.current_time() == pytest.approx(LINGER_S)
        nursery.cancel_scope.cancel()


async def test_a_stream_whose_end_cannot_be_sent_is_read_all_the_same(autojump_clock: MockClock) -> None:
    ours, theirs = memory_stream_pair()

    class Whole(trio.abc.Stream):
        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            return await ours.receive_some(max_bytes)

        async def send_all(self, data: bytes) -> None:
            await ours.send_all(data)

        async def wait_send_all_might_not_block(self) -> None:
            await ours.wait_send_all_might_not_block()

        async def aclose(self) -> None:
            await ours.aclose()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(say_goodbye, Whole(), b"bye")
        assert await theirs.receive_some() == b"bye"
        await wait_all_tasks_blocked()
        await theirs.aclose()
    assert trio.current_time() == 0


@pytest.mark.parametrize("side", ["ours", "theirs"])
async def test_a_stream_that_is_gone_is_no_error(side: str) -> None:
    ours, theirs = memory_stream_pair()
    await (ours if side == "ours" else theirs).aclose()
    await say_goodbye(ours, b"bye")
