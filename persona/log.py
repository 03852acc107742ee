"""Logging: structlog and the standard library's loggers, one event a line, on one stream.

Modules get theirs with `structlog.get_logger()` and log events as snake_case names with key-values:
`log.warning("slow_consumer", connection=7)`. Context bound with `structlog.contextvars` reaches child
tasks and worker threads.

No value, whoever sent it, can start a line of its own or reach the terminal as a control sequence: in
JSON such characters are escaped, on the console quoted. Only a traceback on the console takes more
lines, each of them indented.
"""

import contextlib
import logging
import sys
import threading
import uuid
from collections.abc import Callable
from typing import Any, Literal, TextIO

import orjson
import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from persona.errors import InternalError

Level = Literal["debug", "info", "warning", "error"]
Format = Literal["auto", "console", "json"]

PINNED = ("trio-websocket", "websockets", "httpx2", "httpcore2")
"""Libraries that never log below WARNING: trio-websocket formats a debug record for every frame, which
costs about 10 us each, and the others log each connection or request at INFO."""

_LINE_BREAKERS = {
    code: f"\\u{code:04x}"
    for code in (*range(0x7F, 0xA0), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}
"""What JSON leaves alone, and some reader or terminal takes for a line's end or a command."""


def configure_logging(level: Level, log_format: Format, stream: TextIO | None = None) -> None:
    """Set up logging for the process, to `stream` (stderr). May be called again; the last call holds.

    `log_format` auto means console on a terminal and JSON elsewhere.
    """
    stream = sys.stderr if stream is None else stream
    is_terminal = stream.isatty()
    console = log_format == "console" or (log_format == "auto" and is_terminal)
    stamp = structlog.processors.TimeStamper(fmt="iso", utc=True)
    context: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        stamp,
    ]
    render: list[Processor] = [structlog.processors.format_exc_info]
    render += [_escape, _console_renderer(is_terminal)] if console else [_render_json]
    lines = _Lines(stream)
    structlog.configure(
        processors=[*context, *render],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: lines,
        # Module-level loggers would keep the stream of the first call, which a test or an embedding
        # program may have closed. Finding the logger again costs about 2 us an event.
        cache_logger_on_first_use=False,
    )
    _route_standard_library(level, lines, context, render)


def _route_standard_library(
    level: Level, lines: "_Lines", context: list[Processor], render: list[Processor]
) -> None:
    number = logging.getLevelNamesMapping()[level.upper()]
    handler = _LineHandler(lines)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=[*context, structlog.stdlib.add_logger_name],
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, *render],
        )
    )
    root = logging.getLogger()
    # Other handlers (a test runner's, an embedding program's) stay.
    for old in [old for old in root.handlers if isinstance(old, _LineHandler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    root.setLevel(number)
    for name in PINNED:
        logging.getLogger(name).setLevel(max(number, logging.WARNING))


class _Lines:
    """Writes whole lines, from any thread. A stream that is gone is no reason to stop serving."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lock = threading.Lock()

    def write(self, line: str) -> None:
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._write(line)

    def _write(self, line: str) -> None:
        try:
            self._stream.write(line + "\n")
        except UnicodeEncodeError:
            self._stream.write(line.encode("ascii", "backslashreplace").decode() + "\n")
        self._stream.flush()

    # structlog calls the method named like the level; it has chosen by level already.
    debug = info = warning = error = critical = write


class _LineHandler(logging.Handler):
    def __init__(self, lines: _Lines) -> None:
        super().__init__()
        self._lines = lines

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.write(self.format(record))
        except Exception:  # noqa: BLE001 - a handler must not raise into whoever logs
            self.handleError(record)


def _console_renderer(colors: bool) -> Callable[[WrappedLogger, str, EventDict], str]:
    # The default traceback formatter, where Rich is installed, prints every local variable: secrets too.
    return structlog.dev.ConsoleRenderer(
        colors=colors, sort_keys=False, exception_formatter=structlog.dev.plain_traceback
    )


def _escape(_logger: WrappedLogger, _name: str, event: EventDict) -> EventDict:
    """Make every key and value safe to print on the event's line."""
    escaped: EventDict = {}
    for key, value in event.items():
        if key in ("event", "level", "timestamp", "logger"):
            escaped[key] = _printable(str(value))
        elif key == "exception":
            escaped[key] = "\n".join(f"    {_printable(line)}" for line in str(value).split("\n"))
        else:
            escaped[_printable(str(key))] = _Shown(_word(value))
    return escaped


class _Shown:
    """Stands in for a value; the renderer shows its `repr`, so it must be the text and no more."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return self._text


def _word(value: object) -> str:
    if not isinstance(value, str):
        return _printable(_safe_repr(value))
    # Quoted where it could be read as the next key, or an empty value overlooked.
    plain = value and value.isprintable() and not any(c in " =\"'" for c in value)
    return value if plain else repr(value)


def _printable(text: str) -> str:
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _render_json(_logger: WrappedLogger, _name: str, event: EventDict) -> str:
    ordered: dict[Any, Any] = dict.fromkeys(("timestamp", "level", "event")) | dict(event)
    try:
        line = orjson.dumps(ordered, default=_safe_repr, option=orjson.OPT_NON_STR_KEYS)
    except TypeError:
        # Lone surrogates, integers beyond 64 bits, cycles: rare, and a line is worth more than its types.
        plain = {_encodable(str(key)): _encodable(_as_text(value)) for key, value in ordered.items()}
        line = orjson.dumps(plain)
    # These can only be inside strings, where an escape means the same.
    return line.decode().translate(_LINE_BREAKERS)


def _as_text(value: object) -> str:
    return value if isinstance(value, str) else _safe_repr(value)


def _encodable(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode()


def _safe_repr(value: object) -> str:
    try:
        return repr(value)
    except Exception:  # noqa: BLE001 - whatever a stranger's __repr__ does, the event is logged
        return f"<unprintable {type(value).__name__}>"


def internal_error(exc: BaseException, *, where: str) -> InternalError:
    """Log a bug with its traceback under an id; the client's error carries the id and nothing else."""
    error_id = uuid.uuid4().hex[:12]
    structlog.get_logger().error("request_failed", error_id=error_id, where=where, exc_info=exc)
    return InternalError("an internal error occurred", details={"error_id": error_id})
