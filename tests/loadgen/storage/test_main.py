"""What the command takes, and how it ends."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from loadgen.storage import __main__ as command
from loadgen.storage.job import WrongResult


def invoke(tmp_path: Path, *arguments: str) -> tuple[int, str]:
    small = ("--folder", str(tmp_path), "--turns", "2000", "--seconds", "0.1", "--rounds", "1")
    done = CliRunner().invoke(command.main, [*small, *arguments])
    return done.exit_code, done.output


def test_a_part_of_it_for_one_side(tmp_path: Path) -> None:
    code, output = invoke(tmp_path, "--only", "lone read", "--side", "ours", "--side", "bare to_thread")
    assert code == 0, output
    assert "2,000 turns, 1 rounds of 0.1 s" in output
    assert "SQLite" in output
    assert [line for line in output.splitlines() if line.startswith("#")] == ["### a lone read"]
    assert "* ours, full / bare to_thread, full: p50_ms" in output
    # Nothing is left behind.
    assert list(tmp_path.iterdir()) == []


def test_a_side_that_nobody_knows_is_a_usage_error(tmp_path: Path) -> None:
    code, output = invoke(tmp_path, "--side", "postgres")
    assert code == 2
    assert "no such side: postgres; there are aiosqlite" in output


@pytest.mark.parametrize("error", [WrongResult("1 of 2"), RuntimeError("not installed")])
def test_a_run_that_fails_ends_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(*_args: object, **_kwargs: object) -> None:
        raise error

    monkeypatch.setattr(command, "measure", fail)
    code, output = invoke(tmp_path)
    assert code == 1
    assert f"Error: appends, 100 tasks: {error}" in output


@pytest.mark.parametrize(("kind", "is_warned"), [("tmpfs", True), ("ext4", False)])
def test_a_folder_in_memory_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, is_warned: bool
) -> None:
    monkeypatch.setattr(command, "filesystem", lambda _folder: kind)
    code, output = invoke(tmp_path, "--only", "lone read", "--side", "ours")
    assert code == 0
    assert ("warning: this folder is in memory" in output) is is_warned


def test_the_file_system_is_that_of_the_innermost_mount(monkeypatch: pytest.MonkeyPatch) -> None:
    class Part:
        def __init__(self, mountpoint: str, fstype: str) -> None:
            self.mountpoint, self.fstype = mountpoint, fstype

    parts = [Part("/", "ext4"), Part("/no/such", "tmpfs"), Part("/no/such/disk", "xfs")]
    monkeypatch.setattr(command.psutil, "disk_partitions", lambda all: parts)
    found = [command.filesystem(Path(path)) for path in ("/no", "/no/such/x", "/no/such/disk/x")]
    assert found == ["ext4", "tmpfs", "xfs"]
