"""Ratios, marks, documentation and the baseline."""

import importlib
from pathlib import Path

import attrs
import orjson
import pytest
import structlog
from click.testing import CliRunner

from loadgen import bench, cli, tables
from loadgen.cli import main
from loadgen.storage.table import UNITS, scenarios
from loadgen.tables import (
    MAX_COLUMNS,
    TABLES,
    BenchPlan,
    Mark,
    Row,
    Table,
    TableError,
    baseline_of,
    markdown,
    measure,
    read_baseline,
    regressions,
    save_baseline,
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


def test_a_ratio_that_fell_beyond_the_noise_is_a_regression(tmp_path: Path) -> None:
    file = tmp_path / "baseline.json"
    save_baseline(table(row([10.0, 10.0], [20.0, 22.0])), file)
    stored = read_baseline(file)["demo"]
    assert stored == {"pings, us": {"ours / theirs": [2.0, 2.2]}}
    (line,) = regressions(table(row([12.0], [20.0])), stored)
    assert "is 1.67 and was 2.10" in line
    # Within 15 in a hundred, or within what the rounds themselves differ by.
    assert list(regressions(table(row([11.0], [20.0])), stored)) == []
    assert list(regressions(table(row([12.0, 9.0, 15.0], [20.0, 20.0, 20.0])), stored)) == []


def test_rounds_of_several_hours_are_joined_and_make_the_noise(tmp_path: Path) -> None:
    file = tmp_path / "baseline.json"
    bad_hour = table(row([14.5], [20.0]))
    save_baseline(table(row([10.0, 10.0], [20.0, 20.0]), row([1.0], [2.0], name="once")), file)
    assert list(regressions(bad_hour, read_baseline(file)["demo"])) != []
    save_baseline(table(row([15.0], [20.0]), row([1.0], [3.0], name="later")), file, beside=True)
    stored = read_baseline(file)["demo"]
    assert {title: each["ours / theirs"] for title, each in stored.items()} == {
        "pings, us": [2.0, 2.0, 1.3333],
        "once, us": [2.0],
        "later, us": [3.0],
    }
    assert list(regressions(bad_hour, stored)) == []
    assert list(regressions(table(row([20.0], [20.0])), stored)) != []
    save_baseline(table(row([10.0], [20.0])), file)
    assert read_baseline(file)["demo"] == {"pings, us": {"ours / theirs": [2.0]}}


def test_a_baseline_knows_ratios_only_and_passes_over_new_rows() -> None:
    measured = table(row([10.0], [20.0]), row([10.0], [20.0], name="without marks", marks=()))
    assert list(baseline_of(measured)) == ["pings, us"]
    assert list(regressions(measured, {})) == []


@pytest.mark.parametrize(
    ("unit", "is_kept"), [("us", False), ("lag p99, ms", False), ("busy_percent", False), ("kB", True)]
)
def test_a_baseline_has_no_ratio_to_a_time_that_nobody_measured(unit: str, is_kept: bool) -> None:
    bound = row([10.0], [20.0], unit=unit, bounds={"30": 30.0}, marks=(Mark("ours", "30", 1),))
    assert bool(baseline_of(table(bound))) is is_kept


def test_the_stored_baseline_is_of_rows_that_there_are() -> None:
    stored = read_baseline(Path(tables.__file__).parent / "baseline.json")
    assert set(stored) == {"transport", "storage"}
    transport = {f"{line.name}, {line.unit}" for line in bench.scenarios()}
    assert set(stored["transport"]) == transport
    assert set(stored["storage"]) <= {
        f"{scenario.name}, {UNITS[shown.figure]}" for scenario in scenarios() for shown in scenario.shown
    }
    assert all(
        ratio > 0
        for rows in stored.values()
        for each in rows.values()
        for ratios in each.values()
        for ratio in ratios
    )


def test_other_tables_baselines_stay(tmp_path: Path) -> None:
    file = tmp_path / "baseline.json"
    file.write_bytes(orjson.dumps({"other": {}}))
    save_baseline(table(row([10.0], [20.0])), file)
    assert set(read_baseline(file)) == {"other", "demo"}


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        '{"transport": 1}',
        '{"transport": {"pings, us": {"ours / theirs": []}}}',
        '{"transport": {"pings, us": {"ours / theirs": ["2"]}}}',
        '{"transport": {"pings, us": {"ours / theirs": {"ratio": 2.0, "spread": 0.1}}}}',
    ],
)
def test_what_is_no_baseline(tmp_path: Path, text: str) -> None:
    file = tmp_path / "baseline.json"
    file.write_text(text)
    with pytest.raises(TableError, match=r"baseline\.json is no"):
        read_baseline(file)


def test_every_table_can_be_measured() -> None:
    for place in TABLES.values():
        module, _, function = place.partition(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_a_row_that_there_is_not_is_an_error() -> None:
    with pytest.raises(TableError, match="no row of transport holds 'nothing'"):
        measure("transport", BenchPlan(only="nothing"), "")


def test_the_command_prints_keeps_and_checks(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    found = [row([10.0], [20.0])]
    plans: list[BenchPlan] = []
    logging_before = structlog.get_config()

    def measured(_name: str, plan: BenchPlan, _command: str) -> Table:
        plans.append(plan)
        structlog.get_logger().warning("of_a_database")
        return table(*found)

    monkeypatch.setattr(cli, "measure", measured)
    baseline, kept = str(tmp_path / "baseline.json"), tmp_path / "kept"

    def bench(*args: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["bench", "transport", *args])
        return done.exit_code, done.stdout

    code, output = bench("--save", baseline, "--json", str(kept))
    assert (code, "ours / theirs: 2.00 (mark 1.50) ok" in output) == (0, True)
    assert "of_a_database" not in output
    assert structlog.get_config() == logging_before
    stored = orjson.loads((kept / "demo.json").read_bytes())
    assert stored["rows"][0]["ratios"] == {"ours / theirs": 2.0}
    assert stored["rows"][0]["rounds"] == {"ours": [10.0], "theirs": [20.0]}
    assert bench("--check", baseline, "--folder", str(tmp_path))[0] == 0
    assert plans[-1].folder == tmp_path
    found[0] = row([19.0], [20.0])
    code, output = bench("--check", baseline)
    assert (code, "WORSE: pings, us: " in output) == (1, True)
    assert bench("--save", baseline, "--beside")[0] == 0
    assert read_baseline(Path(baseline))["demo"]["pings, us"]["ours / theirs"] == [2.0, 1.0526]
    assert bench("--beside")[0] == 2
