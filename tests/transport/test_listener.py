"""Accept, admit, serve, drain; and whatever happens in one connection stays in it."""

from contextlib import AsyncExitStack

import pytest
import trio
from trio.testing import (
    MockClock,
    open_stream_to_socket_listener,
    wait_all_tasks_blocked,
)

from persona.client import wrap_client
from persona.transport import listener as listener_module
from persona.transport.closing import LINGER_S
from persona.transport.listener import RETRY_AFTER_S, peer_address
from tests.transport.conftest import OpenHouse
from tests.transport.house import HEAD, House, open_by_hand, stay_on
from tests.transport.link import CLOSE, PING, TEXT, RawClient, close, frame, text

# Who is let in


async def test_a_client_is_served_and_forgotten_when_it_leaves(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house() as house:
        async with house.connect() as client:
            assert await client.call("t.sleep", {"seconds": 1.0}) == {"slept": 1.0}
            house.hub.subscribe(house.connection_of(1), ["news"])
            assert house.value("connections") == len(house.sessions) == 1
        await wait_all_tasks_blocked()
        assert house.listener.connections == {}
        assert house.hub.publish("news", "x", None).delivered == 0
        assert house.value("connections_closed_total", cause="client") == 1


async def test_it_is_served_by_the_engine_that_is_set(
    autojump_clock: MockClock, open_house: OpenHouse, engine: str
) -> None:
    """Told by what they differ in: trio-websocket insists on the shortest form of a length."""
    async with open_house() as house:
        client = RawClient(await open_by_hand(house))
        await client.send(b"\x81\xfe\0\1\0\0\0\0{")
        opcode, _ = await client.frame()
        assert opcode == (TEXT if engine == "sansio" else CLOSE)


async def test_one_connection_too_many_is_refused_until_another_leaves(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house(limits={"max_connections": 2}) as house:
        await house.join()
        async with house.connect():
            refusal = await house.refusal()
            assert (refusal.status, refusal.retry_after_s) == (503, RETRY_AFTER_S)
            assert house.value("handshakes_refused_total", reason="max_connections") == 1
        await house.join()


async def test_without_memory_nobody_new_is_let_in_and_who_is_there_goes_on(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house() as house:
        client = await house.join()
        house.has_memory = False
        assert (await house.refusal()).status == 503
        assert house.value("handshakes_refused_total", reason="memory") == 1
        await client.call("t.sleep")
        house.has_memory = True
        await house.join()


async def test_one_address_cannot_take_all_places(open_house: OpenHouse) -> None:
    """Over real sockets, because an address is theirs; a proxy's word for it is what can be varied."""
    limits = {"max_connections_per_address": 2}
    async with open_house(limits=limits, server={"trusted_proxies": ("127.0.0.0/8",)}) as house:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        gone = trio.Event()

        async def serve(stream: trio.SocketStream) -> None:
            await house.listener.serve_stream(stream)
            gone.set()

        house.nursery.start_soon(trio.serve_listeners, serve, [listener])
        async with AsyncExitStack() as open_streams:

            async def knock(address: str) -> tuple[trio.SocketStream, bytes]:
                stream = await open_stream_to_socket_listener(listener)
                open_streams.push_async_callback(trio.aclose_forcefully, stream)
                assert peer_address(stream) == "127.0.0.1"
                forwarded = f"\r\nX-Forwarded-For: {address}\r\n".encode()
                await stream.send_all(HEAD.replace(b"\r\n", forwarded, 1))
                with trio.fail_after(5):
                    return stream, (await stream.receive_some())[9:12]

            first, answer = await knock("203.0.113.7")
            assert answer == b"101"
            # Loopback is exempt, and another address is another matter.
            for address in ("203.0.113.7", "203.0.113.8", "2001:db8::1", "::1", "::1", "::1"):
                assert (await knock(address))[1] == b"101"
            await first.aclose()
            with trio.fail_after(5):
                await gone.wait()
            assert (await knock("203.0.113.7"))[1] == b"101"
            assert (await knock("203.0.113.7"))[1] == b"503"
            assert house.value("handshakes_refused_total", reason="max_connections_per_address") == 1
        house.nursery.cancel_scope.cancel()


async def test_half_open_connections_are_bounded_and_time_out(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house(limits={"max_handshakes": 1, "handshake_timeout_s": 10.0}) as house:
        silent, _ = house.knock()
        await silent.send_all(HEAD[:20])
        await wait_all_tasks_blocked()
        assert house.value("handshakes") == 1
        assert (await house.refusal()).status == 503
        assert house.value("handshakes_refused_total", reason="handshakes") == 1
        await trio.sleep(10)
        assert await silent.receive_some() == b""
        assert house.value("handshakes_refused_total", reason="timeout") == 1
        # An open connection is not half open.
        await house.join()
        await house.join()


async def test_one_address_cannot_take_all_places_of_half_open_connections(
    autojump_clock: MockClock, open_house: OpenHouse, monkeypatch: pytest.MonkeyPatch
) -> None:
    peers = iter(["192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.2", "192.0.2.1"])
    monkeypatch.setattr(listener_module, "peer_address", lambda _stream: next(peers))
    async with open_house(limits={"max_connections_per_address": 2}) as house:
        silent = [house.knock()[0] for _ in range(2)]
        await wait_all_tasks_blocked()
        assert (await house.refusal()).status == 503
        assert house.value("handshakes_refused_total", reason="max_connections_per_address") == 1
        await house.join()
        await silent[0].aclose()
        await wait_all_tasks_blocked()
        await house.join()


async def test_as_many_refused_as_may_be_half_open_are_waited_for_and_no_more(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house(limits={"max_handshakes": 2}) as house:
        for _ in range(2):
            house.knock()
        await wait_all_tasks_blocked()

        async def is_waited_for() -> bool:
            stream, _ = house.knock()
            await wait_all_tasks_blocked()
            assert (await stream.receive_some())[:12] == b"HTTP/1.1 503"
            try:
                await stream.send_all(b"GET ")
            except trio.BrokenResourceError:
                return False
            return True

        assert [await is_waited_for() for _ in range(4)] == [True, True, False, False]
        assert house.value("refusals_cut_short_total") == 2
        await trio.sleep(LINGER_S + 0.1)
        assert await is_waited_for()
        assert house.value("handshakes_refused_total", reason="handshakes") == 5


async def reset() -> None:
    raise trio.BrokenResourceError


async def test_who_vanishes_during_the_handshake_is_counted_and_no_more(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house() as house:
        _, theirs = house.knock()
        theirs.receive_stream.receive_some_hook = reset
        hasty, theirs = house.knock()
        await hasty.send_all(HEAD)
        theirs.send_stream.send_all_hook = reset
        silent, _ = house.knock()
        await silent.aclose()
        babbling, _ = house.knock()
        await babbling.send_all(b"EHLO there\r\n\r\n")
        await wait_all_tasks_blocked()
        assert (await babbling.receive_some())[:12] == b"HTTP/1.1 400"
        refused = {
            sample.labels["reason"]: sample.value
            for family in house.metrics.refused.collect()
            for sample in family.samples
            if sample.name.endswith("_total")
        }
        assert refused == {"vanished": 2, "bad_request": 1}
        assert house.value("connections_closed_total", cause="error") == 0
        await house.join()


# What goes wrong in one


@pytest.mark.parametrize("where", ["reader", "engine"])
async def test_a_crash_in_one_connection_stays_inside(
    where: str, autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house() as house:
        bystander = await house.join()
        ours, theirs = house.knock()
        async with wrap_client(ours) as victim:
            if where == "engine":
                # From the next time on: it waits for something to read already.
                theirs.receive_stream.receive_some_hook = lambda: 1 / 0
            await victim.notify("t.crash" if where == "reader" else "t.sleep")
            lost = await victim.wait_closed()
        if where == "reader":
            assert lost.code == 1011
        # An engine that has crashed reads no goodbye; the wait for one is bounded.
        await trio.sleep(house.settings.limits.close_timeout_s + 1)
        assert house.value("connections_closed_total", cause="error") == 1
        assert house.value("connections") == 1
        await bystander.call("t.sleep")


async def test_it_says_beforehand_why_a_client_would_be_refused(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house(limits={"max_connections": 1}) as house:
        assert house.listener.refusal() is None
        house.has_memory = False
        assert house.listener.refusal() == "memory"
        house.has_memory = True
        async with house.connect():
            assert house.listener.refusal() == "max_connections"
        await wait_all_tasks_blocked()
        assert house.listener.refusal() is None
        await house.listener.drain()
        assert house.listener.refusal() == "draining"


async def test_a_ping_that_crosses_the_close_is_no_crash(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house() as house:
        stream = await open_by_hand(house)
        house.nursery.start_soon(house.listener.drain)
        await wait_all_tasks_blocked()
        assert (await stream.receive_some())[0] == 0x88
        await stream.send_all(b"\x89\x80\0\0\0\0")
        await trio.sleep(house.settings.limits.close_timeout_s + 1)
        assert house.listener.connections == {}
        assert house.value("connections_closed_total", cause="shutdown") == 1
        assert house.value("connections_closed_total", cause="error") == 0


async def test_a_peer_that_never_says_goodbye_is_not_waited_for(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house(limits={"close_timeout_s": 5.0}) as house:
        stream = await open_by_hand(house)
        await house.listener.drain()
        await wait_all_tasks_blocked()
        assert trio.current_time() == pytest.approx(5, abs=0.1)
        assert house.listener.connections == {}
        assert await stream.receive_some() != b""  # the goodbye it did not answer
        assert await stream.receive_some() == b""


async def test_a_listener_that_is_cancelled_says_that_the_server_restarts(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    lost = []

    async def stay(house: House) -> None:
        async with house.connect() as client:
            lost.append(await client.wait_closed())

    async with open_house() as house:
        house.nursery.start_soon(stay, house)
        await wait_all_tasks_blocked()
    assert [loss.code for loss in lost] == [1012]


async def test_who_asks_and_closes_in_one_breath_gets_its_goodbye(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    """What was to be sent is cut before it began; no half of it stands on the wire."""
    async with open_house() as house:
        client = RawClient(await open_by_hand(house))
        await client.send(frame(PING, b"?"), text("{"), close(1001))
        said = [await client.frame()]
        while said[-1][0] != CLOSE:
            said.append(await client.frame())
        assert said[-1] == (CLOSE, b"\x03\xe9")
        assert await client.rest() == b""


async def test_who_does_not_answer_a_ping_is_counted_as_that(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house(limits={"ping_interval_s": 20.0, "ping_timeout_s": 15.0}) as house:
        await open_by_hand(house)
        await trio.sleep(34.9)
        assert house.value("connections") == 1
        await trio.sleep(0.2)
        assert house.value("connections") == 0
        assert house.value("connections_closed_total", cause="ping_timeout") == 1


async def test_who_does_not_take_what_it_is_sent_is_counted_as_that(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house(limits={"write_deadline_s": 10.0}) as house:
        ours, theirs = house.knock()
        await house.nursery.start(stay_on, ours)
        theirs.send_stream.send_all_hook = trio.sleep_forever
        house.connection_of(1).offer(b"{}")
        await trio.sleep(9.9)
        assert house.value("connections") == 1
        await trio.sleep(0.2)
        assert house.value("connections") == 0
        assert house.value("connections_closed_total", cause="write_deadline") == 1


async def test_a_write_may_take_all_of_its_time(autojump_clock: MockClock, open_house: OpenHouse) -> None:
    async with open_house(limits={"write_deadline_s": 10.0}) as house:
        ours, theirs = house.knock()
        client = await house.nursery.start(stay_on, ours)
        deliver = theirs.send_stream.send_all_hook
        assert deliver is not None

        async def slowly() -> None:
            await trio.sleep(9.9)
            await deliver()

        theirs.send_stream.send_all_hook = slowly
        for number in range(3):
            house.connection_of(1).offer(b'{"jsonrpc":"2.0","method":"event","params":[%d]}' % number)
            await wait_all_tasks_blocked()
        await trio.sleep(30)
        events = client.events()
        assert [events.receive_nowait().params for _ in range(3)] == [[0], [1], [2]]
