"""What no engine takes, and how it is said. Where the engines differ, the test says so."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from persona.transport.closing import LINGER_S
from persona.transport.engine import BadMessage, PeerGone
from tests.transport.conftest import OpenLink
from tests.transport.link import (
    BINARY,
    CLOSE,
    CONT,
    PING,
    PONG,
    TEXT,
    close,
    code_of,
    fragments,
    frame,
    text,
)

NO_FRAMING = {
    "first reserved bit": frame(TEXT, b"x", reserved=4),
    "second reserved bit": frame(TEXT, b"x", reserved=2),
    "third reserved bit": frame(TEXT, b"x", reserved=1),
    "reserved bit on a ping": frame(PING, b"x", reserved=4),
    "reserved data opcode": frame(3, b"x"),
    "reserved control opcode": frame(11, b"x"),
    "not masked": frame(TEXT, b"x", mask=None) + bytes(4),
    "ping not masked": frame(PING, mask=None) + bytes(4),
    "ping in fragments": frame(PING, b"x", fin=False),
    "close in fragments": frame(CLOSE, fin=False),
    "ping of 126 bytes": frame(PING, b"x" * 126),
    "ping of 70000 bytes": frame(PING, b"x" * 70000),
    "pong of 126 bytes": frame(PONG, b"x" * 126),
    "close of 126 bytes": close(1000, "x" * 124),
    "continuation of nothing": frame(CONT, b"x"),
    "last fragment of nothing": frame(CONT, b"x", fin=False),
    "text inside fragments": fragments(b"a", b"b")[0] + text("x"),
    "fragment inside fragments": fragments(b"a", b"b")[0] * 2,
    "binary inside fragments": fragments(b"a", b"b")[0] + frame(BINARY, b"x"),
    "continuation after a message in fragments": b"".join(fragments(b"", b"")) + frame(CONT, b"x"),
    "close of one byte": frame(CLOSE, b"x"),
    "close code 0": close(0),
    "close code 999": close(999),
    "close code 1004": close(1004),
    "close code 1005": close(1005),
    "close code 1006": close(1006),
    "close code 1015": close(1015),
    "close code 1016": close(1016),
    "close code 2999": close(2999),
    "close code 5000": close(5000),
    "close code 65535": close(65535),
    "plain text": b"GET / HTTP/1.1\r\n\r\n",
}


@pytest.mark.parametrize("data", NO_FRAMING.values(), ids=NO_FRAMING)
async def test_what_is_no_framing_is_1002(data: bytes, any_link: OpenLink) -> None:
    async with any_link(max_message_bytes=100_000) as link, trio.open_nursery() as nursery:
        nursery.start_soon(link.client.send, text("one"), text("two"), data)
        messages, ending = await link.ending()
        assert [message for message in messages if message] == ["one", "two"]
        assert code_of(ending) == (BadMessage, 1002)
        assert await link.farewell(ending) == 1002


NO_TEXT = {
    "a byte that is never there": (b"ab\xff",),
    "an overlong character": (b"\xc0\x80",),
    "a surrogate": (b"\xed\xa0\x80",),
    "beyond the last character": (b"\xf4\x90\x80\x80",),
    "half a character": (b"\xe6\xb5",),
    "half a character at the end of fragments": (b"x", b"\xe6", b"\xb5"),
    "in the last fragment": (b"good", b"\xff"),
    "continued wrongly": (b"\xe6", b"x"),
}


@pytest.mark.parametrize("parts", NO_TEXT.values(), ids=NO_TEXT)
async def test_what_is_no_utf8_is_1007(parts: tuple[bytes, ...], any_link: OpenLink) -> None:
    async with any_link() as link:
        await link.client.send(text("before"), *fragments(*parts), text("after"))
        messages, ending = await link.ending()
        assert messages == ["before"]
        assert code_of(ending) == (BadMessage, 1007)
        assert await link.farewell(ending) == 1007


async def test_a_close_whose_reason_is_no_utf8_is_1007(any_link: OpenLink) -> None:
    async with any_link() as link:
        await link.client.send(text("before"), frame(CLOSE, b"\x03\xe8\xff"))
        messages, ending = await link.ending()
        assert messages == ["before"]
        assert code_of(ending) == (BadMessage, 1007)


async def test_bad_text_in_an_unfinished_message(engine: str, memory_link: OpenLink) -> None:
    """The engines differ: trio-websocket decodes as it reads, the fast engine a whole message at once."""
    async with memory_link() as link:
        first, last = fragments(b"\xff", b"x")
        await link.client.send(first)
        if engine == "sansio":
            await link.client.send(last)
        assert code_of((await link.ending())[1]) == (BadMessage, 1007)


@pytest.mark.parametrize("parts", [(b"",), (b"{}",), (b"a", b"b"), (b"x" * 1000,)], ids=str)
async def test_a_binary_message_is_1003(parts: tuple[bytes, ...], any_link: OpenLink) -> None:
    async with any_link() as link:
        await link.client.send(text("before"), *fragments(*parts, opcode=BINARY))
        messages, ending = await link.ending()
        assert messages == ["before"]
        assert code_of(ending) == (BadMessage, 1003)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.aclose, 1003, "no")
            assert await link.client.frame() == (CLOSE, b"\x03\xebno")
            await link.client.send(close(1003))
            assert await link.client.rest() == b""
            await link.client.stream.aclose()


async def test_lengths_that_could_be_shorter(engine: str, memory_link: OpenLink) -> None:
    """The engines differ: trio-websocket insists on the shortest form of a length, as the RFC does; the
    fast engine understands each."""
    for length in (b"\xfe\0\1", b"\xff\0\0\0\0\0\0\0\1"):
        async with memory_link() as link:
            await link.client.send(b"\x81", length, b"\0\0\0\0x", close(1000))
            messages, ending = await link.ending()
            if engine == "sansio":
                assert (messages, code_of(ending)) == (["x"], (PeerGone, 1000))
            else:
                assert (messages, code_of(ending)) == ([], (BadMessage, 1002))


async def test_the_end_stays_the_end(any_link: OpenLink) -> None:
    for last, kind, code in (
        (close(1000), PeerGone, 1000),
        (frame(BINARY), BadMessage, 1003),
        (frame(3), BadMessage, 1002),
        (frame(TEXT, bytes(1001)), BadMessage, 1009),
    ):
        async with any_link() as link:
            await link.client.send(last, text("too late"))
            messages, ending = await link.ending()
            assert (messages, code_of(ending)) == ([], (kind, code))
            if code != 1003:
                # After what it did not take itself, trio-websocket would read on; nobody does.
                with pytest.raises((PeerGone, BadMessage)):
                    await link.engine.receive()


async def test_last_words_reach_a_peer_that_was_still_sending(socket_link: OpenLink) -> None:
    """Closing a socket with unread bytes in it would reset the connection, and the words be lost."""
    async with socket_link() as link:
        # More than one read takes, and less than is read in a moment.
        await link.client.send(frame(TEXT, bytes(1001)), *[text("and more")] * 7000)
        ending = (await link.ending())[1]
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.aclose, 1009, "no")
            await wait_all_tasks_blocked()
            await link.client.send(text("and more"))
            assert await link.client.goodbye() == b"\x03\xf1no"
        assert code_of(ending) == (BadMessage, 1009)


async def test_who_does_not_answer_last_words_is_not_waited_for(
    memory_link: OpenLink, autojump_clock: MockClock
) -> None:
    async with memory_link() as link:
        await link.client.send(frame(TEXT, bytes(1001)))
        assert code_of((await link.ending())[1]) == (BadMessage, 1009)
        await link.aclose(1009, "no")
        assert trio.current_time() == pytest.approx(LINGER_S)
        assert await link.client.goodbye() == b"\x03\xf1no"
