"""Logging: one event a line in both formats, whatever the values hold."""

import io
import json
import logging
import re
from collections.abc import Iterator
from typing import Any

import pytest
import structlog
import trio

from persona.log import PINNED, configure_logging

NASTY = "a\r\nb\x1b[31mc\x00\x85\u2028\u2029\x9b2J\u202ed"
log = structlog.get_logger("test")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    """Logging is the process's: put it back as other tests expect it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in PINNED}
    yield
    structlog.reset_defaults()
    structlog.contextvars.clear_contextvars()
    root.handlers[:], root.level = handlers, level
    root.setLevel(level)
    for name, old in levels.items():
        logging.getLogger(name).setLevel(old)


def only_line(stream: io.StringIO) -> str:
    """The one line that was written, by the widest notion of a line there is."""
    text = stream.getvalue()
    assert text.endswith("\n")
    assert len(text.splitlines()) == 1, text
    return text.rstrip("\n")


def as_json(stream: io.StringIO) -> dict[str, Any]:
    parsed: dict[str, Any] = json.loads(only_line(stream))
    return parsed


@pytest.fixture
def stream() -> io.StringIO:
    return io.StringIO()


def test_json_has_time_level_event_and_the_values(stream: io.StringIO) -> None:
    configure_logging("info", "json", stream)
    log.info("client_connected", connection=7, ratio=0.5, tags=["a"], nothing=None)
    event = as_json(stream)
    stamp = event.pop("timestamp")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d+Z", stamp)
    assert event == {
        "level": "info",
        "event": "client_connected",
        "connection": 7,
        "ratio": 0.5,
        "tags": ["a"],
        "nothing": None,
    }


def test_console_shows_the_same_for_people(stream: io.StringIO) -> None:
    configure_logging("info", "console", stream)
    log.info("client_connected", connection=7, text="two words", empty="", tags=["a"])
    line = only_line(stream)
    assert re.match(r"\d{4}-\d\d-\d\dT\S+Z \[info +\] client_connected ", line)
    assert line.endswith("connection=7 text='two words' empty='' tags=['a']")


@pytest.mark.parametrize(("kind", "console"), [(io.StringIO, False), (Terminal, True)])
def test_auto_is_console_on_a_terminal_and_json_elsewhere(kind: type[io.StringIO], console: bool) -> None:
    stream = kind()
    configure_logging("info", "auto", stream)
    log.info("hello")
    assert stream.getvalue().startswith("{") is not console
    assert ("\x1b[" in stream.getvalue()) is console


def test_only_a_terminal_gets_colours(stream: io.StringIO) -> None:
    configure_logging("info", "console", stream)
    log.warning("hello", key="value")
    assert "\x1b" not in stream.getvalue()


def test_stderr_is_found_when_logging_is_configured(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    log.info("hello")
    out, err = capsys.readouterr()
    assert out == ""
    assert json.loads(err)["event"] == "hello"


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize(
    "values",
    [
        {"value": NASTY},
        {"value": [NASTY, {"deep": NASTY}]},
        {"value": {NASTY: 1}},
        {"value": NASTY.encode()},
        {NASTY: 1},
        {"event": NASTY},
        {"value": ValueError(NASTY)},
        {"value": "\udc80" + NASTY},
        {"\udc80": 1},
    ],
)
def test_no_value_breaks_its_line(log_format: Any, values: dict[str, Any], stream: io.StringIO) -> None:
    configure_logging("info", log_format, stream)
    log.info(**({"event": "hello"} | values))
    logging.getLogger("somebody").warning("said %s", values)
    lines = stream.getvalue().split("\n")
    assert len(lines) == 3
    assert all(line.isprintable() for line in lines)
    if log_format == "json":
        assert all(json.loads(line) for line in lines[:2])


def test_json_keeps_what_was_said(stream: io.StringIO) -> None:
    configure_logging("info", "json", stream)
    log.info("hello", value=NASTY)
    assert as_json(stream)["value"] == NASTY


class Unprintable:
    def __repr__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize("log_format", ["json", "console"])
@pytest.mark.parametrize("value", [2**70, Unprintable(), float("nan"), [Unprintable()], "\ud800"], ids=type)
def test_an_odd_value_costs_no_event(log_format: Any, value: object, stream: io.StringIO) -> None:
    configure_logging("info", log_format, stream)
    log.info("hello", value=value, other="kept")
    assert "hello" in only_line(stream)
    assert "kept" in only_line(stream)


def test_a_cycle_costs_no_event(stream: io.StringIO) -> None:
    configure_logging("info", "json", stream)
    cycle: list[Any] = []
    cycle.append(cycle)
    log.info("hello", value=cycle)
    assert as_json(stream)["event"] == "hello"


def test_an_exception_is_one_json_field(stream: io.StringIO) -> None:
    configure_logging("info", "json", stream)
    try:
        raise ExceptionGroup("several", [ValueError(NASTY)])
    except ExceptionGroup:
        log.exception("request_failed", error_id="e1")
    event = as_json(stream)
    assert event["level"] == "error"
    assert event["exception"].startswith("  + Exception Group Traceback")
    assert "ValueError" in event["exception"]
    assert "exc_info" not in event


def test_a_consoles_traceback_is_indented_and_shows_no_locals(stream: io.StringIO) -> None:
    configure_logging("info", "console", stream)
    secret = "s3cret"
    try:
        raise ValueError(f"fine\n2026-01-01T00:00:00Z [info ] forged_{len(secret)}\x1b[2J")
    except ValueError:
        log.exception("request_failed")
    first, *rest = stream.getvalue().rstrip("\n").split("\n")
    assert "request_failed" in first
    assert len(rest) > 3
    assert all(line.startswith("    ") and line.isprintable() for line in rest)
    assert "s3cret" not in "\n".join(line for line in rest if "secret =" not in line)


def test_the_level_is_held(stream: io.StringIO) -> None:
    configure_logging("warning", "json", stream)
    log.info("quiet")
    logging.getLogger("somebody").info("quiet")
    assert stream.getvalue() == ""
    log.warning("loud")
    assert as_json(stream)["event"] == "loud"


def test_the_standard_librarys_loggers_use_the_same_form(stream: io.StringIO) -> None:
    configure_logging("info", "json", stream)
    logging.getLogger("somebody").info("opened %d", 3)
    event = as_json(stream)
    assert (event["event"], event["level"], event["logger"]) == ("opened 3", "info", "somebody")
    assert event["timestamp"].endswith("Z")


@pytest.mark.parametrize("name", PINNED)
def test_chatty_libraries_stay_at_warning(name: str, stream: io.StringIO) -> None:
    configure_logging("debug", "json", stream)
    chatty = logging.getLogger(f"{name}.part")
    assert not chatty.isEnabledFor(logging.INFO)
    chatty.info("quiet")
    assert stream.getvalue() == ""
    chatty.warning("loud")
    assert as_json(stream)["event"] == "loud"
    configure_logging("error", "json", stream)
    assert not chatty.isEnabledFor(logging.WARNING)


def test_configuring_again_moves_everything_and_doubles_nothing(stream: io.StringIO) -> None:
    first = io.StringIO()
    configure_logging("info", "json", first)
    log.info("one")
    before = first.getvalue()
    configure_logging("info", "json", stream)
    log.info("two")
    logging.getLogger("somebody").info("three")
    assert first.getvalue() == before
    assert [json.loads(line)["event"] for line in stream.getvalue().splitlines()] == ["two", "three"]


async def test_context_reaches_tasks_threads_and_the_standard_library(stream: io.StringIO) -> None:
    configure_logging("info", "json", stream)

    async def child() -> None:
        await trio.lowlevel.checkpoint()
        log.info("from_task")

    with structlog.contextvars.bound_contextvars(connection=7):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(child)
            nursery.start_soon(child)
        await trio.to_thread.run_sync(log.info, "from_thread")
        logging.getLogger("somebody").info("from_library")
    log.info("outside")
    events = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert [event.get("connection") for event in events] == [7, 7, 7, 7, None]


def test_a_stream_that_is_gone_stops_nobody(stream: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json", stream)
    stream.close()
    log.info("hello")
    logging.getLogger("somebody").warning("hello")
    assert capsys.readouterr().err == ""


def test_a_stream_that_cannot_encode_gets_escapes() -> None:
    raw = io.BytesIO()
    narrow = io.TextIOWrapper(raw, encoding="ascii")
    configure_logging("info", "json", narrow)
    log.info("hello", name="é")
    assert json.loads(raw.getvalue().decode("ascii").replace("\\xe9", "e"))["name"] == "e"


def test_a_broken_library_record_does_not_raise(
    stream: io.StringIO, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Without the test runner's own handler, which raises on purpose.
    monkeypatch.setattr(logging.getLogger(), "handlers", [])
    configure_logging("info", "json", stream)
    logging.getLogger("somebody").warning("%d", "no number")
    assert stream.getvalue() == ""
    assert "Logging error" in capsys.readouterr().err
