"""How the listener sends clients away: one by one to save memory, all of them when it stops."""

import itertools

import pytest
import trio
from trio.testing import (
    MockClock,
    lockstep_stream_pair,
    open_stream_to_socket_listener,
    wait_all_tasks_blocked,
)

from persona.client import RemoteError
from persona.testing import open_server, settings_with
from persona.transport import listener as listener_module
from persona.transport.closing import LINGER_S
from persona.transport.connection import WRITE_BYTES
from persona.transport.listener import CLOSE_JITTER_S
from tests.transport.conftest import OpenHouse
from tests.transport.house import HEAD, House, open_by_hand, stay_on

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
            for payload in (b"0" * size, b"1"):  # the writer takes the first, and is stuck with it
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


# A listener that is cancelled, as when a part of the server crashes


async def test_whoever_cancels_it_does_not_wait_for_who_says_nothing(
    autojump_clock: MockClock, open_house: OpenHouse
) -> None:
    async with open_house(limits={"close_timeout_s": 60.0}) as house:
        stream = await open_by_hand(house)
    assert trio.current_time() == pytest.approx(LINGER_S)
    assert b"the server restarts" in await stream.receive_some()


async def test_goodbyes_over_sockets_are_heard_while_it_is_being_cancelled(engine: str) -> None:
    """What tells the streams lives in the same nursery; and so does trio-websocket's reader."""
    async with trio.open_nursery() as clients:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        house = House(settings_with(server={"engine": engine}, limits={"close_timeout_s": 60.0}), clients)
        with trio.fail_after(20):
            async with trio.open_nursery() as serving:
                await serving.start(house.listener.serve, [listener])
                client = await clients.start(stay_on, await open_stream_to_socket_listener(listener))
                serving.cancel_scope.cancel()
            assert (await client.wait_closed()).code == 1012
        assert house.listener.connections == {}
