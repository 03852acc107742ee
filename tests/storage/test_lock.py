"""One server to a database."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import trio

from persona.errors import DatabaseError
from persona.storage import lock
from persona.storage.lock import exclusive
from persona.storage.pool import open_database


def test_a_second_one_is_refused_and_told_who_has_it(tmp_path: Path) -> None:
    path = tmp_path / "p.db"
    for _ in range(2):
        with exclusive(path), pytest.raises(DatabaseError) as caught, exclusive(path):
            pass
        assert f"in use by another persona server (process {os.getpid()})" in str(caught.value)
    with exclusive(path), exclusive(tmp_path / "q.db"):
        pass
    assert list(tmp_path.iterdir()) == []


def test_it_goes_with_the_process_however_that_ends(tmp_path: Path) -> None:
    holding = f"""
        import os
        from pathlib import Path
        from persona.storage.lock import exclusive
        with exclusive(Path({str(tmp_path / "p.db")!r})):
            print("held", flush=True)
            input()
    """
    command = [sys.executable, "-c", textwrap.dedent(holding)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"held\n"
        with pytest.raises(DatabaseError, match=f"process {child.pid}"), exclusive(tmp_path / "p.db"):
            pass
        child.kill()
    with exclusive(tmp_path / "p.db"):
        pass


def test_a_lock_whose_file_its_holder_took_away_is_not_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its last holder ends between our opening the file and our locking it."""
    first = exclusive(tmp_path / "p.db")
    first.__enter__()
    flock, opened = lock.fcntl.flock, []

    def let_it_end_first(fd: int, operation: int) -> None:
        if not opened:
            first.__exit__(None, None, None)
        opened.append(fd)
        flock(fd, operation)

    monkeypatch.setattr(lock.fcntl, "flock", let_it_end_first)
    with exclusive(tmp_path / "p.db"):
        assert len(opened) == 2
        with pytest.raises(DatabaseError), exclusive(tmp_path / "p.db"):
            pass


async def test_a_database_is_open_in_one_server_at_a_time(tmp_path: Path) -> None:
    with trio.fail_after(20):
        async with open_database(tmp_path / "p.db"):
            with pytest.raises(DatabaseError, match="another persona server"):
                async with open_database(tmp_path / "p.db"):
                    pass
        async with open_database(tmp_path / "p.db"):
            pass
