"""Two runs beside each other."""

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
    assert (code, "worse  rate" in output) == (0, True)
    assert compare("--fail-on-worse")[0] == 1
    (tmp_path / "b/x.json").write_text("{}")
    code, output = compare()
    assert (code, "is no run of loadgen" in output) == (2, True)
