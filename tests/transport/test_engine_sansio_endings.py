"""How the fast engine ends: a close between fragments, and one that comes during a write."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, lockstep_stream_pair, wait_all_tasks_blocked
from websockets.frames import Frame, Opcode

from persona.transport.engine import EngineOptions, PeerGone
from persona.transport.engine_sansio import AcceptSansio, SansioEngine
from persona.transport.handshake import read_head
from tests.transport.house import HEAD, House, open_by_hand, open_house

OPTIONS = EngineOptions(
    max_message_bytes=1000, control_rate_per_minute=0, control_rate_burst=1, write_deadline_s=10.0
)


@asynccontextmanager
async def slow_peer() -> AsyncIterator[tuple[SansioEngine, trio.abc.Stream, trio.Nursery]]:
    """An engine, and the other end of its stream, which takes nothing until it is read."""
    ours, theirs = lockstep_stream_pair()
    async with trio.open_nursery() as nursery:
        nursery.cancel_scope.deadline = trio.current_time() + 60
        nursery.start_soon(ours.send_all, HEAD)
        head = await read_head(theirs)
        assert head is not None
        nursery.start_soon(ours.receive_some)
        yield await AcceptSansio()(nursery, theirs, head, subprotocol=None, options=OPTIONS), ours, nursery
    assert not nursery.cancel_scope.cancelled_caught


@pytest.mark.parametrize("payload", [b"\x03\xe8", b"\x03\xe9bye", b""])
async def test_a_close_between_fragments_is_a_close_like_any_other(
    payload: bytes, autojump_clock: MockClock
) -> None:
    async with open_house(server={"engine": "sansio"}) as house:
        stream = await open_by_hand(house)
        for frame in (
            Frame(Opcode.TEXT, b"half a mess", fin=False),
            Frame(Opcode.CLOSE, payload),
            Frame(Opcode.CONT, b"age"),
        ):
            await stream.send_all(frame.serialize(mask=True))
        answer = Frame(Opcode.CLOSE, payload).serialize(mask=False)
        with trio.fail_after(1):
            assert await stream.receive_some() == answer
            assert await stream.receive_some() == b""
        await wait_all_tasks_blocked()
        assert house.value("connections_closed_total", cause="client") == 1


async def test_a_close_between_fragments_with_a_bad_code_is_still_a_fault(autojump_clock: MockClock) -> None:
    async with open_house(server={"engine": "sansio"}) as house:
        stream = await open_by_hand(house)
        for frame in (Frame(Opcode.TEXT, b"half", fin=False), Frame(Opcode.CLOSE, b"\x03\xed")):
            await stream.send_all(frame.serialize(mask=True))
        with trio.fail_after(1):
            assert (await stream.receive_some())[2:4] == (1002).to_bytes(2)


async def test_a_close_that_comes_during_a_send_is_answered_after_it(autojump_clock: MockClock) -> None:
    async with slow_peer() as (engine, peer, nursery):
        ended = []

        async def receive() -> None:
            with pytest.raises(PeerGone) as caught:
                await engine.receive()
            ended.append(caught.value.code)

        nursery.start_soon(engine.send, [b"x" * 50])
        nursery.start_soon(receive)
        close = Frame(Opcode.CLOSE, b"\x03\xe9")
        await peer.send_all(close.serialize(mask=True))
        await wait_all_tasks_blocked()
        assert ended == []
        assert await peer.receive_some() == b"\x81\x32" + b"x" * 50
        await wait_all_tasks_blocked()
        assert ended == [1001]
        # A frame that is only now begun would come between.
        with pytest.raises(PeerGone):
            await engine.send([b"more"])
        nursery.start_soon(engine.aclose, 1000, "")
        assert await peer.receive_some() == close.serialize(mask=False)
        assert await peer.receive_some() == b""


async def leave_during_a_write(house: House) -> trio.abc.Stream:
    """A client that asks, says goodbye, and has not read the answer."""
    ours, theirs = lockstep_stream_pair()
    house.door.knock.send_nowait(theirs)
    await ours.send_all(HEAD)
    await ours.receive_some()
    for frame in (
        Frame(Opcode.TEXT, b'{"jsonrpc": "2.0", "id": 1, "method": "t.sleep"}'),
        Frame(Opcode.CLOSE, b"\x03\xe8"),
    ):
        await wait_all_tasks_blocked()
        await ours.send_all(frame.serialize(mask=True))
    return ours


async def test_who_says_goodbye_during_a_write_can_read_it_and_is_answered(autojump_clock: MockClock) -> None:
    async with open_house(server={"engine": "sansio"}, limits={"write_deadline_s": 3.0}) as house:
        stream = await leave_during_a_write(house)
        await trio.sleep(2.9)
        with trio.fail_after(1):
            assert b'"result"' in await stream.receive_some()
            assert await stream.receive_some() == Frame(Opcode.CLOSE, b"\x03\xe8").serialize(mask=False)
        await wait_all_tasks_blocked()
        assert house.value("connections_closed_total", cause="client") == 1


async def test_who_says_goodbye_and_does_not_read_is_gone_at_the_write_deadline(
    autojump_clock: MockClock,
) -> None:
    async with open_house(server={"engine": "sansio"}, limits={"write_deadline_s": 3.0}) as house:
        await leave_during_a_write(house)
        await trio.sleep(2.9)
        assert len(house.listener.connections) == 1
        await trio.sleep(0.2)
        assert house.listener.connections == {}
        assert house.value("connections_closed_total", cause="client") == 1


@pytest.mark.usefixtures("autojump_clock", "uncollected")
async def test_a_frame_that_was_begun_does_not_wait_for_the_garbage_collector() -> None:
    """The protocol keeps it, which has a circle of its own."""
    begun = Frame(Opcode.TEXT, b"half", fin=False).serialize(mask=True)
    unfinished = Frame(Opcode.CONT, b"the other half").serialize(mask=True)[:-1]
    async with slow_peer() as (engine, peer, nursery):

        async def leave() -> None:
            await peer.send_all(begun + unfinished)
            await peer.aclose()

        nursery.start_soon(leave)
        with pytest.raises(PeerGone):
            await engine.receive()
        parser = engine._protocol.parser
        assert parser.gi_frame is not None
        await engine.aclose(1000, "")
        # What it had read went with its frame. Not asked of the protocol itself: that is free at once on
        # Python 3.11, and on 3.13 it was not.
        assert parser.gi_frame is None
