"""Endings, as the `Engine` interface has them, of each engine. Where they differ, the test
says so."""

import weakref

import pytest
import trio
from trio.testing import MockClock, lockstep_stream_pair, memory_stream_pair, wait_all_tasks_blocked
from wsproto.utilities import LocalProtocolError

from persona.transport.closing import LINGER_BYTES
from persona.transport.engine import BadMessage, PeerGone
from tests.transport.conftest import OpenLink
from tests.transport.link import (
    CLOSE,
    OPENING_HEAD,
    OPTIONS,
    PING,
    PONG,
    TEXT,
    RawClient,
    accept_with,
    close,
    code_of,
    fragments,
    frame,
    reset,
    text,
)

# The client closes


@pytest.mark.parametrize("code", [1000, 1001, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 3000, 4999])
async def test_the_clients_close_is_echoed(code: int, any_link: OpenLink) -> None:
    async with any_link() as link:
        await link.client.send(text("one"), text("two"), close(code, "good bye ü"))
        messages, ending = await link.ending()
        assert messages == ["one", "two"]
        assert code_of(ending) == (PeerGone, code)
        assert await link.farewell(ending) == code


async def test_a_close_without_a_code_is_answered_without_one(any_link: OpenLink) -> None:
    async with any_link() as link:
        await link.client.send(frame(CLOSE))
        ending = (await link.ending())[1]
        assert code_of(ending) == (PeerGone, 1005)
        assert await link.farewell(ending) is None


AFTER_THE_CLOSE = {
    "messages": text("late") * 1000,
    "a ping": frame(PING),
    "no framing": frame(3),
    "too much": frame(TEXT, bytes(1001)),
    "a flood": frame(PONG) * 100,
    "another close": close(1001),
}


@pytest.mark.parametrize("late", AFTER_THE_CLOSE.values(), ids=AFTER_THE_CLOSE)
async def test_what_comes_after_the_clients_close_is_not_looked_at(late: bytes, any_link: OpenLink) -> None:
    async with any_link(control_rate_per_minute=1, control_rate_burst=10) as link:
        await link.client.send(close(1000), late)
        messages, ending = await link.ending()
        assert (messages, code_of(ending)) == ([], (PeerGone, 1000))
        await link.aclose()
        assert await link.client.frame() == (CLOSE, b"\x03\xe8")


async def test_a_close_in_the_middle_of_a_message(memory_link: OpenLink) -> None:
    async with memory_link() as link:
        await link.client.send(fragments(b"one", b"two")[0], close(1000))
        messages, ending = await link.ending()
        assert messages == []
        assert code_of(ending) == (PeerGone, 1000)
        assert await link.farewell(ending) == ending.code


async def test_code_1014_is_newer_than_one_engine(engine: str, memory_link: OpenLink) -> None:
    """The engines differ: trio-websocket's protocol has not heard of it."""
    async with memory_link() as link:
        await link.client.send(close(1014))
        ending = (await link.ending())[1]
        assert code_of(ending) == ((PeerGone, 1014) if engine == "sansio" else (BadMessage, 1002))


# We close


@pytest.mark.parametrize("before", [b"", text("more"), frame(PONG), text("more") * 500], ids=len)
async def test_our_close_is_said_and_its_answer_awaited(before: bytes, any_link: OpenLink) -> None:
    async with any_link() as link, trio.open_nursery() as nursery:
        nursery.start_soon(link.aclose)
        assert await link.client.frame() == (CLOSE, b"\x03\xe9bye")
        await link.client.send(before)
        await wait_all_tasks_blocked()
        await link.client.send(close(1001))
        assert await link.client.rest() == b""


async def test_closes_that_cross_each_other(any_link: OpenLink) -> None:
    """Each side sends one, whoever was first: trio-websocket's own task may be answering the peer's when we
    begin to close."""
    for _ in range(20):
        async with any_link() as link, trio.open_nursery() as nursery:
            await link.client.send(close(1000))
            nursery.start_soon(link.aclose)
            assert await link.client.goodbye() in (b"\x03\xe9bye", b"\x03\xe8")


class SlowSendStream(trio.abc.SendStream):
    """Whoever can run does so between any two bytes it sends."""

    def __init__(self, stream: trio.abc.SendStream) -> None:
        self._stream = stream

    async def send_all(self, data: bytes) -> None:
        for byte in data:
            await wait_all_tasks_blocked()
            await self._stream.send_all(bytes([byte]))

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


