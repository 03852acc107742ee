"""`persona serve` in a process of its own, to be killed, stopped and talked to."""

import contextlib
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import attrs
import trio

QUICK = {
    "PERSONA_LLM_SCRIPTED_FIRST_TOKEN_S": "0",
    "PERSONA_LLM_SCRIPTED_TOKENS_PER_S": "0",
    "PERSONA_LIMITS_RATE_LIMIT_PER_MINUTE": "0",
    "PERSONA_PERSONAS_RECOVERY_S": "0",
}
STREAMING = {
    **QUICK,
    "PERSONA_LLM_SCRIPTED_FIRST_TOKEN_S": "0.02",
    "PERSONA_LLM_SCRIPTED_TOKENS_PER_S": "100",
}
START_WITHIN_S = 20.0


@attrs.define
class ServerProcess:
    """A server of its own process. `stdout` is all it wrote there, complete once it has ended."""

    process: trio.Process
    url: str = ""
    stdout: str = ""
    _stdout_read: trio.Event = attrs.field(factory=trio.Event)

    async def read_stdout(self, *, task_status: trio.TaskStatus[None]) -> None:  # noqa: ASYNC114
        assert self.process.stdout is not None
        with trio.fail_after(START_WITHIN_S):
            while "\n" not in self.stdout:
                data = await self.process.stdout.receive_some()
                assert data, f"the server ended with {await self.process.wait()}, saying {self.stdout!r}"
                self.stdout += data.decode()
        # The pages, where there are any, are on the second line.
        self.url = self.stdout.partition("\n")[0].split()[-1]
        task_status.started()
        async for data in self.process.stdout:
            self.stdout += data.decode()
        self._stdout_read.set()

    async def ended(self, *, within_s: float = 10.0) -> int:
        """Its exit status."""
        with trio.fail_after(within_s):
            status = await self.process.wait()
            await self._stdout_read.wait()
        return status


@contextlib.asynccontextmanager
async def server_process(
    folder: Path, *, through: Sequence[str] = (), **variables: str
) -> AsyncIterator[ServerProcess]:
    """`persona serve` on `folder`'s database, listening; killed at the end if it still runs.

    `through` is what its command begins with.
    """
    environ = {name: value for name, value in os.environ.items() if not name.startswith("PERSONA_")}
    command = [*through, sys.executable, "-m", "persona", "serve", "--port", "0", "--llm", "scripted"]
    with (folder / "server.log").open("ab") as log:
        process = await trio.lowlevel.open_process(
            [*command, "--db", str(folder / "p.db"), "--log-format", "json"],
            stdout=subprocess.PIPE,
            stderr=log,
            cwd=folder,
            # Servers of several tests would meet on the HTTP port.
            env={**environ, "PERSONA_SERVER_HTTP_PORT": "0", **variables},
        )
    server = ServerProcess(process)
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.read_stdout)
            try:
                yield server
            finally:
                process.kill()
    finally:
        with trio.CancelScope(shield=True, deadline=trio.current_time() + 10):
            process.kill()
            await process.wait()
            assert process.stdout is not None
            await process.stdout.aclose()
