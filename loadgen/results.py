"""A run's result as one JSON document: made from a recorder, added up over workers, boiled down to figures.

Histograms are in it whole, so that documents can be added and compared without losing a percentile.
"""

import platform
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs
import psutil

from loadgen.driver import Driver
from loadgen.latencies import Latencies
from loadgen.scenario import Scenario
from loadgen.selfwatch import what_is_spoiled
from loadgen.trend import slope

FORMAT = 1
"""Of the documents; one of another is not read."""
NOT_RESPONSES = ("connect", "handshake", "first_token", "broadcast")
"""Kinds of latencies that are no answer to a call."""

Document = dict[str, Any]


def measured(driver: Driver) -> Document:
    """What one process saw."""
    recorder = driver.recorder
    return {
        "format": FORMAT,
        "stages": [
            {
                "from_s": stage.from_s,
                "to_s": stage.to_s,
                "answered": stage.answered,
                "answered_meanwhile": stage.answered_meanwhile,
                "wrong": stage.wrong,
                "errors": dict(stage.errors),
                "latencies": {kind: each.stored() for kind, each in stage.latencies.items()},
            }
            for stage in recorder.stages
        ],
        "seconds": [attrs.asdict(second) for second in recorder.seconds],
        "warm_up_answered": recorder.warm_up_answered,
        "cancelled": recorder.cancelled_count,
        "events": {key: getattr(recorder.events, key) for key in ("promised", "received", "departed")},
        "wrong": recorder.wrong_count,
        "wrong_answers": recorder.wrong_answers,
        "generators": [{**driver.watch.figures(), "lag": driver.watch.lag.stored()}],
    }


def added(documents: Sequence[Document]) -> Document:
    """Of several workers, what all of them saw."""
    first = documents[0]
    return {
        "format": FORMAT,
        "stages": [
            _added_stage([each["stages"][n] for each in documents]) for n in range(len(first["stages"]))
        ],
        "seconds": [
            added_second(seconds) for seconds in zip(*(each["seconds"] for each in documents), strict=False)
        ],
        **{key: sum(each[key] for each in documents) for key in ("warm_up_answered", "cancelled", "wrong")},
        "events": {key: sum(each["events"][key] for each in documents) for key in first["events"]},
        "wrong_answers": [wrong for each in documents for wrong in each["wrong_answers"]],
        "generators": [generator for each in documents for generator in each["generators"]],
    }


def _added_stage(stages: Sequence[Document]) -> Document:
    kinds = {kind: None for stage in stages for kind in stage["latencies"]}
    errors: Counter[str] = Counter()
    for stage in stages:
        errors.update(stage["errors"])
    return {
        **stages[0],
        **{key: sum(stage[key] for stage in stages) for key in ("answered", "answered_meanwhile", "wrong")},
        "errors": dict(errors),
        "latencies": {
            kind: together(
                stage["latencies"][kind] for stage in stages if kind in stage["latencies"]
            ).stored()
            for kind in kinds
        },
    }


def added_second(seconds: Sequence[Document]) -> Document:
    """One second, of all workers."""
    summed = ("connections", "waiting", "answered", "errors", "expected_errors")
    worst = ("oldest_ms", "p50_ms", "p95_ms", "p99_ms", "max_ms", "busy", "lag_ms")
    return {
        "at_s": seconds[0]["at_s"],
        **{key: sum(second[key] for second in seconds) for key in summed},
        # Percentiles cannot be added; the worst worker's is what is shown, and no better than the truth.
        **{
            key: max((second[key] for second in seconds if second[key] is not None), default=None)
            for key in worst
        },
        "server": seconds[0]["server"],
    }


def together(stored: Iterable[Mapping[str, Any]]) -> Latencies:
    """One histogram of many."""
    whole = Latencies()
    for each in stored:
        whole.add(Latencies.restored(each))
    return whole


def completed(
    document: Document, scenario: Scenario, *, command: str, server: str, exit_code: int | None, owned: bool
) -> Document:
    """The document as it is kept: with what was run, the figures, and the verdicts."""
    document = {
        **document,
        "scenario": scenario.name,
        "summary": scenario.summary,
        "command": command,
        "server": server,
        "server_exit_code": exit_code,
        "finished_at": datetime.now(UTC).isoformat(timespec="seconds").replace("+00:00", "Z"),
        "machine": machine(),
        "model": "open" if scenario.is_open else "closed",
        "arrivals": scenario.arrivals if scenario.is_open else None,
        "warm_up_s": scenario.warm_up_s,
        "expected": sorted(scenario.expected),
    }
    for stage, planned in zip(document["stages"], scenario.stages, strict=True):
        stage.update(name=planned.name, connections=planned.connections, rate=planned.rate)
    _count_missed_events(document)
    document["figures"] = figures = dict(figures_of(document))
    if owned:
        figures["clean_drain"] = float(exit_code == 0)
    response = together(_stored(document, responses_only=True)).figures()
    document["spoiled"] = sorted(
        {line for each in document["generators"] for line in what_is_spoiled(each, response)}
    )
    document["failed"] = list(_failures(document, scenario, owned=owned))
    return document


