"""A run as one HTML page that needs nothing else: verdict, figures, charts."""

import html
from collections.abc import Iterator

from loadgen.charts import Line, Point, chart, linear, nines, percentile_axis
from loadgen.progress import errors_by_kind
from loadgen.results import Document, latencies_by_kind

STYLE = """
:root { color-scheme: light dark; --bg:#fff; --fg:#1c2330; --soft:#667; --grid:#e3e6ec;
  --c1:#2563c9; --c2:#c9661a; --c3:#2a8a4a; --c4:#9a3fb5; --good:#2a8a4a; --bad:#c02a2a; --odd:#a86a00 }
@media (prefers-color-scheme: dark) { :root { --bg:#14181f; --fg:#e4e8ef; --soft:#98a1b0; --grid:#2a313c;
  --c1:#6ea8ff; --c2:#f0a060; --c3:#66c98a; --c4:#d08ae6; --good:#66c98a; --bad:#ff7b72; --odd:#e0a84a } }
body { background:var(--bg); color:var(--fg); font:15px/1.5 system-ui,sans-serif; max-width:900px;
  margin:2rem auto; padding:0 1rem }
h1 { font-size:1.5rem; margin-bottom:.2rem } h2 { font-size:1.1rem; margin-top:2rem }
small, .soft { color:var(--soft) } code { overflow-wrap:anywhere }
.good { color:var(--good) } .bad { color:var(--bad) } .odd { color:var(--odd) }
table { border-collapse:collapse; width:100%; font-variant-numeric:tabular-nums; display:block;
  overflow-x:auto }
td, th { padding:.25rem .6rem; text-align:right; border-bottom:1px solid var(--grid); white-space:nowrap }
td:first-child, th:first-child { text-align:left }
figure { margin:1.4rem 0 } figcaption { font-weight:600 }
figcaption span { font-weight:400; margin-left:.8rem }
figcaption i { display:inline-block; width:.8rem; height:.2rem; margin-right:.3rem; vertical-align:middle }
svg { width:100%; height:auto } svg text { font-size:11px; fill:var(--soft) }
svg path { fill:none; stroke-width:1.6 } svg .g { stroke:var(--grid) }
svg line.m { stroke:var(--soft); stroke-dasharray:3 3; opacity:.5 }
"""
COLUMNS = ("count", "p50_ms", "p90_ms", "p95_ms", "p99_ms", "p99.9_ms", "max_ms")


def page(document: Document) -> str:
    """The whole page."""
    title = html.escape(f"{document['scenario']} against {document['server']}")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body><h1>{title}</h1>"
        f"{''.join(_parts(document))}</body></html>\n"
    )


def _parts(document: Document) -> Iterator[str]:
    machine = document["machine"]
    yield f'<p class="soft">{html.escape(document["summary"])}</p>'
    yield from _verdict(document)
    yield from _tables(document)
    yield from _charts(document)
    arrivals = f", {document['arrivals']} arrivals" if document["arrivals"] else ""
    yield (
        f"<h2>How it was measured</h2><p><code>{html.escape(document['command'])}</code></p><p>"
        f"{html.escape(machine['cpu'])}, {machine['cores']} cores, {machine['memory_gb']} GB, "
        f"{html.escape(machine['system'])}, Python {machine['python']}; finished at "
        f"{document['finished_at']}. {document['model'].capitalize()} model{arrivals}. A latency is counted "
        f"from when its request was due. "
        f"The first {document['warm_up_s']:g} s are a warm-up and left out, with "
        f"{document['warm_up_answered']} answers; connects and handshakes are counted from the start. "
        f"Errors give no latency.</p>"
    )


def _verdict(document: Document) -> Iterator[str]:
    figures = document["figures"]
    for line in document["failed"]:
        yield f'<p class="bad">Failed: {html.escape(line)}</p>'
    for line in document["spoiled"]:
        yield f'<p class="odd">Spoiled: {html.escape(line)}</p>'
    if not document["failed"]:
        yield '<p class="good">All thresholds hold.</p>'
    yield (
        f"<p><b>{figures['answered']:,.0f}</b> answers, <b>{figures['rate']:,.1f}</b> a second; "
        f"<b>{figures['errors']:,.0f}</b> errors ({figures['error_share']:.2%}).</p>"
    )


