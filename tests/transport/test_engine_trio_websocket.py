"""The sharp edges of trio-websocket, numbered as the notes on it have them: our server has none of them.

What every engine must do stands in `test_engine.py`, `_control`, `_endings` and `_faults`. Here a house is
served by trio-websocket, which is the default.
"""

import json

import pytest
import trio
from trio.testing import MockClock, lockstep_stream_pair, memory_stream_pair, wait_all_tasks_blocked

from persona.client import ConnectFailed, wrap_client
from persona.config import Settings
from persona.transport.closing import LINGER_S
from persona.transport.engine_trio_websocket import RECEIVE_BUFFER_BYTES, AcceptTrioWebsocket
from tests.rpc.desk import call
from tests.transport.house import HEAD, House, open_by_hand, open_house
from tests.transport.link import (
    CLOSE,
    CONT,
    OPENING_HEAD,
    OPTIONS,
    PING,
    PONG,
    TEXT,
    RawClient,
    close,
    fragments,
    frame,
    open_link,
    text,
)


def test_it_is_the_default() -> None:
    assert Settings().server.engine == "trio-websocket"


def tasks() -> int:
    return trio.lowlevel.current_statistics().tasks_living


async def dial(house: House) -> RawClient:
    return RawClient(await open_by_hand(house))


# 1. Any exception that leaves a handler kills the whole server.


