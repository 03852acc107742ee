"""The collector as `persona serve` sets it, seen from other processes: it is one for a whole process."""

import gc
import subprocess
import sys

import pytest

from persona.garbage import THRESHOLDS, rarely_collected

LOOK = """
import gc
import trio
from persona import cli

def look(*_args):
    print(gc.get_threshold(), gc.get_freeze_count())

trio.run = look
try:
    cli.main({arguments!r}, standalone_mode=False)
finally:
    look()
"""


def look(*arguments: str) -> list[str]:
    code = LOOK.format(arguments=list(arguments))
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60
    )
    return done.stdout.split("\n")[:2]


def test_a_server_collects_seldom_and_not_what_was_there_before_it() -> None:
    during, after = look("serve", "--db", "never-opened.db")
    assert during.startswith(f"{THRESHOLDS}")
    assert int(during.split()[-1]) > 10_000
    assert after == f"{gc.get_threshold()} 0"


def test_a_client_program_is_left_as_it_is() -> None:
    during, after = look("chat", "--say", "Hello")
    assert during == after == f"{gc.get_threshold()} 0"


def test_what_was_set_is_set_back_also_after_a_failure() -> None:
    before = (gc.get_threshold(), gc.get_freeze_count())
    with pytest.raises(KeyError), rarely_collected():
        assert gc.get_threshold() == THRESHOLDS
        raise KeyError
    assert (gc.get_threshold(), gc.get_freeze_count()) == before
