"""Each limit is reached by a test, and another stays just under it. The ones here do so over real sockets,
or where two modules meet."""

import importlib
import re
from functools import reduce
from pathlib import Path
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from persona.config import LimitSettings
from persona.transport.listener import RETRY_AFTER_S
from tests.e2e.abusers import CLOSE, CONTINUATION, HEAD, PING, TEXT
from tests.e2e.siege import ENGINES, Bare, bare_client, besieged, knocking, status, until
from tests.transport.house import open_by_hand, open_house

HERE = "tests.e2e.test_limits"
LISTENER = "tests.transport.test_listener"
CONNECTION = "tests.transport.test_connection"
DISPATCH = "tests.rpc.test_dispatch"
MONITOR = "tests.monitor.test_memory"

TESTS = {
    # Limit: the test that reaches it, and the one that stays just under.
    "max_connections": (
        f"{HERE}:test_the_last_place_is_given_and_one_more_is_refused",
        f"{HERE}:test_the_last_place_is_given_and_one_more_is_refused",
    ),
    "max_connections_per_address": (
        f"{LISTENER}:test_one_address_cannot_take_all_places",
        f"{LISTENER}:test_one_address_cannot_take_all_places",
    ),
    "max_handshakes": (
        f"{HERE}:test_as_many_handshakes_as_allowed_and_one_more",
        f"{HERE}:test_as_many_handshakes_as_allowed_and_one_more",
    ),
    "handshake_timeout_s": (
        f"{LISTENER}:test_half_open_connections_are_bounded_and_time_out",
        f"{HERE}:test_a_handshake_may_take_all_of_its_time",
    ),
    "max_message_bytes": (
        f"{HERE}:test_a_message_over_the_limit",
        f"{HERE}:test_a_message_of_just_the_limit",
    ),
    "max_json_depth": (
        "tests.rpc.test_jsonrpc:TestDepth.test_the_bound_is_exact",
        "tests.rpc.test_jsonrpc:TestDepth.test_the_bound_is_exact",
    ),
    "rate_limit_per_minute": (
        f"{CONNECTION}:test_over_the_rate_is_refused_and_who_goes_on_is_cut",
        f"{CONNECTION}:test_who_keeps_to_the_rate_is_never_refused",
    ),
    "rate_limit_burst": (
        f"{CONNECTION}:test_over_the_rate_is_refused_and_who_goes_on_is_cut",
        f"{CONNECTION}:test_who_keeps_to_the_rate_is_never_refused",
    ),
    "control_rate_limit_per_minute": (
        f"{HERE}:test_pings_at_the_rate_and_over_it",
        f"{HERE}:test_pings_at_the_rate_and_over_it",
    ),
    "control_rate_limit_burst": (
        f"{HERE}:test_one_frame_more_than_the_burst",
        f"{HERE}:test_a_burst_of_frames_without_a_message",
    ),
    "max_in_flight": (
        f"{DISPATCH}:test_too_much_in_flight_is_refused_at_once",
        "tests.e2e.test_errors:test_overloaded_by_what_is_in_flight",
    ),
    "handler_pool_size": (
        f"{DISPATCH}:test_the_handler_pool_is_shared_by_all_and_chats_are_not_in_it",
        f"{DISPATCH}:test_what_many_do_at_one_moment_is_no_overload",
    ),
    "request_timeout_s": (f"{DISPATCH}:test_deadlines", f"{DISPATCH}:test_deadlines"),
    "chat_timeout_s": (f"{DISPATCH}:test_deadlines", f"{DISPATCH}:test_deadlines"),
    "max_pending_messages": (
        f"{HERE}:test_a_subscriber_that_does_not_read",
        f"{CONNECTION}:test_a_client_that_does_not_read_is_cut_by_messages",
    ),
    "max_pending_bytes": (
        f"{HERE}:test_a_subscriber_that_does_not_read",
        f"{CONNECTION}:test_a_client_that_does_not_read_is_cut_by_bytes",
    ),
    "write_deadline_s": (
        f"{LISTENER}:test_who_does_not_take_what_it_is_sent_is_counted_as_that",
        f"{LISTENER}:test_a_write_may_take_all_of_its_time",
    ),
    "ping_interval_s": (
        f"{CONNECTION}:test_a_dead_peer_is_gone_within_the_sum_of_the_ping_times",
        f"{CONNECTION}:test_a_peer_that_answers_in_time_stays",
    ),
    "ping_timeout_s": (
        f"{CONNECTION}:test_a_dead_peer_is_gone_within_the_sum_of_the_ping_times",
        f"{CONNECTION}:test_a_peer_that_answers_in_time_stays",
    ),
    "close_timeout_s": (
        f"{LISTENER}:test_a_peer_that_never_says_goodbye_is_not_waited_for",
        f"{HERE}:test_a_goodbye_may_take_all_of_its_time",
    ),
    "max_personas": (
        "tests.service.test_personas:test_the_last_place_in_the_cast_is_given_once",
        "tests.rpc.methods.test_persona:test_the_last_persona_there_may_be_and_one_more",
    ),
    "memory_soft_limit_mb": (
        f"{HERE}:test_the_marks_of_memory",
        f"{MONITOR}:test_nobody_is_let_in_above_the_soft_mark_nor_cut_below_the_hard_one",
    ),
    "memory_limit_mb": (
        f"{HERE}:test_the_marks_of_memory",
        f"{MONITOR}:test_above_the_hard_mark_connections_are_shed_until_memory_is_below_the_soft_one",
    ),
}


