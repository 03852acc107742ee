"""The run as it goes, in the terminal: a line that is written over, or lines in a log."""

from collections.abc import Iterator
from typing import Any, TextIO

from loadgen.recorder import Second
from loadgen.results import Document

LOG_EVERY_S = 5
"""Where it is no terminal, a line now and then."""

HINTS = {
    "rate_limited": "the server limits the messages of one connection; for a load test start it with "
    "PERSONA_LIMITS_RATE_LIMIT_PER_MINUTE=0",
    "overloaded": "the server refused what it had no room for; use fewer connections",
    "persona_unavailable": "personas tire of talking; PERSONA_PERSONAS_RECOVERY_S=0 turns that off",
    "http_503": "the server is full; see limits.max_connections and limits.max_connections_per_address",
    "http_401": "the server wants a token; see --token-file",
    "connection_refused": "is the server running?",
    "connect_emfile": "this process may open no more sockets; see `ulimit -n`, or use --workers",
    "missed_event": "a subscriber did not get what the server says it delivered",
    "no_connection": "requests were due and there was no connection to send them on",
}


class Progress:
    """`show` each second, `end` before anything else is written."""

    def __init__(self, stream: TextIO, seconds: float) -> None:
        self._stream = stream
        self._total_s = seconds
        self._is_terminal = stream.isatty()
        self._shown = 0
        self._errors = 0
        self._width = 0

    def show(self, second: Second) -> None:
        """One more second has passed."""
        self._shown += 1
        self._errors += second.errors
        line = progress_line(second, self._total_s, self._errors)
        if self._is_terminal:
            self._stream.write("\r" + line.ljust(self._width))
            self._width = len(line)
        elif self._shown % LOG_EVERY_S == 0:
            self._stream.write(line + "\n")
        self._stream.flush()

    def end(self) -> None:
        """Leave the line that was written over."""
        if self._is_terminal and self._shown:
            self._stream.write("\n")
            self._stream.flush()


def progress_line(second: Second, total_s: float, errors: int) -> str:
    """Time, connections, rate, p95, errors, and what the server takes."""
    if second.p95_ms is not None:
        p95 = f"p95 {second.p95_ms:.1f} ms"
    else:
        p95 = f"waiting {second.oldest_ms / 1000:.1f} s" if second.waiting else "idle"
    parts = [
        f"{second.at_s:5.0f}/{total_s:.0f} s",
        f"{second.connections} conn",
        f"{second.answered}/s",
        p95,
        f"{errors} errors",
    ]
    if "memory_mb" in second.server:
        parts.append(f"server {second.server['memory_mb']:.0f} MB")
    if "cpu" in second.server:
        parts.append(f"{second.server['cpu']:.0%} cpu")
    return "  ".join(parts)


def report_lines(document: Document) -> Iterator[str]:
    """The result, for people."""
    figures: dict[str, float] = document["figures"]
    yield f"{document['scenario']} against {document['server']}, {document['model']} model"
    yield (
        f"  answered {figures['answered']:.0f}, {figures['rate']:.1f}/s; "
        f"errors {figures['errors']:.0f} ({figures['error_share']:.2%}); "
        f"a warm-up of {document['warm_up_s']:g} s with {document['warm_up_answered']} answers is left out"
    )
    yield from _latency_lines(figures)
    if len(document["stages"]) > 1:
        yield from _stage_lines(document)
    for kind, count in sorted(errors_by_kind(document).items(), key=lambda item: -item[1]):
        note = " (expected)" if kind in document["expected"] else ""
        hint = f": {HINTS[kind]}" if kind in HINTS and not note else ""
        yield f"  error {kind}: {count}{note}{hint}"
    yield from (f"  SPOILED: {line}" for line in document["spoiled"])
    yield from (f"  FAILED: {line}" for line in document["failed"])


def _latency_lines(figures: dict[str, float]) -> Iterator[str]:
    kinds = [name.removesuffix(".p50_ms") for name in figures if name.endswith(".p50_ms")]
    for kind in kinds:
        if kind.startswith("stage"):
            continue
        values = "  ".join(
            f"{name} {figures[f'{kind}.{name}_ms']:.2f}"
            for name in ("p50", "p90", "p95", "p99", "p99.9", "max")
        )
        yield f"  {kind:22} {values} ms ({figures[f'{kind}.count']:.0f})"


def _stage_lines(document: Document) -> Iterator[str]:
    figures = document["figures"]
    for number, stage in enumerate(document["stages"], 1):
        p95 = figures.get(f"stage{number}.response.p95_ms")
        asked = f", {stage['rate']:g}/s asked" if stage["rate"] is not None else ""
        yield (
            f"  stage {number} {stage['name']:14} {stage['connections']} connections{asked}: "
            f"{figures[f'stage{number}.rate']:.1f}/s, "
            f"p95 {'-' if p95 is None else f'{p95:.2f} ms'}, {figures[f'stage{number}.errors']:.0f} errors"
        )


def errors_by_kind(document: Document) -> dict[str, Any]:
    """Of all stages."""
    counts: dict[str, int] = {}
    for stage in document["stages"]:
        for kind, count in stage["errors"].items():
            counts[kind] = counts.get(kind, 0) + count
    if document["wrong"]:
        counts["wrong_answer"] = document["wrong"]
    return counts