async def test_the_answer_to_a_close_is_sent_to_its_end(engine: str) -> None:
    """Who has something to send learns that the peer closes, and is quicker than the answer."""
    ours, theirs = memory_stream_pair()
    client = RawClient(theirs)
    async with trio.open_nursery() as nursery:
        opened = await accept_with(engine)(
            nursery,
            trio.StapledStream(SlowSendStream(ours.send_stream), ours.receive_stream),
            OPENING_HEAD,
            subprotocol=None,
            options=OPTIONS,
        )
        await client.opening()
        await client.send(close(1000))
        with pytest.raises(PeerGone):
            await opened.receive()
        with pytest.raises(PeerGone):
            await opened.send([b"x"])
        nursery.start_soon(opened.aclose, 1001, "bye")
        with trio.fail_after(5):
            assert await client.goodbye() == b"\x03\xe8"


async def test_a_peer_that_does_not_answer_is_the_callers_to_bound(
    memory_link: OpenLink, autojump_clock: MockClock
) -> None:
    async with memory_link() as link:
        with trio.move_on_after(5) as bound:
            await link.aclose()
        assert bound.cancelled_caught
        assert trio.current_time() == 5
        assert await link.client.goodbye() == b"\x03\xe9bye"


async def test_a_peer_that_only_sends_on_is_left(any_link: OpenLink) -> None:
    sent = 0
    async with any_link() as link, trio.open_nursery() as nursery:

        async def babble() -> None:
            nonlocal sent
            with pytest.raises(trio.BrokenResourceError):
                while True:
                    await link.client.send(text("x" * 500))
                    sent += 508
                    await wait_all_tasks_blocked()

        nursery.start_soon(babble)
        await link.aclose()
    assert sent <= 2 * LINGER_BYTES


async def test_a_ping_that_crosses_our_close(
    engine: str, memory_link: OpenLink, autojump_clock: MockClock
) -> None:
    """The engines differ. trio-websocket's own task fails on it (its issue 184), which the listener knows;
    the wait for an answer is then the caller's to bound."""
    with trio.move_on_after(5) as bound:
        if engine == "sansio":
            async with memory_link() as link, trio.open_nursery() as nursery:
                nursery.start_soon(link.aclose)
                assert (await link.client.frame())[0] == CLOSE
                await link.client.send(frame(PING, b"?"), close(1001))
                assert await link.client.rest() == b""
        else:
            with pytest.RaisesGroup(LocalProtocolError, flatten_subgroups=True):
                async with memory_link() as link, trio.open_nursery() as nursery:
                    nursery.start_soon(link.aclose)
                    assert (await link.client.frame())[0] == CLOSE
                    await link.client.send(frame(PING, b"?"))
                    await trio.sleep_forever()
    assert not bound.cancelled_caught


async def test_a_reason_of_full_length_is_said(memory_link: OpenLink) -> None:
    async with memory_link() as link, trio.open_nursery() as nursery:
        nursery.start_soon(link.aclose, 1013, "x" * 123)
        assert await link.client.frame() == (CLOSE, b"\x03\xf5" + b"x" * 123)
        await link.client.send(close(1013))


async def test_closing_twice_is_no_error(any_link: OpenLink) -> None:
    async with any_link() as link:
        await link.client.send(close(1000))
        ending = (await link.ending())[1]
        assert await link.farewell(ending) == 1000
        await link.aclose()


# By force, and what a cut send leaves


async def test_abort_says_nothing(any_link: OpenLink) -> None:
    async with any_link() as link, trio.open_nursery() as nursery:
        endings = []

        async def listen() -> None:
            endings.append(await link.ending())

        nursery.start_soon(listen)
        await wait_all_tasks_blocked()
        await link.engine.abort()
        assert await link.client.rest() == b""
        await wait_all_tasks_blocked()
        assert [(messages, code_of(ending)) for messages, ending in endings] == [([], (PeerGone, 1006))]
        with pytest.raises(PeerGone):
            await link.engine.send([b"x"])
        await link.aclose()


async def test_after_a_send_that_was_cut_nothing_more_is_written(socket_link: OpenLink) -> None:
    message = b"x" * 16_000_000
    async with socket_link() as link:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.engine.send, [message])
            await wait_all_tasks_blocked(0.05)
            nursery.cancel_scope.cancel()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.aclose)
            written = await link.client.rest()
    whole = b"\x81\x7f" + len(message).to_bytes(8, "big") + message
    assert 0 < len(written) < len(whole)
    assert whole.startswith(written)


async def test_a_send_that_was_cut_before_it_began_does_no_harm(any_link: OpenLink) -> None:
    async with any_link() as link:
        with trio.CancelScope() as cancelled:
            cancelled.cancel()
            await link.engine.send([b"x"])
        assert cancelled.cancelled_caught
        await link.client.send(close(1000))
        assert await link.farewell((await link.ending())[1]) == 1000


