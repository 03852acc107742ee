from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest
import trio
from trio.testing import MockClock

from loadgen.closed import ERROR_PAUSE_S, MAX_CONNECTING, ClientFactory, Plan, Report, run
from loadgen.workload import Ping
from persona.client import ConnectFailed, ConnectionLost, RemoteError, UnexpectedAnswer

# Times are sums of powers of two, so that the mock clock's arithmetic is exact.
STEP_S = 0.125


@attrs.define
class FakeServer:
    """Clients that answer with `handle(connection, params)`, and a count of those open."""

    handle: Callable[[int, Any], Awaitable[Any]]
    connect_s: float = 0.0
    refuse: Callable[[int], Exception | None] = lambda _: None
    made: int = 0
    open: int = 0
    connecting: int = 0
    max_connecting: int = 0

    @asynccontextmanager
    async def connect(self) -> AsyncIterator["FakeClient"]:
        index, self.made = self.made, self.made + 1
        self.connecting += 1
        self.max_connecting = max(self.max_connecting, self.connecting)
        try:
            await trio.sleep(self.connect_s)
        finally:
            self.connecting -= 1
        error = self.refuse(index)
        if error is not None:
            raise error
        self.open += 1
        try:
            yield FakeClient(self, index)
        finally:
            self.open -= 1


@attrs.frozen
class FakeClient:
    server: FakeServer
    index: int

    async def call(self, method: str, params: Mapping[str, Any] | None = None) -> Any:
        assert method == "system.ping"
        return await self.server.handle(self.index, params)


def pong(params: Any) -> dict[str, Any]:
    return {"pong": True, "payload": params["payload"], "time": "now"}


async def answer(_connection: int, params: Any) -> Any:
    await trio.sleep(STEP_S)
    return pong(params)


def limited(retry_after_s: float | None) -> RemoteError:
    return RemoteError(-32010, "slow down", reason="rate_limited", retry_after_s=retry_after_s)


async def drive(open_client: ClientFactory, *, connections: int = 1, **plan: float) -> Report:
    plan = {"duration_s": 2.0} | plan
    return await run(Plan(connections=connections, **plan), Ping(), open_client)


async def test_every_answer_after_the_warm_up_is_measured(autojump_clock: MockClock) -> None:
    server = FakeServer(answer)
    report = await drive(server.connect, connections=3, warmup_s=1.0)
    assert trio.current_time() == 3.0
    assert list(report.latencies_s) == [STEP_S] * 3 * 16
    # The last answers arrive as the time is up, the last warm-up answers as it begins.
    assert report.answered_in_time == 3 * 16
    assert report.measured_s == 2.0
    assert report.requests_per_s == 24.0
    assert (report.connected, report.errors, report.is_clean) == (3, {}, True)
    assert server.open == 0


async def test_warm_up_requests_give_no_latency(autojump_clock: MockClock) -> None:
    async def slow_at_first(_connection: int, params: Any) -> Any:
        await trio.sleep(0.75 if trio.current_time() < 1.0 else STEP_S)
        return pong(params)

    report = await drive(FakeServer(slow_at_first).connect, warmup_s=1.0)
    # One request of the warm-up ends at 1.5: its answer counts for the rate, its time does not.
    assert set(report.latencies_s) == {STEP_S}
    assert len(report.latencies_s) == 12
    assert report.answered_in_time == 12


async def test_what_is_in_flight_at_the_end_is_waited_for(autojump_clock: MockClock) -> None:
    async def stuck_at_last(_connection: int, params: Any) -> Any:
        await trio.sleep(STEP_S if trio.current_time() < 1.5 else 10.0)
        return pong(params)

    report = await drive(FakeServer(stuck_at_last).connect)
    assert max(report.latencies_s) == 10.0
    assert len(report.latencies_s) == 13
    assert report.answered_in_time == 12
    assert report.measured_s == 2.0
    assert trio.current_time() == 11.5


async def test_the_clock_starts_when_all_are_connected(autojump_clock: MockClock) -> None:
    server = FakeServer(answer, connect_s=4.0)
    report = await drive(server.connect, connections=MAX_CONNECTING + 1)
    assert server.max_connecting == MAX_CONNECTING
    assert trio.current_time() == 8.0 + 2.0
    assert len(report.latencies_s) == 16 * (MAX_CONNECTING + 1)


async def test_failed_connects_are_counted_by_kind_and_the_rest_goes_on(autojump_clock: MockClock) -> None:
    refusals = {
        0: ConnectFailed("full", status=503),
        1: ConnectFailed("refused"),
        2: ConnectFailed("full", status=503),
        3: ConnectionLost("gone"),
    }
    server = FakeServer(answer, refuse=refusals.get)
    report = await drive(server.connect, connections=5)
    assert report.connect_failures == {"http_503": 2, "connect_failed": 2}
    assert report.connected == 1
    assert len(report.latencies_s) == 16
    assert not report.is_clean


async def test_with_no_connection_it_ends_at_once(autojump_clock: MockClock) -> None:
    server = FakeServer(answer, refuse=lambda _: ConnectFailed("refused"))
    report = await drive(server.connect, connections=2, warmup_s=1.0)
    assert trio.current_time() == 0.0
    assert (report.connected, len(report.latencies_s), report.is_clean) == (0, 0, False)
    assert report.requests_per_s == report.cpu_share == 0.0