async def test_1_an_error_in_one_connection_is_not_the_servers_end(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        bystander = await house.join()
        crashing, dropping = await dial(house), await dial(house)
        await crashing.send(text('{"jsonrpc":"2.0","method":"t.crash"}'))
        # And one whose peer has gone when it is answered, where `ConnectionClosed` would leave.
        await dropping.send(text('{"jsonrpc":"2.0","method":"t.sleep","id":1,"params":{"seconds":1}}'))
        await wait_all_tasks_blocked()
        await dropping.stream.aclose()
        assert await crashing.frame() == (CLOSE, b"\x03\xf3internal error")
        await trio.sleep(10)
        assert await bystander.call("t.sleep") == {"slept": 0}
        assert len(house.listener.connections) == 1
        await house.join()


# 2. A client's ping that arrives while the server closes raises LocalProtocolError in the reader task.


async def test_2_a_ping_that_crosses_the_close_is_no_error(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        bystander = await house.join()
        client = await dial(house)
        assert house.listener.shed(2) == 2
        assert (await client.frame())[0] == CLOSE
        await client.send(frame(PING, b"?"), close(1013))
        await trio.sleep(house.settings.limits.close_timeout_s + 1)
        assert (await bystander.wait_closed()).code == 1013
        assert house.listener.connections == {}
        assert house.value("connections_closed_total", cause="error") == 0
        assert house.value("connections_closed_total", cause="shed") == 2


# 3. After an oversize message and a silent peer, tasks stay alive; aclose can wait for ever.


async def test_3_too_big_a_message_and_then_silence_leaves_no_task(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        await wait_all_tasks_blocked()
        before = tasks()
        client = await dial(house)
        assert tasks() > before
        await client.send(frame(TEXT, bytes(65537)))
        await trio.sleep(LINGER_S + 0.1)
        assert (house.listener.connections, tasks()) == ({}, before)
        assert (await client.frame())[1][:2] == b"\x03\xf1"
        assert house.value("connections_closed_total", cause="too_big") == 1


async def test_3_a_peer_that_does_not_read_its_goodbye_leaves_no_task(autojump_clock: MockClock) -> None:
    async with open_house() as house:
        await wait_all_tasks_blocked()
        before = tasks()
        ours, theirs = lockstep_stream_pair()
        house.door.knock.send_nowait(theirs)
        await ours.send_all(HEAD)
        await RawClient(ours).opening()
        await ours.send_all(frame(TEXT, bytes(65537))[:100])
        await trio.sleep(house.settings.limits.close_timeout_s + 0.1)
        assert (house.listener.connections, tasks()) == ({}, before)


# 4. The size of a text message is counted in characters, and empty fragments are not counted at all.


async def test_4_the_size_is_counted_in_bytes(autojump_clock: MockClock) -> None:
    async with open_house(limits={"max_message_bytes": 300}) as house:
        client = await dial(house)
        await client.send(text("海" * 100))
        assert (await client.frame())[0] == TEXT  # an answer, though not a kind one
        await client.send(text("海" * 100 + "x"))
        assert (await client.goodbye())[:2] == b"\x03\xf1"


async def test_4_empty_fragments_are_counted(autojump_clock: MockClock) -> None:
    limits = {"control_rate_limit_per_minute": 60, "control_rate_limit_burst": 100}
    async with open_house(limits=limits) as house:
        client = await dial(house)
        await client.send(frame(TEXT, b"{", fin=False), frame(CONT, fin=False) * 99, frame(CONT))
        assert (await client.frame())[0] == TEXT
        await client.send(frame(TEXT, b"{", fin=False), frame(CONT, fin=False) * 99)
        assert (await client.goodbye())[:2] == b"\x03\xf0"
        await wait_all_tasks_blocked()
        assert house.value("connections_closed_total", cause="flood") == 1


# 5. A cancelled send can leave half a frame on the wire.


async def test_5_after_a_write_that_was_cut_nothing_follows(autojump_clock: MockClock) -> None:
    async with open_house(limits={"write_deadline_s": 10.0}) as house:
        ours, theirs = lockstep_stream_pair()
        house.door.knock.send_nowait(theirs)
        await ours.send_all(HEAD)
        client = RawClient(ours)
        await client.opening()
        await wait_all_tasks_blocked()
        house.connection_of(1).offer(b"x" * 900)
        await wait_all_tasks_blocked()
        assert await ours.receive_some(10) == b"\x81\x7e\x03\x84xxxxxx"
        await trio.sleep(10.1)
        assert house.listener.connections == {}
        assert set(await client.rest()) <= set(b"x")
        assert house.value("connections_closed_total", cause="write_deadline") == 1


# 6. With its message queue full, its reader stops and pongs go unread.


async def test_6_pongs_and_pings_are_read_whatever_waits(autojump_clock: MockClock) -> None:
    """Two hundred requests that all wait, of which one alone may run; and a model of a good client."""
    limits = {"ping_interval_s": 1.0, "ping_timeout_s": 0.5, "max_in_flight": 1}
    async with open_house(limits=limits) as house:
        client = await dial(house)
        await client.send(
            *[text(json.dumps(call("t.sleep", n, seconds=60))) for n in range(200)], frame(PING, b"mine")
        )
        pings, is_answered, refused = 0, False, 0
        with trio.move_on_after(10.2):
            while True:
                opcode, payload = await client.frame()
                if opcode == PING:
                    pings += 1
                    await client.send(frame(PONG, payload))
                is_answered |= (opcode, payload) == (PONG, b"mine")
                refused += opcode == TEXT
        assert (pings, is_answered, refused) == (10, True, 199)
        assert house.listener.connections


# 7. A ping in flight does not wake when the peer drops.


async def test_7_a_peer_that_drops_while_it_is_asked_is_gone_at_once(autojump_clock: MockClock) -> None:
    async with open_house(limits={"ping_interval_s": 20.0, "ping_timeout_s": 20.0}) as house:
        await wait_all_tasks_blocked()
        before = tasks()
        client = await dial(house)
        assert (await client.frame())[0] == PING
        assert trio.current_time() == pytest.approx(20)
        await client.stream.aclose()
        await wait_all_tasks_blocked()
        assert trio.current_time() == pytest.approx(20)
        assert (house.listener.connections, tasks()) == ({}, before)
        assert house.value("connections_closed_total", cause="lost") == 1


async def test_7_a_peer_that_does_not_answer_is_gone_in_time(autojump_clock: MockClock) -> None:
    async with open_house(limits={"ping_interval_s": 20.0, "ping_timeout_s": 15.0}) as house:
        client = await dial(house)
        await client.frame()
        await trio.sleep(14.9)
        assert house.listener.connections
        await trio.sleep(0.2)
        assert house.listener.connections == {}
        assert house.value("connections_closed_total", cause="ping_timeout") == 1


# 8. A cancelled server gives its clients 1006.


@pytest.mark.parametrize("how", ["drained", "cancelled"])
async def test_8_clients_of_a_server_that_stops_are_told_so(how: str, autojump_clock: MockClock) -> None:
    codes = []

    async def stay(house: House) -> None:
        async with house.connect() as client:
            codes.append((await client.wait_closed()).code)

    async with open_house() as house:
        for _ in range(3):
            house.nursery.start_soon(stay, house)
        await wait_all_tasks_blocked()
        if how == "drained":
            await house.listener.drain()
    assert codes == [1012] * 3


# 9. Default timeouts are 60 s, the receive buffer 4 KiB, the message limit 1 MiB.


async def test_9_the_handshake_has_our_deadline(autojump_clock: MockClock) -> None:
    async with open_house(limits={"handshake_timeout_s": 10.0}) as house:
        silent, _ = house.knock()
        await silent.send_all(HEAD[:-2])
        assert await silent.receive_some() == b""
        assert trio.current_time() == pytest.approx(10)


async def test_9_a_close_has_our_deadline(autojump_clock: MockClock) -> None:
    async with open_house(limits={"close_timeout_s": 5.0}) as house:
        client = await dial(house)
        await house.listener.drain()
        assert (await client.goodbye())[:2] == b"\x03\xf4"
        assert trio.current_time() == pytest.approx(5, abs=0.1)


async def test_9_it_reads_as_much_as_there_is() -> None:
    asked: list[int | None] = []

    class Watched(trio.abc.HalfCloseableStream):
        async def receive_some(self, max_bytes: int | None = None) -> bytes:
            asked.append(max_bytes)
            return await ours.receive_some(max_bytes)

        async def send_all(self, data: bytes) -> None:
            await ours.send_all(data)

        async def send_eof(self) -> None:
            await ours.send_eof()

        async def wait_send_all_might_not_block(self) -> None:
            await ours.wait_send_all_might_not_block()

        async def aclose(self) -> None:
            await ours.aclose()

    ours, theirs = memory_stream_pair()
    async with trio.open_nursery() as nursery:
        engine = await AcceptTrioWebsocket()(
            nursery, Watched(), OPENING_HEAD, subprotocol=None, options=OPTIONS
        )
        await theirs.send_all(text("x" * 900) * 60)
        for _ in range(60):
            assert len(await engine.receive()) == 1
        assert asked
        assert set(asked) == {RECEIVE_BUFFER_BYTES}
        assert len(asked) <= 2
        await engine.abort()


async def test_9_a_message_has_our_limit(autojump_clock: MockClock) -> None:
    limit = Settings().limits.max_message_bytes
    assert limit == 65536
    async with open_house() as house:
        client = await dial(house)
        await client.send(text("x" * limit))
        assert (await client.frame())[0] == TEXT
        await client.send(text("x" * (limit + 1)))
        assert (await client.goodbye())[:2] == b"\x03\xf1"


# 10. Bad frames and bad UTF-8 drop TCP without a close frame; a plain GET gets 400; the Host is hidden.


@pytest.mark.parametrize(
    ("data", "code", "cause"),
    [
        (frame(3), 1002, "protocol"),
        (frame(TEXT, b"x", mask=None) + bytes(4), 1002, "protocol"),
        (frame(TEXT, b"\xff"), 1007, "not_utf8"),
        (fragments(b"\xe6", b"x")[0] + frame(CONT, b"x"), 1007, "not_utf8"),
        (frame(2, b"{}"), 1003, "binary"),
    ],
    ids=["opcode", "mask", "UTF-8", "UTF-8 in fragments", "binary"],
)
async def test_10_who_breaks_the_rules_is_told_which(
    data: bytes, code: int, cause: str, autojump_clock: MockClock
) -> None:
    async with open_house() as house:
        client = await dial(house)
        await client.send(data)
        opcode, payload = await client.frame()
        assert (opcode, int.from_bytes(payload[:2], "big")) == (CLOSE, code)
        assert payload[2:]
        await client.send(close(code))
        assert await client.rest() == b""
        await trio.sleep(1)
        assert house.listener.connections == {}
        assert house.value("connections_closed_total", cause=cause) == 1


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /mcp HTTP/1.1\r\nHost: localhost\r\n\r\n", b"426"),
        (HEAD.replace(b"localhost", b"evil.example"), b"403"),
    ],
)
async def test_10_plain_http_and_a_foreign_host_get_their_answers(
    head: bytes, status: bytes, autojump_clock: MockClock
) -> None:
    async with open_house() as house:
        ours, _ = house.knock()
        client = RawClient(ours)
        await client.send(head)
        answer = await client.opening()
        assert answer[9:12] == status
        assert (await client.rest()).endswith(b"\n")


# And what is the engine's own


async def test_a_read_brings_one_message_at_a_time() -> None:
    async with open_link("trio-websocket") as link:
        await link.client.send(*[text("x")] * 3)
        assert [list(await link.engine.receive()) for _ in range(3)] == [["x"]] * 3


async def test_what_the_client_offers_is_not_the_engines_to_refuse(autojump_clock: MockClock) -> None:
    """Its own answer to a request it does not like is bare, and its place would be kept until a timeout."""
    async with open_house(limits={"max_connections": 1}) as house:
        ours, _ = house.knock()
        client = RawClient(ours)
        await client.send(HEAD.replace(b"Upgrade: websocket", b"Upgrade: h2c, websocket"))
        assert (await client.opening())[9:12] == b"101"
        with pytest.raises(ConnectFailed):
            async with wrap_client(house.knock()[0]):
                pass
        await client.send(close(1000))
        assert await client.goodbye() == b"\x03\xe8"
        await wait_all_tasks_blocked()
        await house.join()
        assert trio.current_time() == 0