def _count_missed_events(document: Document) -> None:
    """Those that no gap told of: a subscriber that hears nothing more, or nothing at all, sees none. Where a
    connection did not stay, what it missed is not known, and nothing is counted."""
    events, errors = document["events"], document["stages"][-1]["errors"]
    seen = sum(stage["errors"].get("missed_event", 0) for stage in document["stages"])
    missed = events["promised"] - events["received"] - seen
    if missed > 0 and not events["departed"]:
        errors["missed_event"] = errors.get("missed_event", 0) + missed


def _failures(document: Document, scenario: Scenario, *, owned: bool) -> Iterator[str]:
    figures = document["figures"]
    if document["wrong"]:
        yield f"{document['wrong']} wrong answers, the first: {document['wrong_answers'][0]}"
    if not figures["answered"]:
        yield "nothing was answered"
    if owned and document["server_exit_code"] != 0:
        yield f"the server did not end cleanly: exit code {document['server_exit_code']}"
    for threshold in scenario.thresholds:
        holds, line = threshold.verdict(figures)
        if not holds:
            yield line


def figures_of(document: Document) -> Iterator[tuple[str, float]]:
    """Names and values, as thresholds and comparisons use them. Times are in milliseconds."""
    expected = set(document["expected"])
    errors: Counter[str] = Counter()
    for stage in document["stages"]:
        errors.update(stage["errors"])
    answered = sum(stage["answered"] for stage in document["stages"])
    unexpected = sum(count for kind, count in errors.items() if kind not in expected) + document["wrong"]
    length_s = document["stages"][-1]["to_s"] - document["warm_up_s"]
    yield "answered", answered
    yield "rate", sum(stage["answered_meanwhile"] for stage in document["stages"]) / length_s
    yield "errors", unexpected
    yield "expected_errors", sum(errors.values()) + document["wrong"] - unexpected
    yield "error_share", unexpected / max(1, unexpected + answered)
    yield "wrong", document["wrong"]
    yield "cancelled", document["cancelled"]
    yield from _latency_figures(document)
    for number, stage in enumerate(document["stages"], 1):
        measured_s = stage["to_s"] - max(stage["from_s"], document["warm_up_s"])
        yield f"stage{number}.rate", stage["answered_meanwhile"] / measured_s if measured_s > 0 else 0.0
        unexpected = sum(n for kind, n in stage["errors"].items() if kind not in expected)
        yield f"stage{number}.errors", unexpected + stage["wrong"]
        yield f"stage{number}.all_errors", sum(stage["errors"].values()) + stage["wrong"]
        responses = together(_stored({"stages": [stage]}, responses_only=True))
        for name, value in responses.figures().items():
            yield f"stage{number}.response.{name}", value
    yield from _server_figures(document)
    for name in ("busy", "cpu", "lag_p99_ms"):
        yield f"generator.{name}", max(each.get(name, 0.0) for each in document["generators"])


def _stored(
    document: Document, *, kind: str | None = None, responses_only: bool = False
) -> Iterator[Mapping[str, Any]]:
    for stage in document["stages"]:
        for name, stored in stage["latencies"].items():
            if name == kind or (responses_only and name not in NOT_RESPONSES):
                yield stored


def _latency_figures(document: Document) -> Iterator[tuple[str, float]]:
    for name, value in together(_stored(document, responses_only=True)).figures().items():
        yield f"response.{name}", value
    kinds = sorted({kind for stage in document["stages"] for kind in stage["latencies"]})
    for kind in kinds:
        for name, value in together(_stored(document, kind=kind)).figures().items():
            yield f"{kind}.{name}", value


def latencies_by_kind(document: Document) -> dict[str, Latencies]:
    """`response`, which is all methods together, and each kind by itself."""
    kinds = sorted({kind for stage in document["stages"] for kind in stage["latencies"]})
    found = {"response": together(_stored(document, responses_only=True))} if kinds else {}
    return found | {kind: together(_stored(document, kind=kind)) for kind in kinds}


def _server_figures(document: Document) -> Iterator[tuple[str, float]]:
    samples = [(second["at_s"], second["server"]) for second in document["seconds"]]
    yield "connections_max", max((second["connections"] for second in document["seconds"]), default=0)
    for key in sorted({key for _, sample in samples for key in sample}):
        points = [(at_s, sample[key]) for at_s, sample in samples if key in sample]
        yield f"server.{key}_max", max(value for _, value in points)
        yield f"server.{key}_end", points[-1][1]
        # What a server takes at first, for caches and buffers, is no leak.
        settled = points[len(points) // 3 :]
        if len(settled) >= 2:
            yield f"server.{key}_per_minute", slope(settled) * 60


def machine() -> dict[str, Any]:
    """What the figures were measured on, without its name."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    return {
        "cpu": model,
        "cores": psutil.cpu_count() or 1,
        "memory_gb": round(psutil.virtual_memory().total / 1e9, 1),
        "system": f"{platform.system()} {platform.release().partition('-')[0]}",
        "python": platform.python_version(),
    }