# A peer that is gone


@pytest.mark.parametrize(
    "begun", [b"", b"\x81", b"\x81\xfe\x01", text("half")[:-1], fragments(b"a", b"b")[0]]
)
async def test_a_peer_that_vanishes_is_1006(begun: bytes, any_link: OpenLink) -> None:
    async with any_link() as link:
        await link.client.send(text("one"), begun)
        await link.client.stream.send_eof()
        messages, ending = await link.ending()
        assert messages == ["one"]
        assert code_of(ending) == (PeerGone, 1006)
        await link.aclose()
        assert await link.client.rest() == b""


async def test_a_peer_that_resets_is_1006(socket_link: OpenLink) -> None:
    async with socket_link() as link:
        reset(link.client)
        async with trio.open_nursery() as nursery:
            endings = []

            async def listen() -> None:
                endings.append(await link.ending())

            nursery.start_soon(listen)
            await wait_all_tasks_blocked()
            await link.client.stream.aclose()
        assert code_of(endings[0][1]) == (PeerGone, 1006)
        with pytest.raises(PeerGone):
            await link.engine.send([b"x"])
        await link.aclose()


async def test_sending_to_a_peer_that_resets_ends(socket_link: OpenLink) -> None:
    async with socket_link() as link:
        reset(link.client)
        async with trio.open_nursery() as nursery:

            async def send() -> None:
                with pytest.raises(PeerGone) as caught:
                    await link.engine.send([b"x" * 16_000_000])
                assert caught.value.code == 1006

            nursery.start_soon(send)
            await wait_all_tasks_blocked()
            await link.client.stream.aclose()
        # Half a frame was written: no goodbye after it.
        await link.aclose()


async def test_a_peer_that_is_gone_before_it_is_answered(engine: str) -> None:
    ours, theirs = memory_stream_pair()
    await theirs.aclose()
    async with trio.open_nursery() as nursery:
        with pytest.raises(trio.BrokenResourceError):
            await accept_with(engine)(nursery, ours, OPENING_HEAD, subprotocol=None, options=OPTIONS)
        nursery.cancel_scope.cancel()


async def test_a_goodbye_to_a_peer_that_is_gone_is_no_error(any_link: OpenLink) -> None:
    async with any_link() as link:
        await link.client.stream.aclose()
        await link.aclose()


async def test_a_peer_that_goes_while_we_close(any_link: OpenLink) -> None:
    async with any_link() as link, trio.open_nursery() as nursery:
        nursery.start_soon(link.aclose)
        await link.client.frame()
        await link.client.stream.aclose()


async def test_a_goodbye_to_a_peer_that_reads_nothing_is_the_callers_to_bound(
    engine: str, autojump_clock: MockClock
) -> None:
    ours, theirs = lockstep_stream_pair()
    client = RawClient(theirs)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.opening)
        opened = await accept_with(engine)(nursery, ours, OPENING_HEAD, subprotocol=None, options=OPTIONS)
        with trio.move_on_after(5) as bound:
            await opened.aclose(1000, "")
        assert bound.cancelled_caught
        assert trio.current_time() == 5
        with pytest.raises(trio.BrokenResourceError):
            await theirs.send_all(b"x")  # closed by force
        nursery.cancel_scope.cancel()


# What is left of it

ENDINGS = {
    "closes": close(1000),
    "is lost": b"",
    "is lost inside a message": fragments(b"begun", b"")[0] + text("and not ended")[:9],
    "sends no framing": frame(3),
    "sends no UTF-8": frame(TEXT, b"\xff"),
    "sends too much": frame(TEXT, bytes(1001)),
    "is sent away": text("?"),
}


@pytest.mark.parametrize("how", ENDINGS)
@pytest.mark.usefixtures("autojump_clock", "uncollected")
async def test_what_it_held_does_not_wait_for_the_garbage_collector(how: str, engine: str) -> None:
    ours, theirs = memory_stream_pair()
    client = RawClient(theirs)
    async with trio.open_nursery() as nursery:
        opened = await accept_with(engine)(nursery, ours, OPENING_HEAD, subprotocol=None, options=OPTIONS)
        await client.opening()
        await client.send(ENDINGS[how])
        if how.startswith("is lost"):
            await theirs.aclose()
        if how == "is sent away":
            await opened.receive()
            nursery.start_soon(client.send, close(1001))
        else:
            with pytest.raises((PeerGone, BadMessage)):
                await opened.receive()
        await opened.aclose(1000, "")
        await wait_all_tasks_blocked()
        held = weakref.ref(opened)
        del opened
        assert held() is None
        nursery.cancel_scope.cancel()
