"""What is logged of calls: each at debug, slow ones as warnings, and never what was said."""

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
from structlog.testing import capture_logs
from trio.testing import MockClock

from persona.config import LimitSettings
from persona.log import PINNED, configure_logging
from persona.metrics import Metrics
from persona.rpc.dispatch import Call, Dispatcher, Registry, method
from persona.rpc.requestlog import LOGGED_ID_CHARS
from persona.service.sessions import Identity, Sessions
from tests.rpc.desk import Desk, Methods, Nothing, call, notify

ALWAYS_SLOW_S = 1e-9
NASTY = "a\r\nb\x1b[31mc\x85\u2028d"


class Talkative:
    @method("t.log", params=Nothing, result=Nothing)
    async def log(self, _call: Call, _params: Nothing) -> None:
        """Logs something on its way."""
        structlog.get_logger().info("on_its_way")


def desk(**options: Any) -> Desk:
    methods, metrics = Methods(), Metrics()
    dispatcher = Dispatcher(Registry([methods, Talkative()]), LimitSettings(), metrics, **options)
    return Desk(dispatcher, Sessions().open(Identity(role="admin")), methods, metrics)


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in PINNED}
    structlog.reset_defaults()
    yield
    structlog.reset_defaults()
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, old in levels.items():
        logging.getLogger(name).setLevel(old)


FRAMES = (
    call("t.sleep", 1),
    call("t.now", "two"),
    notify("t.sleep"),
    call("t.conflict", 4),
    call("t.nope", 5),
    call("t.echo", 6, text="my secret"),
    call("t.echo", 7, wrong="my secret"),
)


async def test_each_call_is_one_event_at_debug(autojump_clock: MockClock) -> None:
    here = desk(logs_requests=True)
    with capture_logs() as events:
        for frame in FRAMES:
            await here.ask(frame)
    assert all(event.pop("seconds") > 0 for event in events)
    assert [(event["method"], event["outcome"], event["request"]) for event in events] == [
        ("t.sleep", "ok", 1),
        ("t.now", "ok", "two"),
        ("t.sleep", "ok", None),
        ("t.conflict", "conflict", 4),
        ("unknown", "method_not_found", 5),
        ("t.echo", "ok", 6),
        ("t.echo", "invalid_params", 7),
    ]
    assert {(event["event"], event["log_level"]) for event in events} == {("request", "debug")}
    assert "secret" not in str(events)


async def test_nothing_is_logged_of_a_quick_call_unless_asked_for(autojump_clock: MockClock) -> None:
    here = desk(slow_request_s=1000.0)
    with capture_logs() as events:
        for frame in FRAMES:
            await here.ask(frame)
    assert events == []
    assert here.metrics.value("slow_requests_total", method="t.sleep") == 0


@pytest.mark.parametrize("logs_requests", [True, False])
async def test_a_slow_call_is_a_warning_and_counted(logs_requests: bool, autojump_clock: MockClock) -> None:
    here = desk(slow_request_s=ALWAYS_SLOW_S, logs_requests=logs_requests)
    with capture_logs() as events:
        await here.ask(call("t.sleep", 1))
        await here.ask(call("t.now", 2))
    assert [(event["event"], event["log_level"], event["method"]) for event in events] == [
        ("slow_request", "warning", "t.sleep"),
        ("slow_request", "warning", "t.now"),
    ]
    assert here.metrics.value("slow_requests_total", method="t.sleep") == 1


async def test_what_waits_for_the_model_is_never_slow(autojump_clock: MockClock) -> None:
    here = desk(slow_request_s=ALWAYS_SLOW_S)
    with capture_logs() as events:
        assert "result" in await here.ask(call("t.model", seconds=200))
    assert events == []


async def test_what_is_logged_on_the_way_carries_the_requests_id(autojump_clock: MockClock) -> None:
    here = desk()
    stream = io.StringIO()
    configure_logging("info", "json", stream)
    await here.ask(call("t.log", "seven"))
    structlog.get_logger().info("afterwards")
    inside, after = map(json.loads, stream.getvalue().splitlines())
    assert (inside["event"], inside["request"]) == ("on_its_way", "seven")
    assert "request" not in after


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize("name", ["t.log", "t.now", NASTY])
async def test_no_id_and_no_method_breaks_its_line(
    log_format: Any, name: str, autojump_clock: MockClock
) -> None:
    here = desk(logs_requests=True)
    stream = io.StringIO()
    configure_logging("debug", log_format, stream)
    await here.ask(call(name, NASTY))
    lines = stream.getvalue().split("\n")
    assert len(lines) == (3 if name == "t.log" else 2)
    assert all(line.isprintable() for line in lines)


@pytest.mark.parametrize("name", ["t.sleep", "t.now"])
async def test_an_id_as_long_as_a_message_is_cut(name: str, autojump_clock: MockClock) -> None:
    here = desk(logs_requests=True)
    with capture_logs() as events:
        await here.ask(call(name, "x" * 1000))
    (event,) = events
    assert event["request"] == "x" * LOGGED_ID_CHARS