def test_the_table_has_every_limit() -> None:
    assert list(TESTS) == [field.name for field in attrs.fields(LimitSettings)]


def test_the_operators_page_has_every_limit() -> None:
    page = (Path(__file__).parents[2] / "docs" / "operations.md").read_text(encoding="utf-8")
    table = page.partition("## Limits, and where they show")[2].partition("\n## ")[0]
    limits = {
        limit
        for line in table.splitlines()
        if line.startswith("|")
        for limit in re.findall(r"`(\w+)`", line.split("|")[1])
    }
    assert limits >= TESTS.keys()


@pytest.mark.parametrize("name", sorted({name for pair in TESTS.values() for name in pair}))
def test_each_test_of_the_table_is_there(name: str) -> None:
    module, _, path = name.partition(":")
    assert callable(reduce(getattr, path.split("."), importlib.import_module(module)))


# Places


@pytest.mark.parametrize("engine", ENGINES)
async def test_the_last_place_is_given_and_one_more_is_refused(engine: str, tmp_path: Path) -> None:
    async with (
        besieged(tmp_path, engine, limits={"max_connections": 2}) as siege,
        bare_client(siege.port) as one,
        bare_client(siege.port) as two,
    ):
        async with knocking(siege.port) as late:
            head = await status(late)
            assert head.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert b"\r\nRetry-After: %d\r\n" % RETRY_AFTER_S in head
            assert await late.fate() == "closed"
        assert siege.refused == {"max_connections": 1}
        for client in (one, two):
            await client.alive()


@pytest.mark.parametrize("engine", ENGINES)
async def test_as_many_handshakes_as_allowed_and_one_more(engine: str, tmp_path: Path) -> None:
    async with (
        besieged(tmp_path, engine, limits={"max_handshakes": 2}) as siege,
        knocking(siege.port) as one,
        knocking(siege.port) as two,
    ):
        await one.stream.send_all(HEAD[:1])
        await until(lambda: siege.server.metrics.value("handshakes") == 2)
        async with knocking(siege.port) as late:
            head = await status(late)
            assert head.startswith(b"HTTP/1.1 503")
            assert b"\r\nRetry-After: " in head
        assert siege.refused == {"handshakes": 1}
        assert (await status(one, HEAD[1:])).startswith(b"HTTP/1.1 101")
        # Who is through makes room for the next.
        async with bare_client(siege.port) as three:
            await three.alive()
        assert (await status(two)).startswith(b"HTTP/1.1 101")


async def test_a_handshake_may_take_all_of_its_time(autojump_clock: MockClock) -> None:
    async with open_house(limits={"handshake_timeout_s": 10.0}) as house:
        stream, _ = house.knock()
        await stream.send_all(HEAD[:-1])
        await trio.sleep(9.9)
        await stream.send_all(HEAD[-1:])
        assert (await stream.receive_some())[:12] == b"HTTP/1.1 101"
        await trio.sleep(60)
        assert house.value("connections") == 1


