"""Ratios, marks, documentation and the baseline."""

import importlib
from pathlib import Path

import attrs
import pytest

from loadgen.tables import (
    MAX_COLUMNS,
    TABLES,
    BenchPlan,
    Mark,
    NoSuchRow,
    Row,
    Table,
    TableError,
    markdown,
    measure,
    text_lines,
    write_docs,
)

MARK = Mark("ours", "theirs", 1.5)


def row(ours: list[float], theirs: list[float], **changes: object) -> Row:
    plain = Row(name="pings", unit="us", rounds={"ours": ours, "theirs": theirs}, marks=(MARK,))
    return attrs.evolve(plain, **changes)


def table(*rows: Row) -> Table:
    machine = {"cpu": "a processor", "cores": 2, "system": "Linux 6", "python": "3.11.9"}
    return Table(name="demo", rows=rows, command="loadgen bench demo", date="2026-01-02", machine=machine)


def test_a_ratio_above_one_is_in_our_favour() -> None:
    assert row([10.0], [20.0]).ratio(MARK) == 2.0
    assert row([30.0], [20.0], more_is_better=True).ratio(MARK) == 1.5


def test_each_round_has_a_ratio_of_its_own() -> None:
    noisy = row([10.0, 20.0, 10.0], [20.0, 20.0, 30.0])
    assert noisy.ratio(MARK) == 2.0
    assert noisy.ratios(MARK) == [2.0, 1.0, 3.0]


@pytest.mark.parametrize(
    ("ours", "verdict"), [(10.0, "2.00 (mark 1.50) ok"), (16.0, "1.25 (mark 1.50) MISSED")]
)
def test_a_row_for_people(ours: float, verdict: str) -> None:
    assert f"  ours / theirs: {verdict}" in text_lines(row([ours], [20.0]))


def test_the_documentation_says_what_where_and_what_is_missed() -> None:
    text = markdown(table(row([16.0], [20.0], note="why it is so"), row([1234.5], [0.5], marks=())))
    assert "`loadgen bench demo` on 2026-01-02: a processor, 2 cores, Linux 6, Python 3.11.9." in text
    assert "| pings, us | 16.0 | 20.0 | ours / theirs: 1.25 (1.5: **missed**) |" in text
    assert "| pings, us | 1,234 | 0.50 |  |" in text
    assert "* pings: why it is so" in text


def test_a_ratio_without_a_mark_is_neither_enough_nor_missed() -> None:
    only_to_know = row([10.0], [5.0], marks=(Mark("ours", "theirs"),))
    assert "  ours / theirs: 0.50" in text_lines(only_to_know)
    assert "| pings, us | 10.0 | 5.00 | ours / theirs: 0.50 |" in markdown(table(only_to_know))


def test_many_servers_stand_below_each_other_with_all_their_figures() -> None:
    others = [f"peer {n}" for n in range(MAX_COLUMNS)]
    many = Row(
        name="pings",
        unit="us",
        rounds={"ours": [10.0, 20.0, 10.0], **{name: [20.0, 20.0, 30.0] for name in others}},
        marks=(Mark("ours", "peer 0", 1.5), Mark("ours", "peer 1", 2.5), Mark("ours", "25 us", 2.0)),
        bounds={"25 us": 25.0},
        extra={name: {"p99, ms": 7.0} for name in ("ours", *others)},
        note="why it is so",
    )
    lag = attrs.evolve(
        many, unit="lag, ms", bounds={"5 ms": 5.0}, marks=(Mark("ours", "5 ms", 1), Mark("peer 3", "peer 2"))
    )
    lines = markdown(table(many, lag, attrs.evolve(many, name="chats"))).splitlines()
    assert [line for line in lines if line.endswith("| ratio (worst to best round), and mark |")] == [
        "| pings | us | p99, ms | ratio (worst to best round), and mark |",
        "| chats | us | p99, ms | ratio (worst to best round), and mark |",
    ]
    assert (
        "| ours | 10.0 | 7.00 | to 25 us: 2.50 (1.25 to 2.50); 2; "
        "lag, ms: to 5 ms: 0.50 (0.25 to 0.50); 1: **missed** |"
    ) in lines
    assert "| peer 0 | 20.0 | 7.00 | 2.00 (1.00 to 3.00); 1.5 |" in lines
    assert "| peer 1 | 20.0 | 7.00 | 2.00 (1.00 to 3.00); 2.5: **missed** |" in lines
    assert "| peer 2 | 20.0 | 7.00 | lag, ms: of peer 3: 1.00 (1.00 to 1.00) |" in lines
    assert "| peer 3 | 20.0 | 7.00 |  |" in lines
    assert lines.count("* pings: why it is so") == 1


def test_the_documentation_is_written_between_its_markers(tmp_path: Path) -> None:
    file = tmp_path / "performance.md"
    file.write_text("before\n<!-- demo: begin -->\nold\n<!-- demo: end -->\nafter\n")
    for _ in range(2):
        write_docs(table(row([10.0], [20.0])), file)
    text = file.read_text()
    assert text.startswith("before\n<!-- demo: begin -->\n`loadgen")
    assert text.endswith("\n<!-- demo: end -->\nafter\n")
    assert "old" not in text


def test_a_file_without_markers_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "performance.md"
    file.write_text("<!-- demo: begin -->")
    with pytest.raises(TableError, match="no markers"):
        write_docs(table(), file)
    assert file.read_text() == "<!-- demo: begin -->"


def test_every_table_can_be_measured() -> None:
    for place in TABLES.values():
        module, _, function = place.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_a_row_that_there_is_not_is_an_error() -> None:
    with pytest.raises(NoSuchRow, match=r"no row of transport holds 'nothing'$"):
        measure("transport", BenchPlan(only="nothing"), "")
    with pytest.raises(NoSuchRow, match="no row of transport is of picows"):
        measure("transport", BenchPlan(servers=("picows",)), "")
    with pytest.raises(NoSuchRow, match="no row of scale holds 'pongs' and is of picows"):
        measure("scale", BenchPlan(only="pongs", servers=("picows",)), "")


def test_of_an_even_number_of_steps_the_lower_middle_one_counts() -> None:
    held = row([100.0, 300.0], [50.0, 50.0], more_is_better=True)
    assert held.value("ours") == 200.0
    assert attrs.evolve(held, in_steps=True).value("ours") == 100.0
