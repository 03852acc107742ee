"""What the `Engine` interface promises, of each engine. Where they differ, the test says so."""

import itertools

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from persona.transport.closing import LINGER_S
from persona.transport.engine import BadMessage, PeerGone
from tests.transport.conftest import OpenLink
from tests.transport.link import (
    ACCEPTED,
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

MIXED = "a, ä, 海 and 🎉"
"""Characters of one to four bytes."""


# The opening


@pytest.mark.parametrize(
    ("offered", "chosen"), [(None, None), ("mcp", "mcp"), ("other, mcp", "mcp"), ("other", None)]
)
async def test_the_opening_is_answered(offered: str | None, chosen: str | None, any_link: OpenLink) -> None:
    async with any_link(offered=offered, subprotocol=chosen) as link:
        status, *lines = link.opening.strip().split(b"\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)}
        assert status.split()[:2] == [b"HTTP/1.1", b"101"]
        assert headers[b"upgrade"].lower() == b"websocket"
        assert headers[b"connection"].lower() == b"upgrade"
        assert headers[b"sec-websocket-accept"] == ACCEPTED
        assert headers.get(b"sec-websocket-protocol") == (chosen.encode() if chosen else None)
        assert b"sec-websocket-extensions" not in headers
        await link.client.send(text("hello"))
        assert await link.messages(1) == ["hello"]


ODD_HEADERS = [
    "Connection: keep-alive",
    "Connection: Upgrade",
    "Connection: a b",
    "Upgrade: websocket",
    "Upgrade: h2c, websocket",
    "Sec-WebSocket-Version: 13",
    "Sec-WebSocket-Version: 8",
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
    "Sec-WebSocket-Protocol: ",
    "Sec-WebSocket-Protocol: other,, a b",
    "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
    "Sec-WebSocket-Extensions: ;;=,",
    "Origin: http://localhost\r\nOrigin: http://localhost",
    "User-Agent: J\u00fcrgen",
    "Content-Length: 0",
    "Transfer-Encoding: chunked",
    "Expect: 100-continue",
]
"""Added to a good request. Admission takes them, and then it is not for an engine to object."""


@pytest.mark.parametrize("odd", ODD_HEADERS)
async def test_who_was_admitted_is_let_in(odd: str, memory_link: OpenLink) -> None:
    async with memory_link(headers=f"{odd}\r\n", offered="mcp", subprotocol="mcp") as link:
        assert link.opening.startswith(b"HTTP/1.1 101 ")
        assert ACCEPTED in link.opening
        await link.client.send(text("hello"))
        assert await link.messages(1) == ["hello"]


@pytest.mark.parametrize("cut", [1, 5, None])
async def test_frames_that_came_with_the_opening_are_read(cut: int | None, any_link: OpenLink) -> None:
    """A client that is in a hurry does not wait for the answer."""
    data = text("early") + frame(PING, b"?") + text("birds")
    async with any_link(sent=[data[:cut]]) as link, trio.open_nursery() as nursery:
        if cut is not None:
            await link.client.send(data[cut:])
        nursery.start_soon(link.client.frame)
        with trio.fail_after(5):
            assert await link.messages(2) == ["early", "birds"]


@pytest.mark.parametrize(
    ("sent", "code"),
    [
        (frame(3), 1002),
        (frame(TEXT, bytes(1001)), 1009),
        (frame(TEXT, b"\xff"), 1007),
        (frame(PONG) * 9, 1008),
        (close(1000), 1000),
    ],
    ids=["framing", "size", "text", "flood", "close"],
)
async def test_an_end_that_came_with_the_opening_is_one(sent: bytes, code: int, any_link: OpenLink) -> None:
    async with any_link(sent=[text("early"), sent], control_rate_per_minute=1, control_rate_burst=8) as link:
        with trio.fail_after(5):
            messages, ending = await link.ending()
        assert (messages, ending.code) == (["early"], code)
        assert await link.farewell(ending) == code


# Messages in


@pytest.mark.parametrize("mask", [b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x01\x80\x7f\xfe"])
@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 65535, 65536, 70000])
async def test_text_of_every_length_is_received(size: int, mask: bytes, any_link: OpenLink) -> None:
    message = "".join(itertools.islice(itertools.cycle("abcdefg"), size))
    async with any_link(max_message_bytes=70000) as link, trio.open_nursery() as nursery:
        nursery.start_soon(link.client.send, frame(TEXT, message.encode(), mask=mask))
        assert await link.messages(1) == [message]


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 1_000_000])
async def test_text_of_every_length_is_sent(size: int, any_link: OpenLink) -> None:
    message = b"x" * size
    async with any_link() as link, trio.open_nursery() as nursery:
        nursery.start_soon(link.engine.send, [message])
        assert await link.client.frame() == (TEXT, message)