# Messages


def ping_of(size_bytes: int, *, letter: str = "x") -> bytes:
    """A call of `system.ping` in just so many bytes."""
    start, end = b'{"jsonrpc":"2.0","id":1,"method":"system.ping","params":{"payload":"', b'"}}'
    count, rest = divmod(size_bytes - len(start) - len(end), len(letter.encode()))
    return start + letter.encode() * count + b"x" * rest + end


async def send_whole(client: Bare, text: bytes) -> None:
    await client.send(TEXT, text)


async def send_in_fragments(client: Bare, text: bytes) -> None:
    await client.send(TEXT, text[:500], is_final=False)
    await client.send(PING)
    await client.send(CONTINUATION, text[500:], is_final=False)
    await client.send(CONTINUATION)


@pytest.mark.parametrize("send", [send_whole, send_in_fragments])
@pytest.mark.parametrize("letter", ["x", "\u20ac"])
@pytest.mark.parametrize("engine", ENGINES)
async def test_a_message_of_just_the_limit(engine: str, letter: str, send: Any, tmp_path: Path) -> None:
    async with (
        besieged(tmp_path, engine, limits={"max_message_bytes": 2000}) as siege,
        bare_client(siege.port) as client,
    ):
        for _ in range(3):
            await send(client, ping_of(2000, letter=letter))
            assert letter * 100 in (await client.answer())["result"]["payload"]
        await client.leave()


@pytest.mark.parametrize("send", [send_whole, send_in_fragments])
@pytest.mark.parametrize("letter", ["x", "\u20ac"])
@pytest.mark.parametrize("engine", ENGINES)
async def test_a_message_over_the_limit(engine: str, letter: str, send: Any, tmp_path: Path) -> None:
    """Counted in bytes, not in characters, and over all fragments."""
    async with (
        besieged(tmp_path, engine, limits={"max_message_bytes": 2000}) as siege,
        bare_client(siege.port) as client,
    ):
        await send(client, ping_of(2001, letter=letter))
        assert await client.fate() == "1009"
        await siege.deserted()
        assert siege.closed == {"too_big": 1}


@pytest.mark.parametrize("engine", ENGINES)
async def test_the_depth_that_is_set_holds_on_the_wire(engine: str, tmp_path: Path) -> None:
    async with (
        besieged(tmp_path, engine, limits={"max_json_depth": 6}) as siege,
        bare_client(siege.port) as client,
    ):
        # The request and its params are two levels themselves.
        await client.ask("system.ping", {"payload": [[[[]]]]})
        assert (await client.answer())["result"]["payload"] == [[[[]]]]
        await client.ask("system.ping", {"payload": [[[[[]]]]]})
        assert (await client.answer())["error"]["data"]["reason"] == "invalid_request"
        assert siege.server.metrics.value("errors_total", reason="invalid_request") == 1
        await client.alive()


# Frames that bring no message


@pytest.mark.parametrize("engine", ENGINES)
async def test_pings_at_the_rate_and_over_it(engine: str, autojump_clock: MockClock) -> None:
    limits = {"control_rate_limit_per_minute": 60, "control_rate_limit_burst": 3}
    async with open_house(limits=limits, server={"engine": engine}) as house:
        bare = Bare(await open_by_hand(house))
        for _ in range(3):
            await bare.send(PING)
            await bare.pong()
        for _ in range(120):
            await trio.sleep(1)
            await bare.send(PING)
            await bare.pong()
        await trio.sleep(0.9)
        await bare.send(PING)
        assert await bare.fate() == "1008"
        await trio.sleep(house.settings.limits.close_timeout_s)
        assert house.value("connections_closed_total", cause="flood") == 1


async def send_pings(client: Bare, count: int) -> None:
    for n in range(count):
        await client.send(PING, b"%d" % n)


async def send_fragments(client: Bare, count: int) -> None:
    """Of one message, whose last fragment ends it and is not counted."""
    text = ping_of(200)
    await client.send(TEXT, text[:1], is_final=False)
    for n in range(1, count):
        await client.send(CONTINUATION, text[n : n + 1], is_final=False)
    await client.send(CONTINUATION, text[count:])


