"""The page for the operator, in a real browser."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.request import ProxyHandler, build_opener

import pytest
from prometheus_client.parser import text_string_to_metric_families

from tests.browser.figures import Feed, figures
from tests.browser.server import PageServer, page_server

if TYPE_CHECKING:
    from tests.browser.page import Page

pytestmark = pytest.mark.slow

UNKNOWN = "\N{EN DASH}"


@pytest.fixture
def feed() -> Iterator[Feed]:
    with Feed(figures()).running() as running:
        yield running


@pytest.fixture
def dashboard(tmp_path: Path, feed: Feed, page: "Page") -> Iterator["Page"]:
    """The dashboard of a server whose figures are those of `feed`."""
    with page_server(tmp_path, PERSONA_SERVER_PUBLIC_URL=feed.url) as server:
        page.open(f"{server.pages}/dashboard")
        page.until(lambda: page.text("#connections-open") != UNKNOWN, "no figures come")
        yield page


def test_every_figure_is_where_it_belongs(dashboard: "Page") -> None:
    expected = {
        "connections-open": "212",
        "connections-max": "500",
        "connections-half-open": "3",
        "connections-refused": "6",
        "connections-closed": "75",
        "requests-rate": "83.4",
        "requests-total": "48,123",
        "requests-failed": "2.13 %",
        "latency-avg": "2.1 ms",
        "latency-p50": "1.1 ms",
        "latency-p95": "47.4 ms",
        "latency-p99": "182 ms",
        "loop-lag": "13.7 ms",
        "memory-resident": "191.4 MB",
        "memory-growth": "15 kB/s",
        "memory-soft": "1.6 GB",
        "memory-hard": "2 GB",
        "model-queued": "29",
        "model-available": "answers",
        "model-rate": "119",
        "model-first-token": "310 ms / 1.27 s",
        "model-p50": "2.6 s",
        "model-p95": "7.3 s",
        "model-p99": "11.5 s",
        "database-writes": "9",
        "database-reads": "6",
        "database-batch": "3.7",
        "background-dropped": "8",
        "window": "1 min 0 s",
        "uptime": "1 d 2 h",
    }
    assert {name: dashboard.text(f"#{name}") for name in expected} == expected
    assert dashboard.texts("#pools .meter div span") == [
        *("Handlers", "17 of 100 running", "Database readers", "1 of 2 busy", "Model slots", "4 of 4 busy"),
        *("Model queue", "29 of 512 waiting", "Background jobs", "41 of 2,000 waiting"),
    ]
    # A type of error is text, too.
    assert dashboard.texts("#errors span") == [
        *("rate_limited", "61", "overloaded", "33", "<b>odd</b>", "1"),
    ]
    assert dashboard.texts("#model-times span") == [
        *("up to 1 s", "14", "up to 2.5 s", "45", "up to 5 s", "27", "up to 10 s", "11", "over 10 s", "2"),
    ]
    table = dashboard.script("return document.querySelector('#methods').innerText")
    rows = [row.split() for row in table.split("\n")]
    assert rows == [
        ["system.ping", "4,100", "68.3", "1.2", "ms", "4.3", "ms", "9.1", "ms"],
        ["persona.chat", "904", "15.1", "2.4", "s", "6.1", "s", "8.8", "s"],
    ]
    assert "All slots of the model" in dashboard.text("#alert-list")


def test_alerts_come_and_go(dashboard: "Page", feed: Feed) -> None:
    assert not dashboard.find("#calm").is_displayed()
    feed.figures = figures() | {"alerts": []}
    dashboard.until(lambda: dashboard.find("#calm").is_displayed())
    assert dashboard.texts("#alert-list li") == []


def test_charts_have_a_past(dashboard: "Page", feed: Feed) -> None:
    """Higher figures stand higher, and what was before is still there."""

    def line() -> list[list[float]]:
        drawn = dashboard.script(
            "return document.querySelector('#connections-chart .line').getAttribute('d')"
        )
        return [[float(number) for number in point.split(",")] for point in drawn[1:].split(" L")]

    dashboard.until(lambda: len(line()) >= 3)
    higher = figures()
    higher["connections"]["open"] = 424
    feed.figures = higher
    dashboard.until_text("#connections-chart p", "peak 424")
    points = line()
    assert points[-1][0] == 300
    assert points[0][0] < points[-1][0]
    # Half as many, and so half as high.
    base = 62.0
    assert (base - points[0][1]) * 2 == pytest.approx(base - points[-1][1], abs=0.5)


def test_every_chart_shows_its_own_figure(dashboard: "Page") -> None:
    charts = ("connections", "requests", "latency", "memory", "model")
    dashboard.until(lambda: all(dashboard.text(f"#{chart}-chart p span:nth-child(2)") for chart in charts))
    peaks = {chart: dashboard.text(f"#{chart}-chart p span:nth-child(2)") for chart in charts}
    assert peaks == {
        "connections": "peak 212",
        "requests": "peak 83.4",
        "latency": "peak 47.4 ms",
        "memory": "peak 191.4 MB",
        "model": "peak 29",
    }


def test_what_is_not_known_is_a_dash(dashboard: "Page", feed: Feed) -> None:
    bare = figures()
    bare["memory"] |= {"growth_bytes_per_s": None, "soft_limit_bytes": 0}
    bare["requests"]["latency_s"] = dict.fromkeys(("avg", "p50", "p95", "p99"))
    bare["model"] |= {
        "available": None,
        "tokens_per_second": None,
        "seconds": {"p50": None, "p95": None, "p99": None, "buckets": []},
    }
    bare["errors"] = {}
    feed.figures = bare
    dashboard.until_text("#memory-growth", UNKNOWN)
    texts = {name: dashboard.text(f"#{name}") for name in ("latency-p95", "model-rate", "model-available")}
    assert texts == {"latency-p95": UNKNOWN, "model-rate": UNKNOWN, "model-available": "not known yet"}
    assert dashboard.text("#memory-soft") == "off"
    assert dashboard.text("#errors") == "No errors in this window"
    assert dashboard.text("#model-times") == "No answers in this window"


def test_figures_that_are_old_are_called_so(dashboard: "Page", feed: Feed) -> None:
    assert not dashboard.find("#age").is_displayed()
    feed.silent = True
    dashboard.until_text("#age", "no newer ones come")
    assert "stale" in (dashboard.find("#figures").get_attribute("class") or "")
    feed.silent = False
    dashboard.until(lambda: not dashboard.find("#age").is_displayed())
    assert "stale" not in (dashboard.find("#figures").get_attribute("class") or "")


def metric(server: PageServer, name: str) -> float:
    """One figure of `/metrics`."""
    with build_opener(ProxyHandler({})).open(f"{server.pages}/metrics", timeout=20) as answer:
        families = text_string_to_metric_families(answer.read().decode())
        return sum(sample.value for family in families for sample in family.samples if sample.name == name)


def test_the_servers_own_figures_are_those_of_its_metrics(tmp_path: Path, page: "Page") -> None:
    """Known traffic, over the server's own socket, also after it has been away."""
    with page_server(tmp_path) as server:
        page.open(f"{server.pages}/dashboard")
        for others, pings, mistakes in ((4, 7, 3), (2, 5, 2)):
            page.until_text("#link", "Connected", within_s=40)
            with contextlib.ExitStack() as stack:
                calls = [stack.enter_context(server.connected()) for _ in range(others)]
                for _ in range(pings):
                    calls[0]("system.ping")
                for _ in range(mistakes):
                    with pytest.raises(AssertionError, match="no such method"):
                        calls[1]("system.pong")
                # The page is one of them, and has subscribed.
                expected = {
                    "#connections-open": f"{others + 1}",
                    "#requests-total": f"{pings + mistakes + 1}",
                    "#errors": f"method_not_found{mistakes}",
                    "#model-available": "answers",
                }
                page.until(
                    lambda expected=expected: {css: page.text(css) for css in expected} == expected,
                    f"the page shows {[page.text(css) for css in expected]}, not {expected}",
                )
                assert metric(server, "persona_connections") == others + 1
                assert metric(server, "persona_requests_total") == pings + mistakes + 1
                assert metric(server, "persona_errors_total") == mistakes
                rows = page.texts("#methods tr :is(th, td:nth-child(2))")
                assert dict(zip(rows[::2], rows[1::2], strict=True))["system.ping"] == str(pings)
            server.stop()
            page.until_text("#age", "no newer ones come")
            server.start()
