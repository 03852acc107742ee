"""Pings, pongs and floods, as the `Engine` interface has them, of each engine. Where they differ, the test
says so."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from persona.transport.engine import BadMessage, PeerGone
from tests.transport.conftest import OpenLink
from tests.transport.link import (
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

# Pings and pongs


@pytest.mark.parametrize("payload", [b"", b"x", bytes(range(125)), b"\xff\xfe"], ids=len)
async def test_a_ping_is_answered_with_its_payload(payload: bytes, any_link: OpenLink) -> None:
    async with any_link() as link, trio.open_nursery() as nursery:
        nursery.start_soon(link.messages, 1)
        await link.client.send(frame(PING, payload))
        assert await link.client.frame() == (PONG, payload)
        await link.client.send(text("done"))


async def test_pings_and_messages_keep_their_order(any_link: OpenLink) -> None:
    async with any_link() as link:
        for n in range(20):
            await link.client.send(frame(PING, b"%d" % n), text(str(n)))
            (message,) = await link.messages(1)
            await link.send(message.encode())
        frames = [await link.client.frame() for _ in range(40)]
        assert frames == [(opcode, b"%d" % n) for n in range(20) for opcode in (PONG, TEXT)]


async def test_many_pings_in_one_read_are_all_answered_in_order(any_link: OpenLink) -> None:
    async with any_link() as link, trio.open_nursery() as nursery:
        nursery.start_soon(link.messages, 1)
        nursery.start_soon(link.client.send, *(frame(PING, b"%d" % n) for n in range(200)), text("done"))
        assert [await link.client.frame() for _ in range(200)] == [(PONG, b"%d" % n) for n in range(200)]


async def test_a_ping_of_ours_ends_with_its_pong(any_link: OpenLink) -> None:
    async with any_link() as link, trio.open_nursery() as listening:
        listening.start_soon(link.ending)
        for _ in range(3):
            ended = []

            async def ask(ended: list[bool] = ended) -> None:
                await link.engine.ping()
                ended.append(True)

            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                opcode, payload = await link.client.frame()
                assert opcode == PING
                await link.client.send(text("not yet"))
                await wait_all_tasks_blocked()
                assert not ended
                await link.client.send(frame(PONG, payload))
            assert ended
        listening.cancel_scope.cancel()


async def test_a_pong_that_nobody_asked_for(engine: str, memory_link: OpenLink) -> None:
    """The engines differ: for the fast one any pong shows that the peer lives."""
    async with memory_link() as link:
        await link.client.send(frame(PONG), frame(PONG, b"hello"), text("on"))
        assert await link.messages(1) == ["on"]
        ended = []

        async def ask() -> None:
            await link.engine.ping()
            ended.append(True)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask)
            _, payload = await link.client.frame()
            await link.client.send(frame(PONG, b"other" + payload), text("and on"))
            assert await link.messages(1) == ["and on"]
            await wait_all_tasks_blocked()
            assert bool(ended) == (engine == "sansio")
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize("farewell", [b"", close(1000)], ids=["drops", "closes"])
async def test_a_ping_whose_peer_goes_is_the_callers_to_bound(
    farewell: bytes, engine: str, memory_link: OpenLink, autojump_clock: MockClock
) -> None:
    async with memory_link() as link, trio.open_nursery() as nursery:

        async def ask() -> None:
            with pytest.raises(trio.TooSlowError), trio.fail_after(20):
                await link.engine.ping()

        nursery.start_soon(ask)
        assert (await link.client.frame())[0] == PING
        await link.client.send(farewell)
        await link.client.stream.send_eof()
        assert code_of((await link.ending())[1]) == (PeerGone, 1000 if farewell else 1006)
        # The reader knows it at once, and ends the connection: the ping with it.
        assert trio.current_time() == 0
        # The engines differ in a ping that comes later: trio-websocket refuses it.
        expected = trio.TooSlowError if engine == "sansio" else PeerGone
        with pytest.raises(expected), trio.fail_after(1):
            await link.engine.ping()


# Floods of frames that bring no message

FLOODS = {
    "pings": frame(PING),
    "pongs": frame(PONG),
    "empty continuations": frame(CONT, fin=False),
    "one-byte continuations": frame(CONT, b"x", fin=False),
}


@pytest.mark.parametrize("kind", FLOODS)
async def test_a_flood_is_1008_and_just_under_it_is_fine(
    kind: str, memory_link: OpenLink, autojump_clock: MockClock
) -> None:
    one = FLOODS[kind]
    start = frame(TEXT, b"x", fin=False) if "continuation" in kind else b""
    allowed = 50 - bool(start)
    async with memory_link(control_rate_per_minute=60, control_rate_burst=50) as link:
        await link.client.send(start, one * allowed, frame(CONT) if start else text("x"))
        assert len(await link.messages(1)) == 1
        # Whole messages, and last fragments, are another's to count.
        await link.client.send(*[text("free")] * 200)
        assert len(await link.messages(200)) == 200
        await trio.sleep(10)
        allowed = 10 - bool(start)
        await link.client.send(start, one * allowed, frame(CONT) if start else text("x"))
        assert len(await link.messages(1)) == 1
        await link.client.send(text("before"), start, one, text("after"))
        messages, ending = await link.ending()
        assert messages == ["before"]
        assert code_of(ending) == (BadMessage, 1008)
        assert isinstance(ending, BadMessage)
        assert ending.cause == "flood"
        # What was asked before it is answered.
        for _ in range(60 if kind == "pings" else 0):
            assert await link.client.frame() == (PONG, b"")
        assert await link.farewell(ending) == 1008


async def test_without_a_rate_there_is_no_flood(memory_link: OpenLink) -> None:
    async with memory_link(control_rate_per_minute=0, control_rate_burst=1) as link:
        await link.client.send(*[frame(PONG)] * 1000, *fragments(*[b"x"] * 1000))
        assert await link.messages(1) == ["x" * 1000]
