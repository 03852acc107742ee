"""Accept, admit, serve, drain; and whatever happens in one connection stays in it."""

import itertools
from contextlib import AsyncExitStack

import pytest
import trio
from trio.testing import (
    MockClock,
    lockstep_stream_pair,
    open_stream_to_socket_listener,
    wait_all_tasks_blocked,
)

from persona.client import RemoteError, wrap_client
from persona.testing import open_server, settings_with
from persona.transport import listener as listener_module
from persona.transport.connection import WRITE_BYTES
from persona.transport.listener import CLOSE_JITTER_S, RETRY_AFTER_S, peer_address
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
        assert house.value("connections_closed_total", cause="error") >= 1
        assert house.value("connections") == 1
        await bystander.call("t.sleep")


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


# Shedding


async def test_shedding_takes_the_idle_first_and_of_the_busy_who_reads_least(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    """Six clients: 1 to 3 idle, the second heard last; 4 to 6 busy, the fifth with most unread."""
    async with open_house(limits={"write_deadline_s": 3600.0, "request_timeout_s": 3600.0}) as house:
        clients, ends = [], []
        for _ in range(6):
            ours, theirs = house.knock()
            clients.append(await house.nursery.start(stay_on, ours))
            ends.append(theirs)
            await trio.sleep(1)
        await clients[1].notify("t.sleep")
        for client in clients[3:]:
            await client.notify("t.sleep", {"seconds": 3600.0})
        await wait_all_tasks_blocked()
        for number, size in ((4, 10), (5, 1000), (6, 100)):
            ends[number - 1].send_stream.send_all_hook = trio.sleep_forever
            for payload in (b"0", b"1" * size):  # the writer takes the first, and is stuck with it
                house.connection_of(number).offer(payload)
                await wait_all_tasks_blocked()
        gone = []
        for _ in range(6):
            before = set(house.listener.connections)
            assert house.listener.shed(1) == 1
            await trio.sleep(house.settings.limits.close_timeout_s + 1)  # who is stuck takes that long
            gone += before - set(house.listener.connections)
        assert gone == ["s1", "s3", "s2", "s5", "s6", "s4"]
        assert house.listener.shed(1) == 0
        assert [(await client.wait_closed()).code for client in clients[:3]] == [1013] * 3
        assert house.value("connections_shed_total", choice="idle") == 3
        assert house.value("connections_shed_total", choice="slow") == 3
        assert house.value("connections_closed_total", cause="shed") == 6


async def test_shedding_takes_nobody_twice(autojump_clock: MockClock, open_house: OpenHouse) -> None:
    async with open_house() as house:
        for _ in range(3):
            await open_by_hand(house)  # none of them answers a goodbye
        assert [house.listener.shed(2) for _ in range(3)] == [2, 1, 0]
        assert house.value("connections_shed_total", choice="idle") == 3


async def test_after_half_a_frame_comes_nothing(autojump_clock: MockClock, open_house: OpenHouse) -> None:
    async with open_house(limits={"max_pending_bytes": 1000}) as house:
        ours, theirs = lockstep_stream_pair()
        house.door.knock.send_nowait(theirs)
        await ours.send_all(HEAD)
        assert (await ours.receive_some())[:12] == b"HTTP/1.1 101"
        await wait_all_tasks_blocked()
        connection = house.connection_of(1)
        connection.offer(b"x" * 900)
        await wait_all_tasks_blocked()
        assert await ours.receive_some(10) == b"\x81\x7e\x03\x84xxxxxx"
        connection.offer(b"y" * 900)
        assert not connection.offer(b"z" * 900)
        await wait_all_tasks_blocked()
        assert house.listener.connections == {}
        assert house.value("connections_closed_total", cause="slow_consumer") == 1
        rest = [bytes(data) async for data in ours]
        assert set(b"".join(rest)) <= set(b"x")
        assert trio.current_time() == 0


# Draining


async def test_draining_waits_for_requests_and_refuses_new_ones(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house(server={"graceful_timeout_s": 10.0}) as house:
        client, answers = await house.join(), []
        house.hub.subscribe(house.connection_of(1), ["system"])

        async def work() -> None:
            answers.append(await client.call("t.sleep", {"seconds": 3.0}))

        house.nursery.start_soon(work)
        await wait_all_tasks_blocked()
        house.nursery.start_soon(house.listener.drain)
        await wait_all_tasks_blocked()
        event = client.events().receive_nowait().params
        assert (event["type"], event["data"]) == ("system.draining", {"grace_s": 10.0})
        with pytest.raises(RemoteError) as caught:
            await client.call("t.sleep")
        assert caught.value.reason == "shutting_down"
        lost = await client.wait_closed()
        assert answers == [{"slept": 3.0}]
        assert lost.code == 1012
        assert trio.current_time() == pytest.approx(3, abs=0.1)


async def test_who_is_in_the_middle_of_its_handshake_is_refused_by_a_drain(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house() as house:
        stream, _ = house.knock()
        await stream.send_all(HEAD[:-2])
        await wait_all_tasks_blocked()
        late, _ = house.knock()  # accepted, and not looked at yet
        await house.listener.drain()
        await wait_all_tasks_blocked()
        assert trio.current_time() == 0
        for refused in (stream, late):
            assert (await refused.receive_some())[:12] == b"HTTP/1.1 503"
        assert house.value("handshakes_refused_total", reason="draining") == 2


async def test_who_is_let_in_while_the_others_are_sent_away_is_sent_after_them(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house() as house:
        ours, theirs = house.knock()

        async def drain_meanwhile() -> None:
            # The answer to the opening request is under way: nobody can send it away yet.
            theirs.send_stream.send_all_hook = None
            await house.listener.drain()

        theirs.send_stream.send_all_hook = drain_meanwhile
        await ours.send_all(HEAD)
        await wait_all_tasks_blocked()
        answer = await ours.receive_some()
        assert answer[:12] == b"HTTP/1.1 101"
        with trio.fail_after(1):
            assert answer.partition(b"\r\n\r\n")[2] or await ours.receive_some()  # a goodbye
        await trio.sleep(house.settings.limits.close_timeout_s + 1)
        assert house.listener.connections == {}
        assert house.value("connections_closed_total", cause="shutdown") == 1


async def test_at_the_deadline_a_stream_is_cancelled_and_gets_its_last_event(
    autojump_clock: MockClock, engine: str
) -> None:
    ended = []
    async with (
        open_server(server={"engine": engine, "graceful_timeout_s": 2.0}) as server,
        server.connect() as client,
    ):

        async def listen() -> None:
            async with client.chat_stream("Tell me a long story", persona_id="aria") as stream:
                said = "".join([delta async for delta in stream])
                assert stream.result is not None
                ended.append((stream.result.finish_reason, stream.result.text == said != ""))
                ended.append((await client.wait_closed()).code)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(listen)
            await wait_all_tasks_blocked()
            await server.drain()
    assert ended == [("cancelled", True), 1012]


async def test_everybody_is_sent_away_in_batches(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch, open_house: OpenHouse
) -> None:
    monkeypatch.setattr(listener_module, "CLOSE_BATCH", 2)
    left_at: list[float] = []
    async with open_house() as house:

        async def stay() -> None:
            async with house.connect() as client:
                await client.wait_closed()
                left_at.append(trio.current_time())

        for _ in range(5):
            house.nursery.start_soon(stay)
        await wait_all_tasks_blocked()
        await house.listener.drain()
    batches = [len(list(group)) for _, group in itertools.groupby(left_at)]
    assert batches == [2, 2, 1]
    times = sorted(set(left_at))
    assert times[0] == 0
    low, high = CLOSE_JITTER_S
    assert all(low <= later - earlier <= high for earlier, later in itertools.pairwise(times))


async def test_who_takes_what_was_left_for_it_too_slowly_is_not_waited_for(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    """Each write ends within its deadline; all of them would take minutes."""
    async with open_house(limits={"close_timeout_s": 5.0}) as house:
        ours, theirs = house.knock()
        await house.nursery.start(stay_on, ours)

        async def trickle() -> None:
            await trio.sleep(3)

        theirs.send_stream.send_all_hook = trickle
        for _ in range(10):
            # None of them is joined to another in one write.
            house.connection_of(1).offer(b'{"jsonrpc":"2.0","method":"event"}' + b" " * WRITE_BYTES)
        await house.listener.drain()
        assert trio.current_time() == pytest.approx(5, abs=0.1)
        await wait_all_tasks_blocked()
        assert house.listener.connections == {}


async def test_serving_ends_with_the_last_connection_of_a_drain(
    autojump_clock: MockClock, engine: str
) -> None:
    house: House
    async with trio.open_nursery() as clients:
        async with trio.open_nursery() as serving:
            house = House(settings_with(server={"engine": engine}), clients)
            await serving.start(house.listener.serve, [house.door])
            await house.join()
            house.nursery.start_soon(house.listener.drain)
        assert house.listener.connections == {}
        with pytest.raises(trio.BrokenResourceError):
            house.knock()  # nobody accepts any more
