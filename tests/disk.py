"""Disks that fail when a test says so, by what the machine offers: a tmpfs, a file attribute, libfiu.

What is not offered here skips the test, saying so; from a fixture, for what an async test says of it gets
lost on the way.
"""

import contextlib
import errno
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import attrs
import pytest
import trio

needs_fiu = pytest.mark.skipif(
    shutil.which("fiu-run") is None or shutil.which("fiu-ctrl") is None,
    reason="there is no fiu-run and fiu-ctrl to inject faults with (apt-get install fiu-utils)",
)

Unwritable = Callable[..., contextlib.AbstractContextManager[None]]
"""`unwritable`, as a fixture hands it out."""

WRITE = "posix/io/rw/pwrite"
READ = "posix/io/rw/pread"
SYNC = "posix/io/sync/fdatasync"
TRUNCATE = "posix/io/rw/ftruncate"


def _run(*command: str | Path) -> str:
    """What went wrong, if anything did."""
    try:
        done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=10)
    except OSError as exc:
        return str(exc)
    return "" if done.returncode == 0 else done.stderr.strip() or f"exit status {done.returncode}"


@contextlib.contextmanager
def mounted(folder: Path, size_bytes: int) -> Iterator[None]:
    """`folder` is a file system of its own, of that size."""
    if refused := _run("mount", "-t", "tmpfs", "-o", f"size={size_bytes},mode=700", "tmpfs", folder):
        pytest.skip(f"no small disk can be mounted here: {refused}")
    try:
        yield
    finally:
        # Lazily: a server that a failed test left behind must not keep it.
        assert not _run("umount", "-l", folder)


def fill(file: Path) -> None:
    """Take all the room that is left on the disk."""
    with file.open("wb", buffering=0) as filler, pytest.raises(OSError, match="No space left"):
        while True:
            filler.write(bytes(4096))


@contextlib.contextmanager
def unwritable(*files: Path) -> Iterator[None]:
    """Nobody can write to these files, not even root, and not even who has them open already."""
    try:
        if refused := _run("chattr", "+i", *files):
            pytest.skip(f"files cannot be made immutable here: {refused}")
        yield
    finally:
        _run("chattr", "-i", *files)


def require_immutable_files(folder: Path) -> None:
    """Skip where `unwritable` does not hold for a file that is open."""
    probe = folder / "probe"
    fd = os.open(probe, os.O_CREAT | os.O_RDWR)
    try:
        with unwritable(probe), contextlib.suppress(PermissionError):
            os.write(fd, b"x")
            pytest.skip("this file system lets those who have an immutable file open go on writing to it")
    finally:
        os.close(fd)
        probe.unlink()


@attrs.frozen
class Injector:
    """Makes system calls of a process fail that was started through `command`."""

    control: Path

    @property
    def command(self) -> Sequence[str]:
        """What the process's command begins with."""
        return ("fiu-run", "-x", "-f", str(self.control))

    async def fail(self, pid: int, *names: str, error: int = errno.EIO) -> None:
        """From now on these calls of the process fail, all of them."""
        await self._tell(pid, *(f"enable name={name},failinfo={error}" for name in names))

    async def heal(self, pid: int, *names: str) -> None:
        """And from now on no longer."""
        await self._tell(pid, *(f"disable name={name}" for name in names))

    async def _tell(self, pid: int, *orders: str) -> None:
        options = [word for order in orders for word in ("-c", order)]
        with trio.fail_after(10):
            await trio.run_process(["fiu-ctrl", "-f", str(self.control), *options, str(pid)])