async def test_refusals_are_counted_and_their_time_to_come_back_is_kept(autojump_clock: MockClock) -> None:
    asked: list[float] = []

    async def refuse_every_other(_connection: int, params: Any) -> Any:
        asked.append(trio.current_time())
        await trio.sleep(STEP_S)
        if len(asked) % 2:
            raise limited(0.25)
        return pong(params)

    report = await drive(FakeServer(refuse_every_other).connect)
    assert asked[:4] == [0.0, 0.375, 0.5, 0.875]
    assert report.errors == {"rate_limited": 4}
    assert list(report.latencies_s) == [STEP_S] * 4
    assert not report.is_clean


async def test_a_refusal_does_not_outlast_the_run(autojump_clock: MockClock) -> None:
    async def refuse(_connection: int, _params: Any) -> Any:
        await trio.lowlevel.checkpoint()
        raise limited(3600.0)

    report = await drive(FakeServer(refuse).connect)
    assert trio.current_time() == 2.0
    assert report.errors == {"rate_limited": 1}


async def test_errors_without_a_time_to_come_back_do_not_spin(autojump_clock: MockClock) -> None:
    async def refuse(_connection: int, _params: Any) -> Any:
        await trio.lowlevel.checkpoint()
        raise limited(None)

    report = await drive(FakeServer(refuse).connect)
    assert report.errors["rate_limited"] == pytest.approx(2.0 / ERROR_PAUSE_S, abs=1)
    assert len(report.latencies_s) == 0


async def test_errors_of_the_warm_up_count(autojump_clock: MockClock) -> None:
    async def bad_at_first(_connection: int, params: Any) -> Any:
        if trio.current_time() == 0.0:
            raise UnexpectedAnswer("nonsense")
        return await answer(0, params)

    report = await drive(FakeServer(bad_at_first).connect, warmup_s=1.0)
    assert report.errors == {"unexpected_answer": 1}
    assert list(report.latencies_s) == pytest.approx([STEP_S] * 16)
    assert not report.is_clean


async def test_a_wrong_answer_is_an_error_and_no_latency(autojump_clock: MockClock) -> None:
    previous: list[Any] = []

    async def answer_late(_connection: int, params: Any) -> Any:
        await trio.sleep(STEP_S)
        previous.append(params)
        return pong(previous[-2] if len(previous) == 2 else params)

    report = await drive(FakeServer(answer_late).connect)
    assert report.errors == {"wrong_answer": 1}
    # One before it, and after it as many as start between 0.25 s + the pause and the end.
    assert list(report.latencies_s) == pytest.approx([STEP_S] * (1 + 14))
    assert report.answered_in_time == 1 + 13
    assert not report.is_clean


async def test_an_unanswered_request_is_a_timeout_and_the_connection_goes_on(
    autojump_clock: MockClock,
) -> None:
    asked = 0

    async def hang_once(_connection: int, params: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == 1:
            await trio.sleep_forever()
        return await answer(0, params)

    report = await drive(FakeServer(hang_once).connect, timeout_s=1.0)
    assert report.errors == {"timeout": 1}
    assert len(report.latencies_s) == asked - 1 > 0
    assert max(report.latencies_s) < 1.0


async def test_a_server_that_never_answers_ends_the_run_in_time(autojump_clock: MockClock) -> None:
    async def hang(_connection: int, _params: Any) -> Any:
        await trio.sleep_forever()

    report = await drive(FakeServer(hang).connect, connections=2, timeout_s=8.0)
    assert trio.current_time() <= 2.0 + 8.0 + ERROR_PAUSE_S
    assert report.errors == {"timeout": 2}
    assert not report.is_clean


async def test_a_lost_connection_ends_alone(autojump_clock: MockClock) -> None:
    async def lose_the_first(connection: int, params: Any) -> Any:
        if connection == 0:
            raise ConnectionLost("gone")
        return await answer(connection, params)

    report = await drive(FakeServer(lose_the_first).connect, connections=2)
    assert report.errors == {"connection_lost": 1}
    assert list(report.latencies_s) == [STEP_S] * 16


async def test_when_all_are_lost_the_run_ends_and_says_how_long_it_was(autojump_clock: MockClock) -> None:
    async def until_the_crash(connection: int, params: Any) -> Any:
        if trio.current_time() >= 0.5:
            raise ConnectionLost("gone")
        return await answer(connection, params)

    report = await drive(FakeServer(until_the_crash).connect, connections=2)
    assert report.errors == {"connection_lost": 2}
    assert report.measured_s == 0.5
    assert report.requests_per_s == 2 * 4 / 0.5


async def test_cancelling_closes_every_client(autojump_clock: MockClock) -> None:
    server = FakeServer(answer)
    with trio.move_on_after(1.0) as scope:
        await drive(server.connect, connections=3, duration_s=60.0)
    assert scope.cancelled_caught
    assert (server.made, server.open) == (3, 0)


def test_percentiles_are_values_that_were_measured() -> None:
    report = Report()
    report.latencies_s.extend(float(value) for value in (3, 1, 2, 5, 4, 10, 9, 8, 7, 6))
    assert report.percentiles_s(0.5, 0.9, 0.99, 1) == [5.0, 9.0, 10.0, 10.0]
    single = Report()
    single.latencies_s.append(1.5)
    assert single.percentiles_s(0.01, 0.5, 1) == [1.5, 1.5, 1.5]
