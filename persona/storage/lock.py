"""One server to a database: a lock in a file beside it, held while the database is open.

SQLite's own locks let several programs write in turn. A server serves personas from memory, so a
second one would change them behind its back; and older SQLites can be corrupted by two writers. Not a
lock on the database file itself: on some systems it would meet SQLite's.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from persona.errors import DatabaseError


@contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Hold the database at `path` until the block is left; however the process ends, the lock goes
    with it.

    Raises `DatabaseError` when another server holds it, and `OSError`.
    """
    beside = path.with_name(f"{path.name}-lock")
    fd = _take(beside, path)
    try:
        yield
    finally:
        # While it is held: who opens it meanwhile will find that it is not this file any more.
        beside.unlink(missing_ok=True)
        os.close(fd)


def _take(beside: Path, path: Path) -> int:
    while True:
        fd = os.open(beside, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_still(beside, fd):
                os.ftruncate(fd, 0)
                os.write(fd, b"%d\n" % os.getpid())
                return fd
        except BlockingIOError:
            holder = os.read(fd, 20).decode("ascii", "replace").strip()
            os.close(fd)
            by = f" (process {holder})" if holder.isdecimal() else ""
            raise DatabaseError(
                f"{path}: in use by another persona server{by}; stop that one or name another file"
            ) from None
        except BaseException:
            os.close(fd)
            raise
        os.close(fd)


def _is_still(beside: Path, fd: int) -> bool:
    """Whether the file is the one that was opened: its last holder may have removed it in between."""
    try:
        return os.path.samestat(beside.stat(), os.fstat(fd))
    except FileNotFoundError:
        return False
