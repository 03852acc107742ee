"""Two runs beside each other."""

import math
from pathlib import Path
from typing import Any

import orjson
import pytest
from click.testing import CliRunner

from loadgen.cli import main
from loadgen.compare import Change, changes, comparison_lines, warnings


def run(**figures: float) -> dict[str, Any]:
    return {
        "format": 1,
        "scenario": "test",
        "server": "sansio",
        "machine": {"cores": 2},
        "spoiled": [],
        "stages": [{"connections": 1, "rate": None, "to_s": 5.0}],
        "figures": {name.replace("__", "."): value for name, value in figures.items()},
    }


def verdicts(a: list[Any], b: list[Any]) -> dict[str, str]:
    return {change.figure: change.verdict for change in changes(a, b)}


def test_what_is_within_the_range_of_repeats_is_the_same() -> None:
    before = [run(response__p99_ms=value) for value in (80.0, 100.0, 120.0)]
    assert verdicts(before, [run(response__p99_ms=139.0)]) == {"response.p99_ms": "same"}
    assert verdicts(before, [run(response__p99_ms=141.0)]) == {"response.p99_ms": "worse"}


def test_repeats_that_agree_are_not_trusted_blindly() -> None:
    before = [run(rate=100.0)] * 3
    assert verdicts(before, [run(rate=96.0)]) == {"rate": "same"}
    assert verdicts(before, [run(rate=90.0)]) == {"rate": "worse"}


def test_the_wider_range_counts() -> None:
    steady, noisy = [run(rate=100.0)] * 2, [run(rate=60.0), run(rate=120.0)]
    assert verdicts(steady, noisy) == {"rate": "same"}


def test_one_run_each_has_no_known_noise() -> None:
    assert verdicts([run(rate=100.0)], [run(rate=60.0)]) == {"rate": "same"}
    assert verdicts([run(rate=100.0)], [run(rate=160.0)]) == {"rate": "better"}
    assert "noise is not known" in next(iter(warnings([run()], [run()])))


@pytest.mark.parametrize(
    ("figure", "b", "verdict"),
    [
        ("rate", 2.0, "better"),
        ("response.p50_ms", 2.0, "worse"),
        ("response.p50_ms", 0.4, "better"),
        ("errors", 3.0, "worse"),
        ("response.count", 3.0, "better"),
    ],
)
def test_more_is_better_or_worse(figure: str, b: float, verdict: str) -> None:
    assert Change(figure, 1.0, b, 0.1).verdict == verdict


def test_errors_out_of_nothing_are_worse() -> None:
    assert Change("errors", 0.0, 1.0, 0.5).verdict == "worse"
    assert Change("errors", 0.0, 0.0, 0.5).verdict == "same"


def test_a_repeat_that_is_far_off_on_each_side_is_no_change() -> None:
    before = [run(response__p50_ms=value) for value in (10.0, 11.0, 14.0)]
    after = [run(response__p50_ms=value) for value in (15.0, 16.0, 18.0)]
    # 5 apart, and 4 and 3 among themselves: it takes more than both.
    assert verdicts(before, after) == {"response.p50_ms": "same"}


def test_what_is_ten_times_as_long_is_not_excused_by_its_own_range() -> None:
    before = [run(response__p50_ms=10.0)] * 3
    after = [run(response__p50_ms=value) for value in (60.0, 100.0, 140.0)]
    assert verdicts(before, after) == {"response.p50_ms": "worse"}


def test_what_falls_from_nothing_has_fallen() -> None:
    change = Change("server.memory_mb_per_minute", 0.0, -4.68, 1.0)
    assert (change.share, change.verdict) == (-math.inf, "better")


