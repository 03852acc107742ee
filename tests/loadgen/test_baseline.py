"""What is stored of a table, and the next one held against it."""

from pathlib import Path

import attrs
import orjson
import pytest

from loadgen import baseline, bench
from loadgen.baseline import Baseline, Sitting, check, ratios_of, read_baseline, save_baseline
from loadgen.storage.table import UNITS, scenarios
from loadgen.tables import Mark, TableError
from tests.loadgen.test_tables import MARK, row, table


def test_a_ratio_that_fell_beyond_the_noise_is_a_regression(tmp_path: Path) -> None:
    file = tmp_path / "baseline.json"
    save_baseline(table(row([10.0, 10.0], [20.0, 22.0])), file)
    stored = read_baseline(file)["demo"]
    assert stored.ratios == {"pings, us": {"ours / theirs": [2.0, 2.2]}}
    assert stored.measured == (Sitting(cpu="a processor", date="2026-01-02", rounds=2),)
    (line,) = check(table(row([12.0], [20.0])), stored).worse
    assert "is 1.67 and was 2.10" in line
    # Within 15 in a hundred.
    assert check(table(row([11.0], [20.0])), stored).worse == ()


def test_a_bad_measurement_does_not_excuse_itself_by_its_noise() -> None:
    stored = Baseline(ratios={"pings, us": {"ours / theirs": [2.0, 2.0, 2.0]}})
    (line,) = check(table(row([100.0, 100.0, 10.0], [20.0, 20.0, 21.0])), stored).worse
    assert "is 0.20 and was 2.00, with a noise of 0.30" in line


def test_what_was_not_checked_is_counted() -> None:
    stored = Baseline(ratios={"pings, us": {"ours / theirs": [2.0]}})
    new = row([10.0], [20.0], name="new", marks=(MARK, Mark("theirs", "ours")))
    # Of the machine's time nothing is ever stored.
    bound = row([10.0], [20.0], name="bound", bounds={"30": 30.0}, marks=(Mark("ours", "30", 1),))
    found = check(table(row([10.0], [20.0]), new, bound), stored)
    assert (found.checked, found.not_stored, found.worse) == (1, 2, ())
    assert check(table(new), Baseline()).checked == 0


def test_rounds_of_several_hours_are_joined_and_make_the_noise(tmp_path: Path) -> None:
    file = tmp_path / "baseline.json"
    bad_hour = table(row([14.5], [20.0]))
    save_baseline(table(row([10.0, 10.0], [20.0, 20.0]), row([1.0], [2.0], name="once")), file)
    assert check(bad_hour, read_baseline(file)["demo"]).worse != ()
    save_baseline(table(row([15.0], [20.0]), row([1.0], [3.0], name="later")), file, beside=True)
    stored = read_baseline(file)["demo"]
    assert {title: each["ours / theirs"] for title, each in stored.ratios.items()} == {
        "pings, us": [2.0, 2.0, 1.3333],
        "once, us": [2.0],
        "later, us": [3.0],
    }
    assert check(bad_hour, stored).worse == ()
    assert check(table(row([20.0], [20.0])), stored).worse != ()
    save_baseline(table(row([10.0], [20.0])), file)
    assert read_baseline(file)["demo"].ratios == {"pings, us": {"ours / theirs": [2.0]}}


def test_a_part_of_a_table_replaces_its_own_rows_only(tmp_path: Path) -> None:
    file = tmp_path / "baseline.json"
    save_baseline(table(row([10.0], [20.0]), row([10.0], [30.0], name="chats")), file)
    save_baseline(table(row([10.0], [40.0])), file, is_part=True)
    assert read_baseline(file)["demo"].ratios == {
        "pings, us": {"ours / theirs": [4.0]},
        "chats, us": {"ours / theirs": [3.0]},
    }


def test_a_baseline_knows_ratios_only_and_passes_over_new_rows() -> None:
    measured = table(row([10.0], [20.0]), row([10.0], [20.0], name="without marks", marks=()))
    assert list(ratios_of(measured)) == ["pings, us"]
    assert check(measured, Baseline()).worse == ()