@pytest.mark.parametrize("send", [send_pings, send_fragments])
@pytest.mark.parametrize("engine", ENGINES)
async def test_a_burst_of_frames_without_a_message(engine: str, send: Any, tmp_path: Path) -> None:
    limits = {"control_rate_limit_per_minute": 1, "control_rate_limit_burst": 50}
    async with besieged(tmp_path, engine, limits=limits) as siege, bare_client(siege.port) as client:
        await send(client, 50)
        await client.alive()


@pytest.mark.parametrize("send", [send_pings, send_fragments])
@pytest.mark.parametrize("engine", ENGINES)
async def test_one_frame_more_than_the_burst(engine: str, send: Any, tmp_path: Path) -> None:
    limits = {"control_rate_limit_per_minute": 1, "control_rate_limit_burst": 50}
    async with besieged(tmp_path, engine, limits=limits) as siege, bare_client(siege.port) as client:
        await send(client, 51)
        assert await client.fate() == "1008"
        await siege.deserted()
        assert siege.closed == {"flood": 1}


# Who does not read


@pytest.mark.parametrize("limits", [{"max_pending_messages": 20}, {"max_pending_bytes": 200_000}])
@pytest.mark.parametrize("engine", ENGINES)
async def test_a_subscriber_that_does_not_read(engine: str, limits: dict[str, Any], tmp_path: Path) -> None:
    """It is cut when its outbox is full, and the publisher hears of it and is not held up."""
    async with (
        besieged(tmp_path, engine, limits={**limits, "write_deadline_s": 60.0}) as siege,
        bare_client(siege.port, receive_buffer_bytes=4096) as deaf,
        bare_client(siege.port) as publisher,
    ):
        await deaf.ask("events.subscribe", {"topics": ["news"]})
        assert "result" in await deaf.answer()
        dropped, rounds, event = 0, 0, {"topic": "news", "type": "x", "data": "x" * 20_000}
        while not dropped:
            rounds += 1
            assert rounds < 2000
            with trio.fail_after(1):
                await publisher.ask("system.broadcast", event)
                result = (await publisher.answer())["result"]
            dropped = result["dropped"]
            assert result["delivered"] + dropped == 1
        with trio.fail_after(1):
            await until(lambda: siege.connections == 1)
        assert siege.closed == {"slow_consumer": 1}
        await publisher.alive()


async def test_a_goodbye_may_take_all_of_its_time(autojump_clock: MockClock) -> None:
    for engine in ENGINES:
        async with open_house(limits={"close_timeout_s": 5.0}, server={"engine": engine}) as house:
            bare = Bare(await open_by_hand(house))
            house.nursery.start_soon(house.listener.drain)
            opcode, payload = await bare.receive()
            assert (opcode, payload[:2]) == (CLOSE, (1012).to_bytes(2, "big"))
            await trio.sleep(4.9)
            assert house.value("connections") == 1
            await bare.send(CLOSE, payload[:2])
            await wait_all_tasks_blocked()
            assert house.value("connections") == 0
            # Ended, and not reset: what was sent has arrived.
            assert await bare.stream.receive_some() == b""


# Memory


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
async def test_the_marks_of_memory(engine: str, tmp_path: Path) -> None:
    resident_mb = 100
    limits = {"memory_soft_limit_mb": 200, "memory_limit_mb": 300, "close_timeout_s": 0.5}
    async with (
        besieged(tmp_path, engine, limits=limits, resident_bytes=lambda: resident_mb * 1_000_000) as siege,
        bare_client(siege.port) as client,
    ):
        resident_mb = 201
        await until(lambda: siege.server.metrics.value("resident_memory_bytes") == 201_000_000)
        async with knocking(siege.port) as late:
            head = await status(late)
            assert head.startswith(b"HTTP/1.1 503")
            assert b"\r\nRetry-After: " in head
        assert siege.refused == {"memory": 1}
        await client.alive()
        resident_mb = 301
        assert await client.fate() == "1013"
        await siege.deserted()
        assert siege.closed == {"shed": 1}
        resident_mb = 199
        await until(lambda: siege.server.metrics.value("resident_memory_bytes") == 199_000_000)
        async with bare_client(siege.port) as another:
            await another.alive()