def test_a_slope_has_to_lead_somewhere() -> None:
    """Within these 5 s, a tenth of 120 MB is 144 MB a minute."""

    def slopes(a: float, b: float) -> dict[str, str]:
        figures = {"server.memory_mb_max": 120.0}
        sides = ([run(**figures, **{"server.memory_mb_per_minute": value})] * 3 for value in (a, b))
        return verdicts(*sides)

    assert slopes(0.0, 140.0)["server.memory_mb_per_minute"] == "same"
    assert slopes(0.01, -140.0)["server.memory_mb_per_minute"] == "same"
    assert slopes(0.0, 150.0)["server.memory_mb_per_minute"] == "worse"
    assert slopes(150.0, 0.0)["server.memory_mb_per_minute"] == "better"


@pytest.mark.parametrize(
    "figure",
    [
        "server.connections_max",
        "connections_max",
        "connect.count",
        "handshake.count",
        "expected_errors",
        "cancelled",
        "stage1.all_errors",
        # One sample each.
        "response.max_ms",
        "system.ping.max_ms",
        "server.ping_ms_max",
        "server.loop_lag_ms_end",
    ],
)
def test_what_is_neither_better_nor_worse_is_only_a_change(figure: str) -> None:
    assert verdicts([run(**{figure: 10.0})], [run(**{figure: 500.0})]) == {figure: "changed"}


@pytest.mark.parametrize(
    ("percentile", "count", "verdict"),
    [
        ("p99.9", 9_000.0, "changed"),
        ("p99.9", 11_000.0, "worse"),
        ("p99", 900.0, "changed"),
        ("p99", 1_100.0, "worse"),
        ("p50", 30.0, "worse"),
        ("p50", 10.0, "changed"),
    ],
)
def test_a_percentile_of_few_decides_nothing(percentile: str, count: float, verdict: str) -> None:
    def one(value: float) -> dict[str, Any]:
        return run(**{f"persona.chat.{percentile}_ms": value, "persona.chat.count": count})

    assert verdicts([one(10.0)], [one(100.0)])[f"persona.chat.{percentile}_ms"] == verdict
    # It takes both sides.
    few = run(**{f"persona.chat.{percentile}_ms": 100.0, "persona.chat.count": 5.0})
    assert verdicts([one(10.0)], [few])[f"persona.chat.{percentile}_ms"] == "changed"


def test_methods_and_labels_are_compared_and_the_generator_is_not() -> None:
    figures = {"system.ping.p50_ms": 1.0, "modest.p50_ms": 1.0, "clean_drain": 1.0, "generator.busy": 0.5}
    assert set(verdicts([run(**figures)], [run(**figures)])) == set(figures) - {"generator.busy"}


def test_what_cannot_be_compared_is_said() -> None:
    other = {**run(), "server": "aiohttp", "machine": {"cores": 8}, "spoiled": ["late"]}
    other["stages"] = [{"connections": 2, "rate": None, "to_s": 5.0}]
    said = " ".join(warnings([run()], [other, other]))
    for part in ("different servers", "different machines", "different size", "spoiled"):
        assert part in said


def test_only_what_changed_is_shown() -> None:
    a, b = run(rate=100.0, errors=0.0), run(rate=10.0, errors=0.0)
    shown = list(comparison_lines([a], [b], everything=False))
    assert [line.split()[:2] for line in shown if line.startswith(("worse", "same"))] == [["worse", "rate"]]
    assert shown[-1] == "1 of 2 figures changed beyond the noise"
    assert any(line.startswith("same") for line in comparison_lines([a], [b], everything=True))


def test_the_command(tmp_path: Path) -> None:
    for name, rates in (("a", (100.0, 101.0)), ("b", (50.0, 51.0))):
        (tmp_path / name).mkdir()
        for number, rate in enumerate(rates):
            (tmp_path / name / f"{number}.json").write_bytes(orjson.dumps(run(rate=rate)))

    def compare(*args: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["compare", str(tmp_path / "a"), str(tmp_path / "b"), *args])
        return done.exit_code, done.output

    code, output = compare()
    assert (code, "worse   rate" in output) == (0, True)
    assert compare("--fail-on-worse")[0] == 1
    (tmp_path / "b/x.json").write_text("{}")
    code, output = compare()
    assert (code, "is no run of loadgen" in output) == (2, True)
