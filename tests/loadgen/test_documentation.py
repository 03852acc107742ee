"""The documentation's own scenario runs, and its tables have their places."""

import re
from pathlib import Path
from random import Random

import pytest

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


@pytest.mark.parametrize("name", sorted(TABLES))
def test_a_table_that_is_written_has_its_markers(name: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert text.count(f"<!-- {name}: begin -->") == text.count(f"<!-- {name}: end -->") == 1