@pytest.mark.parametrize(
    ("unit", "is_kept"), [("us", False), ("lag p99, ms", False), ("busy_percent", False), ("kB", True)]
)
def test_a_baseline_has_no_ratio_to_a_time_that_nobody_measured(unit: str, is_kept: bool) -> None:
    bound = row([10.0], [20.0], unit=unit, bounds={"30": 30.0}, marks=(Mark("ours", "30", 1),))
    assert bool(ratios_of(table(bound))) is is_kept


def test_the_stored_baseline_is_of_rows_that_there_are() -> None:
    stored = read_baseline(Path(baseline.__file__).parent / "baseline.json")
    assert set(stored) == {"transport", "storage"}
    transport = {f"{line.name}, {line.unit}" for line in bench.scenarios()}
    assert set(stored["transport"].ratios) == transport
    assert set(stored["storage"].ratios) <= {
        f"{scenario.name}, {UNITS[shown.figure]}" for scenario in scenarios() for shown in scenario.shown
    }
    assert all(
        ratio > 0
        for table in stored.values()
        for each in table.ratios.values()
        for ratios in each.values()
        for ratio in ratios
    )
    assert all(sitting.cpu and sitting.rounds >= 3 for each in stored.values() for sitting in each.measured)


def test_a_ratio_to_nothing_is_not_stored(tmp_path: Path) -> None:
    file = tmp_path / "baseline.json"
    save_baseline(table(row([0.0, 10.0], [20.0, 20.0]), row([10.0], [20.0], name="chats")), file)
    assert read_baseline(file)["demo"].ratios == {"chats, us": {"ours / theirs": [2.0]}}


def test_other_tables_baselines_stay(tmp_path: Path) -> None:
    file = tmp_path / "baseline.json"
    other = attrs.evolve(table(row([10.0], [20.0])), name="other")
    for each in (other, table(row([10.0], [20.0]))):
        save_baseline(each, file)
    assert set(read_baseline(file)) == {"other", "demo"}


def test_a_baseline_says_when_and_on_what_it_was_measured(tmp_path: Path) -> None:
    file = tmp_path / "baseline.json"
    first = table(row([10.0, 10.0], [20.0, 20.0]))
    later = attrs.evolve(table(row([10.0], [20.0])), date="2026-01-03", machine={"cpu": "another"})
    sittings = [
        {"cpu": "a processor", "date": "2026-01-02", "rounds": 2},
        {"cpu": "another", "date": "2026-01-03", "rounds": 1},
    ]
    for options in ({"beside": True}, {"is_part": True}):
        save_baseline(first, file)
        save_baseline(later, file, **options)
        assert orjson.loads(file.read_bytes())["demo"]["measured"] == sittings
    save_baseline(later, file)
    assert orjson.loads(file.read_bytes())["demo"]["measured"] == sittings[1:]


def test_another_processor_is_said() -> None:
    ratios = {"pings, us": {"ours / theirs": [2.0]}}
    here, there = (Sitting(cpu=cpu, date="2026-01-02", rounds=1) for cpu in ("a processor", "another"))
    measured = table(row([10.0], [20.0]))
    assert check(measured, Baseline(ratios=ratios, measured=(here,))).other_cpus == ()
    assert check(measured, Baseline(ratios=ratios, measured=(there, here, there))).other_cpus == ("another",)


@pytest.mark.parametrize(
    "text",
    [
        "no json",
        "[]",
        '{"transport": 1}',
        '{"transport": {"pings, us": {"ours / theirs": [2.0]}}}',
        '{"transport": {"measured": [], "ratios": []}}',
        '{"transport": {"measured": [{"cpu": "x"}], "ratios": {}}}',
        '{"transport": {"measured": [{"cpu": 1, "date": "", "rounds": 1}], "ratios": {}}}',
        '{"transport": {"measured": [], "ratios": {"pings, us": []}}}',
        '{"transport": {"measured": [], "ratios": {"pings, us": {"ours / theirs": []}}}}',
        '{"transport": {"measured": [], "ratios": {"pings, us": {"ours / theirs": ["2"]}}}}',
        '{"transport": {"measured": [], "ratios": {"pings, us": {"ours / theirs": [null]}}}}',
    ],
)
def test_what_is_no_baseline(tmp_path: Path, text: str) -> None:
    file = tmp_path / "baseline.json"
    file.write_text(text)
    with pytest.raises(TableError, match=r"baseline\.json is no"):
        read_baseline(file)