async def test_several_are_sent_in_order(any_link: OpenLink) -> None:
    async with any_link() as link:
        await link.engine.send([b"one", MIXED.encode(), b"three"])
        await link.engine.send([b"four"])
        sent = [await link.client.frame() for _ in range(4)]
        assert sent == [(TEXT, part) for part in (b"one", MIXED.encode(), b"three", b"four")]


async def test_several_messages_in_one_read(any_link: OpenLink) -> None:
    sent = [f"{n} {MIXED}" for n in range(300)]
    async with any_link() as link, trio.open_nursery() as nursery:
        nursery.start_soon(link.client.send, *map(text, sent))
        assert await link.messages(300) == sent


@pytest.mark.parametrize("step", [1, 2, 3, 7])
async def test_one_message_in_many_reads(step: int, any_link: OpenLink) -> None:
    data = b"".join([text(MIXED), frame(PING, b"?"), *fragments(b"x" * 130, b"", b"y"), text("end")])
    async with any_link() as link:

        async def trickle() -> None:
            for start in range(0, len(data), step):
                await link.client.send(data[start : start + step])
                await wait_all_tasks_blocked()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trickle)
            assert await link.messages(3) == [MIXED, "x" * 130 + "y", "end"]
        assert await link.client.frame() == (PONG, b"?")


async def test_frames_that_are_cut_anywhere_are_put_together(any_link: OpenLink) -> None:
    data = text("one") + text("x" * 200) + frame(PING, b"?") + text("three")
    async with any_link() as link:
        for cut in range(1, len(data)):
            await link.client.send(data[:cut])
            await wait_all_tasks_blocked()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(link.client.send, data[cut:])
                assert await link.messages(3) == ["one", "x" * 200, "three"]
            assert await link.client.frame() == (PONG, b"?")


async def test_a_message_in_fragments_with_control_frames_between(any_link: OpenLink) -> None:
    async with any_link() as link:
        first, empty, middle, last = fragments(b"one ", b"", b"two ", b"three")
        await link.client.send(
            first, frame(PING, b"a"), empty, frame(PONG, b"b"), middle, frame(PING, b"c"), last
        )
        await link.client.send(text("whole"), *fragments(b"", b"", b""), *fragments(b"again"))
        assert await link.messages(4) == ["one two three", "whole", "", "again"]
        assert [await link.client.frame() for _ in range(2)] == [(PONG, b"a"), (PONG, b"c")]


async def test_characters_may_be_split_over_fragments(any_link: OpenLink) -> None:
    data = MIXED.encode()
    async with any_link() as link:
        for cut in range(len(data) + 1):
            await link.client.send(*fragments(data[:cut], data[cut:]))
            assert await link.messages(1) == [MIXED]
        await link.client.send(*fragments(*(bytes([byte]) for byte in data)))
        assert await link.messages(1) == [MIXED]


