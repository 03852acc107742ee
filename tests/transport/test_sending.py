"""What engines send: messages, and among them what they say by themselves. Each test is over both."""

import pytest
import trio
from trio.testing import memory_stream_pair, wait_all_tasks_blocked

from persona.transport.engine import PeerGone
from persona.transport.frames import text_header
from persona.transport.sending import MAX_PONG_BYTES, TextFramer
from tests.transport.conftest import OpenLink
from tests.transport.link import (
    CLOSE,
    OPENING_HEAD,
    OPTIONS,
    PING,
    PONG,
    TEXT,
    accept_with,
    close,
    frame,
    reset,
    text,
)

TOO_MUCH = b"x" * 8_000_000
"""More than the buffers of a loopback connection hold."""


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


class Kept(trio.abc.HalfCloseableStream):
    """Keeps what it is given to send, as it is."""

    def __init__(self, stream: trio.abc.HalfCloseableStream) -> None:
        self._stream = stream
        self.sent: list[bytes] = []

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        return await self._stream.receive_some(max_bytes)

    async def send_all(self, data: bytes) -> None:
        self.sent.append(data)
        await self._stream.send_all(data)

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        await self._stream.aclose()


async def test_connections_of_one_listener_share_the_frame(engine: str) -> None:
    accept = accept_with(engine)
    message = b"for everybody"
    sent = []
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            ours, theirs = memory_stream_pair()
            kept = Kept(ours)
            opened = await accept(nursery, kept, OPENING_HEAD, subprotocol=None, options=OPTIONS)
            await opened.send([message])
            sent.append(kept.sent[-1])
            await theirs.aclose()
        nursery.cancel_scope.cancel()
    assert sent[0] == b"\x81\x0dfor everybody"
    assert sent[1] is sent[0]
    assert sent[2] is sent[0]


async def test_pongs_that_nobody_takes_are_bounded(memory_link: OpenLink) -> None:
    count = 2 * MAX_PONG_BYTES // 127
    async with memory_link() as link:
        # The owner has no time.
        link.is_sending = True
        async with trio.open_nursery() as nursery:
            nursery.start_soon(
                link.client.send, *(frame(PING, b"%125d" % n) for n in range(count)), text("x")
            )
            assert await link.messages(1) == ["x"]
        await wait_all_tasks_blocked()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.engine.send, [b"y"])
            frames = []
            while not frames or frames[-1][0] != TEXT:
                frames.append(await link.client.frame())
        kept = len(frames) - 1
        assert MAX_PONG_BYTES <= kept * 127 < MAX_PONG_BYTES + 127
        assert frames == [*((PONG, b"%125d" % n) for n in range(kept)), (TEXT, b"y")]
        # Once they are taken it answers again.
        await link.client.send(frame(PING, b"late"), text("z"))
        assert await link.messages(1) == ["z"]
        await link.engine.send([])
        assert await link.client.frame() == (PONG, b"late")


async def test_what_the_socket_does_not_take_at_once_goes_before_all_else(socket_link: OpenLink) -> None:
    async with socket_link() as link:
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


async def test_a_pong_does_not_go_into_the_middle_of_a_message(socket_link: OpenLink) -> None:
    async with socket_link() as link, trio.open_nursery() as nursery:
        nursery.start_soon(link.ending)
        async with trio.open_nursery() as sending:
            link.is_sending = True
            sending.start_soon(link.engine.send, [TOO_MUCH])
            await link.client.send(frame(PING, b"mine"))
            while not link.engine.has_unsent:
                await trio.sleep(0.001)
            assert await link.client.frame() == (TEXT, TOO_MUCH)
        link.is_sending = False
        link.flush()
        assert await link.client.frame() == (PONG, b"mine")
        nursery.cancel_scope.cancel()


async def test_it_says_how_much_it_holds_until_the_last_byte_is_taken(socket_link: OpenLink) -> None:
    async with socket_link() as link, trio.open_nursery() as nursery:
        engine = link.engine
        assert engine.unsent_bytes == 0
        engine.send_nowait([TOO_MUCH])
        kept_bytes = engine.unsent_bytes
        assert 0 < kept_bytes < len(TOO_MUCH)
        nursery.start_soon(link.send, b"more")
        await wait_all_tasks_blocked()
        assert engine.unsent_bytes == kept_bytes + len(text_header(4) + b"more")
        assert await link.client.frame() == (TEXT, TOO_MUCH)
        assert await link.client.frame() == (TEXT, b"more")
        await wait_all_tasks_blocked()
        assert engine.unsent_bytes == 0


async def test_it_holds_nothing_of_a_write_that_was_cut(socket_link: OpenLink) -> None:
    async with socket_link() as link, trio.open_nursery() as nursery:
        nursery.start_soon(link.engine.send, [TOO_MUCH])
        await wait_all_tasks_blocked()
        assert link.engine.unsent_bytes > len(TOO_MUCH)
        nursery.cancel_scope.cancel()
    assert link.engine.unsent_bytes == 0


async def test_a_pong_is_not_dropped_for_what_a_message_has_left_to_be_sent(socket_link: OpenLink) -> None:
    async with socket_link() as link:
        # The owner has no time.
        link.is_sending = True
        link.engine.send_nowait([TOO_MUCH])
        await link.client.send(frame(PING, b"mine"), text("x"))
        assert await link.messages(1) == ["x"]
        link.is_sending = False
        link.flush()
        assert await link.client.frame() == (TEXT, TOO_MUCH)
        assert await link.client.frame() == (PONG, b"mine")


async def test_a_goodbye_comes_after_what_the_socket_had_not_taken(socket_link: OpenLink) -> None:
    async with socket_link() as link, trio.open_nursery() as nursery:
        link.engine.send_nowait([TOO_MUCH])
        nursery.start_soon(link.aclose, 1001, "bye")
        assert await link.client.frame() == (TEXT, TOO_MUCH)
        assert await link.client.frame() == (CLOSE, b"\x03\xe9bye")
        await link.client.send(close(1001))
        assert await link.client.rest() == b""


async def test_so_does_the_answer_to_a_goodbye(socket_link: OpenLink) -> None:
    async with socket_link() as link, trio.open_nursery() as nursery:
        link.engine.send_nowait([TOO_MUCH])
        await link.client.send(close(1000))
        _, ending = await link.ending()
        nursery.start_soon(link.aclose)
        assert await link.client.frame() == (TEXT, TOO_MUCH)
        assert await link.client.goodbye() == b"\x03\xe8"
        assert isinstance(ending, PeerGone)


async def test_sending_at_once_to_a_peer_that_has_reset(socket_link: OpenLink) -> None:
    async with socket_link() as link:
        reset(link.client)
        await link.client.stream.aclose()
        with pytest.raises(PeerGone) as caught:
            while True:
                link.engine.send_nowait([b"x"])
                await trio.lowlevel.checkpoint()
        assert caught.value.code == 1006
        await link.engine.aclose(1000, "")


async def test_memory_streams_cannot_send_at_once(memory_link: OpenLink) -> None:
    async with memory_link() as link:
        assert not link.engine.sends_at_once
