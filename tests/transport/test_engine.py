"""What the `Engine` interface promises, of each engine. Where they differ, the test says so."""

import itertools

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from persona.transport.engine import BadMessage
from tests.transport.conftest import OpenLink
from tests.transport.link import (
    ACCEPTED,
    BINARY,
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