def _tables(document: Document) -> Iterator[str]:
    head = "".join(f"<th>{name.removesuffix('_ms')}</th>" for name in COLUMNS)
    rows = "".join(
        f"<tr><td>{html.escape(kind)}</td>" + _cells(latencies.figures()) + "</tr>"
        for kind, latencies in latencies_by_kind(document).items()
        if len(latencies)
    )
    yield f"<h2>Latency, ms</h2><table><tr><th></th>{head}</tr>{rows}</table>"
    if len(document["stages"]) > 1:
        yield "<h2>Stages</h2>" + _stage_table(document)
    errors = errors_by_kind(document)
    if errors:
        rows = "".join(
            f"<tr><td>{html.escape(kind)}</td><td>{count:,}</td>"
            f"<td>{'expected' if kind in document['expected'] else ''}</td></tr>"
            for kind, count in sorted(errors.items(), key=lambda item: -item[1])
        )
        yield f"<h2>Errors</h2><table><tr><th>kind</th><th>count</th><th></th></tr>{rows}</table>"
    for wrong in document["wrong_answers"]:
        yield f'<p class="bad"><code>{html.escape(wrong)}</code></p>'


def _cells(figures: dict[str, float]) -> str:
    return "".join(f"<td>{figures[name]:,.{0 if name == 'count' else 2}f}</td>" for name in COLUMNS)


def _stage_table(document: Document) -> str:
    figures = document["figures"]
    rows = []
    for number, stage in enumerate(document["stages"], 1):
        p50, p99 = (figures.get(f"stage{number}.response.{p}_ms") for p in ("p50", "p99"))
        rows.append(
            f"<tr><td>{number} {html.escape(stage['name'])}</td><td>{stage['connections']:,}</td>"
            f"<td>{'-' if stage['rate'] is None else format(stage['rate'], ',g')}</td>"
            f"<td>{figures[f'stage{number}.rate']:,.1f}</td>"
            + "".join(f"<td>{'-' if p is None else format(p, ',.2f')}</td>" for p in (p50, p99))
            + f"<td>{figures[f'stage{number}.errors']:,.0f}</td></tr>"
        )
    names = ("", "connections", "asked/s", "answered/s", "p50 ms", "p99 ms", "errors")
    return f"<table><tr>{''.join(f'<th>{name}</th>' for name in names)}</tr>{''.join(rows)}</table>"


def _charts(document: Document) -> Iterator[str]:
    seconds = document["seconds"]
    if not seconds:
        return
    x = linear(0.0, max(document["stages"][-1]["to_s"], seconds[-1]["at_s"]))
    marks = [(stage["from_s"], stage["name"]) for stage in document["stages"] if stage["name"]]

    def line(name: str, key: str, *, of_server: bool = False) -> Line:
        points: list[Point] = [
            (each["at_s"], (each["server"] if of_server else each).get(key)) for each in seconds
        ]
        return Line(name, points)

    yield "<h2>Over time</h2>"
    for title, unit, lines in (
        (
            "Latency",
            "ms",
            [
                line("p50", "p50_ms"),
                line("p95", "p95_ms"),
                line("p99", "p99_ms"),
                line("oldest waiting", "oldest_ms"),
            ],
        ),
        ("Answers", "a second", [line("answered", "answered")]),
        (
            "Connections, and requests on the way",
            "",
            [line("connections", "connections"), line("waiting", "waiting")],
        ),
        (
            "Errors",
            "a second",
            [line("errors", "errors"), line("expected, such as refusals", "expected_errors")],
        ),
        ("Server: memory", "MB", [line("resident", "memory_mb", of_server=True)]),
        ("Server: processor", "cores", [line("cpu", "cpu", of_server=True)]),
        (
            "Server: lag, as a ping beside the load meets it",
            "ms",
            [
                line("ping", "ping_ms", of_server=True),
                line("loop lag, as it says", "loop_lag_ms", of_server=True),
            ],
        ),
        ("Server: descriptors", "", [line("descriptors", "descriptors", of_server=True)]),
        ("Load generator: its own lag", "ms", [line("longest", "lag_ms")]),
        ("Load generator: busy", "share of a core", [line("busy", "busy")]),
    ):
        present = [each for each in lines if any(y is not None for _, y in each.points)]
        yield chart(title, unit, present, x=x, marks=marks)
    curves = [
        Line(kind, [(nines(percentile), ms) for percentile, ms in latencies.curve() if percentile < 100])
        for kind, latencies in latencies_by_kind(document).items()
        if kind in ("response", "first_token", "broadcast", "handshake") and len(latencies)
    ]
    yield "<h2>Percentiles</h2>" + chart("Latency by percentile", "ms", curves, x=percentile_axis())
