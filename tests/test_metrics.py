"""The figures: names, reading them, and that the docs speak of metrics that exist."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client import Metric

import persona
from persona.config import MonitorSettings
from persona.metrics import SECONDS, Distribution, Metrics, counts, reading
from persona.monitor.rules import alert_rules
from persona.storage.figures import DatabaseFigures
from persona.storage.pool import open_database
from tests.monitor.house import CAPACITIES

DOCS = Path(persona.__file__).parent.parent / "docs"
OPERATIONS = DOCS / "operations.md"
RULES = DOCS / "persona.rules.yml"


def test_a_figure_that_was_never_touched_is_zero() -> None:
    metrics = Metrics()
    assert metrics.value("connections") == metrics.value("closed_total", cause="client") == 0
    metrics.connections.set(3)
    metrics.closed.labels("client").inc()
    assert metrics.value("connections") == 3
    assert metrics.value("connections_closed_total", cause="client") == 1
    assert metrics.value("connections_closed_total", cause="lost") == 0


def test_servers_in_one_process_count_for_themselves() -> None:
    one, other = Metrics(), Metrics()
    one.messages.received += 1
    assert (one.value("messages_received_total"), other.value("messages_received_total")) == (1, 0)


def test_a_distribution_counts_up_to_and_with_each_bound() -> None:
    sizes = Distribution((1, 2, 4))
    for size in (0, 1, 2, 3, 4, 5):
        sizes.observe(size)
    assert list(sizes.cumulated()) == [("1.0", 2), ("2.0", 3), ("4.0", 5), ("+Inf", 6)]
    assert (sizes.count, sizes.total, sizes.mean) == (6, 15, 2.5)
    assert Distribution().mean == 0


def test_a_copy_of_a_distribution_stays_as_it_was() -> None:
    sizes = Distribution((1, 2))
    sizes.observe(1)
    before = sizes.copy()
    sizes.observe(2)
    assert list(before.cumulated()) == [("1.0", 1), ("2.0", 1), ("+Inf", 1)]
    assert (before.total, sizes.total) == (1, 3)


def listed(block: str) -> set[str]:
    """The first column of the table between these markers of the operators' page."""
    text = OPERATIONS.read_text(encoding="utf-8")
    table = text.split(f"<!-- {block}: begin -->\n")[1].split(f"<!-- {block}: end -->")[0]
    return set(re.findall(r"^\| `(\w+)` \|", table, flags=re.MULTILINE))


async def families() -> dict[str, Metric]:
    """By the name that Prometheus shows."""
    metrics = Metrics()
    async with open_database(":memory:", threads=False) as database:
        metrics.registry.register(DatabaseFigures(database.statistics))
        return {
            f"{family.name}_total" if family.type == "counter" else family.name: family
            for family in metrics.registry.collect()
        }


async def test_the_docs_list_exactly_the_metrics_that_there_are() -> None:
    assert listed("metrics") == (await families()).keys()


async def test_the_docs_name_the_endings_of_all_series_of_a_metric() -> None:
    text = OPERATIONS.read_text(encoding="utf-8").partition("<!-- metrics: begin -->")[0]
    endings = {
        sample.name.removeprefix(name.removesuffix("_total"))
        for name, family in (await families()).items()
        for sample in family.samples
    }
    assert {ending for ending in endings - {"", "_total"} if f"`{ending}`" not in text} == set()


async def test_the_docs_name_only_metrics_that_there_are() -> None:
    text = OPERATIONS.read_text(encoding="utf-8").partition("## Limits, and where they show")[2]
    named = set(re.findall(r"`(persona_[a-z_]+)(?:\{[^`]*\})?`", text))
    assert len(named) > 20
    assert named <= (await families()).keys()


def test_the_docs_list_exactly_the_alerts_that_there_are() -> None:
    assert listed("alerts") == {rule.name for rule in alert_rules(MonitorSettings(), CAPACITIES)}


async def test_the_rules_for_prometheus_know_every_alert_and_only_metrics_that_there_are() -> None:
    text = RULES.read_text(encoding="utf-8")
    assert set(re.findall(r'persona_alert\{name="(\w+)"\}', text)) == listed("alerts")
    assert set(re.findall(r"\bpersona_[a-z_]+", text)) <= (await families()).keys()


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool comes with Debian's prometheus")
def test_prometheus_accepts_the_rules() -> None:
    done = subprocess.run(
        ["promtool", "check", "rules", str(RULES)], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


async def test_names_and_buckets_are_as_the_ecosystem_has_them() -> None:
    for name, family in (await families()).items():
        assert name.startswith("persona_")
        assert not re.search(r"_(ms|millis|mb|kb|minutes)(_|$)", name), name
        assert family.type != "histogram" or name.endswith(("_seconds", "_size"))
        assert family.documentation.endswith(".")
    assert list(SECONDS) == sorted(set(SECONDS))


def test_durations_are_counted_in_the_bucket_whose_bound_they_do_not_pass() -> None:
    metrics = Metrics()
    for seconds in (0.0, 0.1, 0.1000001, 300.0, 301.0):
        metrics.llm_seconds.observe(seconds)
        metrics.messages.count_answer("m", "ok", seconds)
    for name, labels in (("llm_seconds", {}), ("request_seconds", {"method": "m"})):
        value = metrics.value
        assert value(f"{name}_bucket", le="0.1", **labels) == 2
        assert value(f"{name}_bucket", le="0.25", **labels) == 3
        assert value(f"{name}_bucket", le="300.0", **labels) == 4
        assert value(f"{name}_bucket", le="+Inf", **labels) == value(f"{name}_count", **labels) == 5
        assert value(f"{name}_sum", **labels) == pytest.approx(601.2, abs=1e-5)


def test_what_became_of_calls_is_counted_by_method() -> None:
    messages = Metrics().messages
    for method, outcome, count in (("a", "ok", 2), ("a", "conflict", 1), ("b", "ok", 3)):
        for _ in range(count):
            messages.count_answer(method, outcome, 0.5)
    assert messages.outcomes() == {("a", "ok"): 2, ("a", "conflict"): 1, ("b", "ok"): 3}
    assert messages.answered() == (6, 3.0)


def test_a_counters_values_by_its_label() -> None:
    metrics = Metrics()
    assert counts(metrics.errors) == {}
    metrics.errors.labels("conflict").inc(2)
    metrics.errors.labels("internal_error").inc()
    assert counts(metrics.errors) == {"conflict": 2, "internal_error": 1}


def test_a_metric_without_labels_is_read_by_itself() -> None:
    metrics = Metrics()
    metrics.tokens.inc(3)
    metrics.memory_bytes.set(4096)
    assert (reading(metrics.tokens), reading(metrics.memory_bytes)) == (3.0, 4096.0)
