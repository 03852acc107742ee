"""What is particular to the fast engine."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked
from websockets.frames import Frame, Opcode

from tests.transport.house import open_by_hand, open_house


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
