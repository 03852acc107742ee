"""The documentation's own scenario runs, and its tables have their places."""

import re
from pathlib import Path
from random import Random

import pytest

from loadgen.cli import run_command
from loadgen.scenario import load_scenario
from loadgen.script import Answer, Pause, Stream, User
from loadgen.tables import TABLES

PAGE = Path(__file__).parents[2] / "docs/performance.md"


def test_the_scenario_of_the_page_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    file = tmp_path / "guests.py"
    file.write_text(block)
    scenario = load_scenario(str(file))
    assert scenario.user is not None
    script = scenario.user(User(0, Random(0), "nonce"))
    assert isinstance(script.send(None), Stream)
    assert script.send(Answer(error="overloaded", retry_after_s=2.0)) == Pause(2.0)


def test_the_command_of_the_page_fits_the_scenario_of_the_page(tmp_path: Path) -> None:
    page = PAGE.read_text(encoding="utf-8")
    (block,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    (command,) = re.findall(r"loadgen run \./mine\.py (.*?) +#", page)
    (tmp_path / "mine.py").write_text(block)
    options = run_command.make_context("run", [str(tmp_path / "mine.py"), *command.split()]).params
    asked = {name: options[name] for name in ("connections", "rate")}
    assert load_scenario(str(tmp_path / "mine.py")).fitted(**asked).name == "guests"


@pytest.mark.parametrize("name", sorted(TABLES))
def test_a_table_that_is_written_has_its_markers(name: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.count(f"<!-- {name}: begin -->") == text.count(f"<!-- {name}: end -->") == 1
