"""A backup taken from a running server, and a server brought back from it, as the operator's page says."""

import os
import shutil
import signal
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio

from persona.client import open_client
from tests.e2e.process import QUICK, server_process


async def persona(*arguments: str) -> str:
    """What the command says; it must succeed."""
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PERSONA_")}
    done = await trio.run_process(
        [sys.executable, "-m", "persona", *arguments],
        env=environ,
        capture_stdout=True,
        capture_stderr=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, b"")
    return done.stdout.decode()


def put_in_place(backup: Path, database: Path) -> None:
    """By hand: nothing of the old database stays, above all not its log."""
    for suffix in ("", "-wal", "-shm", "-lock"):
        database.with_name(database.name + suffix).unlink(missing_ok=True)
    shutil.copy(backup, database)


async def restored(folder: Path, backup: Path) -> None:
    put_in_place(backup, folder / "p.db")


async def restored_by_command(folder: Path, backup: Path) -> None:
    for suffix in ("-wal", "-shm"):
        (folder / f"p.db{suffix}").unlink(missing_ok=True)
    await persona("backup", "--db", str(backup), "--force", str(folder / "p.db"))


@pytest.mark.parametrize(
    ("number", "restore"), [(signal.SIGTERM, restored), (signal.SIGKILL, restored_by_command)]
)
async def test_a_server_comes_back_as_it_was_when_the_backup_was_taken(
    tmp_path: Path, number: signal.Signals, restore: Callable[[Path, Path], Awaitable[None]]
) -> None:
    database, backup = tmp_path / "p.db", tmp_path / "b.db"
    with trio.fail_after(60):
        async with server_process(tmp_path, **QUICK) as server, open_client(server.url) as client:
            conversation_id = (await client.switch("aria")).conversation_id
            await client.chat("Before the backup")
            assert ": sound; " in await persona("check", "--db", str(database))
            assert "2 turns" in await persona("backup", "--db", str(database), str(backup))
            await client.chat("After the backup")
            server.process.send_signal(number)
            await server.ended()
        await restore(tmp_path, backup)
        assert "2 turns" in await persona("check", "--db", str(database))
        async with server_process(tmp_path, **QUICK) as server, open_client(server.url) as client:
            turns = (await client.history(conversation_id=conversation_id)).turns
            assert [turn.content for turn in turns][:1] == ["Before the backup"]
            assert len(turns) == 2
            await client.chat("Life goes on", conversation_id=conversation_id)
            assert len((await client.history(conversation_id=conversation_id)).turns) == 4
    assert "Traceback" not in (tmp_path / "server.log").read_text()
