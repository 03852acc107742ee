"""The monitor task: looks once a second, keeps what it saw, and says when something is wrong."""

import attrs
import msgspec
import orjson
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from persona.config import MonitorSettings
from persona.metrics import SECONDS
from persona.monitor.alerts import CALM_SAMPLES
from persona.rpc import figures as f
from tests.monitor.house import CAPACITIES, READINGS, House


async def test_it_has_looked_when_it_has_started_and_looks_once_a_second(autojump_clock: MockClock) -> None:
    house = House(resident_mb=150)
    async with trio.open_nursery() as nursery:
        await nursery.start(house.monitor.run)
        assert not house.monitor.has_memory()
        assert (house.looks, trio.current_time()) == (1, 0)
        await trio.sleep(3.5)
        assert house.looks == 4
        nursery.cancel_scope.cancel()


async def test_how_late_the_loop_was_is_the_worst_of_the_second(mock_clock: MockClock) -> None:
    house = House()

    async def passes(*steps: float) -> float:
        for step in steps:
            await wait_all_tasks_blocked()
            mock_clock.jump(step)
        await wait_all_tasks_blocked()
        return house.metrics.value("loop_lag_seconds")

    async with trio.open_nursery() as nursery:
        await nursery.start(house.monitor.run)
        # It is due four times in a second; the second time it comes late.
        assert await passes(0.25, 0.65, 0.25, 0.25) == pytest.approx(0.4)
        assert await passes(0.25, 0.25, 0.25, 0.25) == 0
        assert house.monitor.metrics().loop == f.LoopFigures(lag_s=0.0, max_lag_s=pytest.approx(0.4))
        nursery.cancel_scope.cancel()


async def test_what_it_reads_is_shown_and_is_a_metric(autojump_clock: MockClock) -> None:
    house = House(readings=attrs.evolve(READINGS, llm_available=True))
    house.metrics.tokens.inc(30)
    house.monitor.sample()
    await trio.sleep(2)
    house.metrics.tokens.inc(30)
    house.now += 2
    figures = house.monitor.metrics()
    assert figures.connections == f.ConnectionFigures(open=3, half_open=1, max=500, refused={}, closed={})
    assert figures.handlers == f.HandlerFigures(running=2, limit=100)
    assert figures.database == f.DatabaseFigures(
        write_queue=5, read_queue=6, readers_busy=1, readers=2, mean_batch=1.5
    )
    assert figures.background == f.BackgroundFigures(queued=7, limit=2000, dropped=0)
    assert (figures.memory.resident_bytes, figures.memory.held_bytes) == (50_000_000, 1200)
    model = figures.model
    assert (model.running, model.slots, model.queued, model.limit) == (4, 4, 8, 512)
    assert (model.tokens_per_second, model.available) == (15, True)
    assert (figures.time, figures.uptime_seconds) == ("2026-01-01T00:00:02.000Z", 2.0)
    value = house.metrics.value
    assert (value("held_bytes", kind="outbox"), value("held_bytes", kind="requests")) == (1000, 200)
    assert (value("background_queued"), value("llm_available")) == (7, 1)
    assert value("limit", name="max_connections") == CAPACITIES.max_connections
    assert value("start_time_seconds") == house.now - 2


async def test_known_calls_give_known_figures(autojump_clock: MockClock) -> None:
    house = House()
    house.monitor.sample()
    for _ in range(98):
        house.metrics.messages.count_answer("system.ping", "ok", 0.0002)
    for _ in range(2):
        house.metrics.messages.count_answer("persona.list", "memory_error", 0.02)
        house.metrics.errors.labels("memory_error").inc()
    await trio.sleep(10)
    figures = house.monitor.metrics(window_s=10)
    assert figures.requests.total == 100
    assert figures.requests.per_second == 10
    assert figures.requests.error_ratio == 0.02
    assert figures.errors == {"memory_error": 2}
    assert figures.requests.latency_s.avg == pytest.approx((98 * 0.0002 + 2 * 0.02) / 100)
    assert {name: each.count for name, each in figures.requests.by_method.items()} == {
        "persona.list": 2,
        "system.ping": 98,
    }
    ping = figures.requests.by_method["system.ping"]
    assert ping.p99 is not None
    assert 0.0001 < ping.p99 <= 0.00025
    assert figures.requests.latency_s.p99 is not None
    assert 0.01 < figures.requests.latency_s.p99 <= 0.025


