"""The figures: names, reading them, and that the docs speak of metrics that exist."""

import re
from pathlib import Path

import persona
from persona.metrics import Distribution, Metrics
from persona.storage.figures import DatabaseFigures
from persona.storage.pool import open_database

OPERATIONS = Path(persona.__file__).parent.parent / "docs" / "operations.md"


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


async def test_the_docs_name_only_metrics_that_there_are() -> None:
    text = OPERATIONS.read_text(encoding="utf-8").partition("## Limits, and where they show")[2]
    named = set(re.findall(r"`(persona_[a-z_]+)(?:\{[^`]*\})?`", text))
    metrics = Metrics()
    async with open_database(":memory:", threads=False) as database:
        metrics.registry.register(DatabaseFigures(database.statistics))
        families = {family.name for family in metrics.registry.collect()}
    assert len(named) > 5
    assert {name.removesuffix("_total") for name in named} <= families


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