async def test_a_cancelled_receive_loses_nothing(any_link: OpenLink) -> None:
    data = text("one") + b"".join(fragments(b"tw", b"o"))
    async with any_link() as link:
        for cut in range(1, len(data)):
            await link.client.send(data[:cut])
            got: list[str] = []
            async with trio.open_nursery() as nursery:

                async def listen(got: list[str] = got) -> None:
                    while True:
                        got += await link.engine.receive()

                nursery.start_soon(listen)
                await wait_all_tasks_blocked()
                nursery.cancel_scope.cancel()
            with trio.CancelScope() as cancelled:
                cancelled.cancel()
                got += await link.engine.receive()
            await link.client.send(data[cut:])
            got += await link.messages(2 - len(got))
            assert got == ["one", "two"]


# The bound of a message, in bytes


@pytest.mark.parametrize("character", ["x", "ä", "海", "🎉"])
async def test_a_message_of_exactly_the_bound_is_taken(character: str, any_link: OpenLink) -> None:
    size = len(character.encode())
    message = character * (600 // size)
    data = message.encode()
    async with any_link(max_message_bytes=600) as link:
        await link.client.send(text(message))
        await link.client.send(*fragments(data[:1], data[1:599], data[599:], b""))
        await link.client.send(text(message))
        assert await link.messages(3) == [message] * 3


@pytest.mark.parametrize("character", ["x", "ä", "海", "🎉"])
@pytest.mark.parametrize("cuts", [(), (1,), (600,), (1, 2, 600)], ids=str)
async def test_one_byte_more_is_too_big(cuts: tuple[int, ...], character: str, any_link: OpenLink) -> None:
    data = (character * 600).encode()[: 601 - len(character.encode())] + character.encode()
    assert len(data) == 601
    parts = [data[start:end] for start, end in itertools.pairwise((0, *cuts, len(data)))]
    async with any_link(max_message_bytes=600) as link:
        await link.client.send(text("before"), *fragments(*parts), text("after"))
        messages, ending = await link.ending()
        assert messages == ["before"]
        assert code_of(ending) == (BadMessage, 1009)
        assert isinstance(ending, BadMessage)
        assert ending.cause == "too_big"
        assert "600 bytes" in ending.text


@pytest.mark.parametrize("opcode", [PING, PONG])
async def test_a_control_frame_is_no_part_of_the_message_it_interrupts(
    opcode: int, any_link: OpenLink
) -> None:
    async with any_link(max_message_bytes=130) as link:
        first, middle, last = fragments(b"x" * 126, b"yy", b"zz")
        await link.client.send(first, frame(opcode, bytes(125)), middle, frame(opcode, bytes(125)), last)
        assert await link.messages(1) == ["x" * 126 + "yyzz"]
    async with any_link(max_message_bytes=10) as link:
        await link.client.send(frame(opcode, bytes(125)), text("x"))
        assert await link.messages(1) == ["x"]


@pytest.mark.parametrize("size", [126, 65536, 1 << 62])
async def test_a_control_frame_that_is_declared_too_long_is_not_waited_for(
    size: int, any_link: OpenLink
) -> None:
    length = size.to_bytes(2, "big") if size < 65536 else size.to_bytes(8, "big")
    async with any_link() as link:
        await link.client.send(text("before"), b"\x89", b"\xfe" if size < 65536 else b"\xff", length, b"mask")
        messages, ending = await link.ending()
        assert (messages, code_of(ending)) == (["before"], (BadMessage, 1002))


@pytest.mark.parametrize("size", [1001, 65536, 1 << 32, (1 << 62) + 5])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
async def test_what_is_declared_too_big_is_not_waited_for(opcode: int, size: int, any_link: OpenLink) -> None:
    async with any_link() as link:
        length = (
            bytes([0xFE]) + size.to_bytes(2, "big") if size < 65536 else b"\xff" + size.to_bytes(8, "big")
        )
        await link.client.send(bytes([0x80 | opcode]), length, b"mask")
        assert code_of((await link.ending())[1]) == (BadMessage, 1009)


async def test_one_fragment_too_many_is_not_waited_for(any_link: OpenLink) -> None:
    async with any_link() as link:
        first, second = fragments(b"x" * 1000, b"y")
        await link.client.send(first, second[:6])
        assert code_of((await link.ending())[1]) == (BadMessage, 1009)


# What is no good

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