async def test_the_models_times_are_a_distribution(autojump_clock: MockClock) -> None:
    house = House()
    house.monitor.sample()
    for seconds in (0.3, 0.4, 1000.0):
        house.metrics.llm_seconds.observe(seconds)
    buckets = house.monitor.metrics().model.seconds.buckets
    assert len(buckets) == len(SECONDS) + 1
    assert [(bucket.le, bucket.count) for bucket in buckets if bucket.count] == [(0.5, 2), (None, 1)]


async def test_only_admins_see_who_is_heaviest(autojump_clock: MockClock) -> None:
    house = House(is_watched=True)
    house.monitor.sample()
    assert house.monitor.metrics().memory.heaviest == []
    (heaviest,) = house.monitor.metrics(for_admin=True).memory.heaviest
    assert (heaviest.session_id, heaviest.bytes) == ("s1", 3)
    ((_, _, published),) = house.events
    assert published.memory.heaviest == []


async def test_it_publishes_once_a_second_and_only_to_somebody(autojump_clock: MockClock) -> None:
    house = House()
    async with trio.open_nursery() as nursery:
        await nursery.start(house.monitor.run)
        await trio.sleep(3.5)
        assert house.events == []
        house.is_watched = True
        await trio.sleep(3)
        assert [event[:2] for event in house.events] == [("system.metrics", "system.metrics")] * 3
        nursery.cancel_scope.cancel()
    figures = house.events[-1][2]
    assert figures.window_s == 60
    # It is what it says on the wire, too.
    assert msgspec.convert(orjson.loads(msgspec.json.encode(figures)), f.SystemMetrics) == figures


async def test_an_alert_is_logged_published_shown_and_a_metric_once(
    autojump_clock: MockClock, capsys: pytest.CaptureFixture[str]
) -> None:
    house = House()

    async def samples(count: int) -> None:
        for _ in range(count):
            await trio.sleep(1)
            house.now += 1
            house.monitor.sample()

    await samples(2)
    assert house.metrics.value("alert", name="memory") == 0
    house.resident_mb = 150
    await samples(30)
    assert house.alerts() == [("memory", "raised")]
    assert house.metrics.value("alert", name="memory") == 1
    (shown,) = house.monitor.metrics().alerts
    assert (shown.name, shown.value, shown.threshold) == ("memory", 150e6, 100e6)
    assert shown.since == "2026-01-01T00:00:03.000Z"
    assert house.events[0][2] == {
        "name": "memory",
        "state": "raised",
        "value": 150e6,
        "threshold": 100e6,
        "text": shown.text,
    }
    house.resident_mb = 50
    await samples(CALM_SAMPLES + 5)
    assert house.alerts() == [("memory", "raised"), ("memory", "cleared")]
    assert house.metrics.value("alert", name="memory") == 0
    assert house.monitor.metrics().alerts == []
    logged = capsys.readouterr().out
    assert logged.count("alert_raised") == logged.count("alert_cleared") == 1


async def test_a_threshold_that_is_set_is_the_one_that_counts(autojump_clock: MockClock) -> None:
    house = House(settings=MonitorSettings(alert_p95_s=0.002))
    for _ in range(100):
        house.metrics.messages.count_answer("persona.chat", "ok", 60.0)
    house.monitor.sample()
    for _ in range(100):
        house.metrics.messages.count_answer("persona.chat", "ok", 60.0)
        house.metrics.messages.count_answer("system.ping", "ok", 0.003)
    await trio.sleep(1)
    house.monitor.sample()
    assert house.alerts() == [("latency_p95", "raised")]


async def test_how_long_a_sample_takes_is_a_metric(autojump_clock: MockClock) -> None:
    house = House()
    for _ in range(3):
        house.monitor.sample()
    assert house.metrics.value("monitor_sample_seconds_count") == 3
    assert house.metrics.value("monitor_sample_seconds_sum") > 0
    figures = house.monitor.metrics().monitor
    assert figures.samples == 3
    assert figures.sample_s.p99 is not None
    assert figures.sample_s.p99 > 0
