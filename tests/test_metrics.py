"""The figures: names, reading them, and that the docs speak of metrics that exist."""

import re
from pathlib import Path

import persona
from persona.metrics import Metrics

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


def test_the_docs_name_only_metrics_that_there_are() -> None:
    text = OPERATIONS.read_text(encoding="utf-8").partition("## Limits, and where they show")[2]
    named = set(re.findall(r"`(persona_[a-z_]+)(?:\{[^`]*\})?`", text))
    families = {family.name for family in Metrics().registry.collect()}
    assert len(named) > 5
    assert {name.removesuffix("_total") for name in named} <= families
