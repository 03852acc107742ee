"""The collector as `persona serve` sets it, seen from other processes: it is one for a whole process."""

import gc
import subprocess
import sys

from persona.garbage import THRESHOLDS

LOOK = """
import gc
import click.testing
import trio
from persona import cli

def look(*_args):
    print("thresholds", *gc.get_threshold(), "frozen", gc.get_freeze_count())

trio.run = look
cli.main(["serve", "--db", "never-opened.db"], standalone_mode=False)
"""


def test_a_server_collects_seldom_and_not_what_was_there_before_it() -> None:
    done = subprocess.run(
        [sys.executable, "-c", LOOK], capture_output=True, text=True, check=True, timeout=60
    )
    words = done.stdout.split()
    assert words[:5] == ["thresholds", *map(str, THRESHOLDS), "frozen"]
    assert int(words[5]) > 10_000


def test_a_client_program_is_left_as_it_is() -> None:
    look = LOOK.replace('"serve", "--db", "never-opened.db"', '"chat", "--say", "Hello"')
    done = subprocess.run(
        [sys.executable, "-c", look], capture_output=True, text=True, check=True, timeout=60
    )
    words = done.stdout.split()
    assert words[1:4] == [*map(str, gc.get_threshold())]
    assert words[4:] == ["frozen", "0"]
