"""`loadgen bench`: what it prints, keeps and checks, with tables that nobody measured."""

from pathlib import Path

import attrs
import orjson
import pytest
import structlog
from click.testing import CliRunner

from loadgen import cli
from loadgen.baseline import read_baseline, save_baseline
from loadgen.cli import main
from loadgen.tables import BenchPlan, NoSuchRow, Table
from tests.loadgen.test_tables import row, table


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
    code, output = bench("--check", baseline, "--folder", str(tmp_path))
    assert (code, "demo: 1 ratios checked, 0 not stored" in output) == (0, True)
    assert plans[-1].folder == tmp_path
    found[0] = row([19.0], [20.0])
    code, output = bench("--check", baseline)
    assert (code, "WORSE: pings, us: " in output) == (1, True)
    assert bench("--save", baseline, "--beside")[0] == 0
    assert read_baseline(Path(baseline))["demo"].ratios["pings, us"]["ours / theirs"] == [2.0, 1.0526]
    assert bench("--beside")[0] == 2


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["--server", "sansio", "--save", "new.json"], "--save"),
        (["--server", "sansio", "--docs", "page.md"], "--docs"),
        (["--server", "sansio", "--check", "page.md"], "--check"),
        (["--only", "50", "--docs", "page.md"], "--docs"),
    ],
)
def test_a_part_of_a_table_does_not_stand_for_the_whole(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, args: list[str], complaint: str
) -> None:
    monkeypatch.setattr(cli, "measure", never)
    monkeypatch.chdir(tmp_path)
    Path("page.md").write_text("the page")
    done = CliRunner().invoke(main, ["bench", "transport", *args])
    assert (done.exit_code, complaint in done.output) == (2, True)
    assert Path("page.md").read_text() == "the page"
    assert not Path("new.json").exists()


def test_with_only_the_rows_that_were_not_measured_stay_in_the_baseline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    found = [row([10.0], [20.0]), row([10.0], [30.0], name="chats")]
    monkeypatch.setattr(cli, "measure", lambda *_args: table(*found))
    baseline = tmp_path / "baseline.json"
    for args in ([], ["--only", "pings"]):
        assert CliRunner().invoke(main, ["bench", "transport", "--save", str(baseline), *args]).exit_code == 0
        del found[1:]
    assert set(read_baseline(baseline)["demo"].ratios) == {"pings, us", "chats, us"}


def test_a_check_of_nothing_does_not_pass(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(cli, "measure", lambda *_args: table(row([10.0], [20.0])))
    baseline = tmp_path / "baseline.json"
    baseline.write_text("{}")
    done = CliRunner().invoke(main, ["bench", "transport", "--check", str(baseline)])
    assert done.exit_code == 1
    assert "demo: 0 ratios checked, 1 not stored" in done.output
    assert "nothing was checked" in done.output


def test_a_check_against_another_processor_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    baseline = tmp_path / "baseline.json"
    save_baseline(table(row([10.0], [20.0])), baseline)
    here = attrs.evolve(table(row([10.0], [20.0])), machine={"cpu": "this one"})
    monkeypatch.setattr(cli, "measure", lambda *_args: here)
    done = CliRunner().invoke(main, ["bench", "transport", "--check", str(baseline)])
    assert done.exit_code == 0
    assert "note: the baseline of demo is of a processor, and this is this one" in done.output


def never(*_args: object) -> Table:
    raise AssertionError("nothing is to be measured")


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["--save", "no/such/b.json"], "cannot write no/such/b.json"),
        (["--save", "broken.json"], "broken.json is no JSON"),
        (["--check", "broken.json"], "broken.json is no JSON"),
        (["--docs", "broken.json"], "has no markers `<!-- storage: begin -->`"),
        (["--json", "broken.json/results"], "cannot write broken.json/results"),
    ],
)
def test_what_would_fail_at_the_end_fails_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, args: list[str], complaint: str
) -> None:
    monkeypatch.setattr(cli, "measure", never)
    monkeypatch.chdir(tmp_path)
    Path("broken.json").write_text("<!-- transport: begin --><!-- transport: end -->")
    done = CliRunner().invoke(main, ["bench", "transport", "storage", *args])
    assert (done.exit_code, complaint in done.output) == (1, True), done.output


def test_a_table_without_such_a_row_does_not_hold_up_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    def measured(name: str, _plan: BenchPlan, _command: str) -> Table:
        if name != "storage":
            raise NoSuchRow(f"no row of {name} holds 'pings'")
        return table(row([10.0], [20.0]))

    monkeypatch.setattr(cli, "measure", measured)

    def bench(*names: str) -> tuple[int, str]:
        done = CliRunner().invoke(main, ["bench", *names, "--only", "pings"])
        return done.exit_code, done.output

    code, output = bench("guide", "storage", "chat")
    assert (code, "## pings, us" in output, "note: no row of chat" in output) == (0, True, True)
    assert bench("guide", "chat")[0] == 1
