"""Our own server, with the counting of calls switched off and on by SIGUSR2: what it costs is the difference.

Everything else is as `persona serve --engine sansio` has it.
"""

import os
import signal
import sys
import tempfile
from functools import partial
from pathlib import Path

import trio

from persona.app import open_listeners, open_server
from persona.config import load_settings
from persona.llm.select import open_backend
from persona.log import configure_logging
from persona.metrics import MessageFigures, Metrics
from persona.storage.pool import open_database


class Switched(MessageFigures):
    """Counts or does not. Nothing is asked when a call is counted, for that would cost, too."""

    def switch(self, *_: object) -> None:
        """From one to the other."""
        if "count_answer" in self.__dict__:
            del self.__dict__["count_answer"]
        else:
            self.__dict__["count_answer"] = _count_nothing


def _count_nothing(method: str, outcome: str, seconds: float) -> None:
    pass


async def main(port: int, database_file: Path) -> None:
    """Serve until killed."""
    configure_logging("error", "json")
    figures = Switched()
    signal.signal(signal.SIGUSR2, figures.switch)
    flags = {"server.port": port, "server.engine": "sansio", "llm.backend": "scripted"}
    settings = load_settings(file=None, environ=os.environ, flags=flags).settings
    (listener,) = await open_listeners("127.0.0.1", port)
    url = f"ws://127.0.0.1:{listener.socket.getsockname()[1]}/mcp"
    async with (
        open_database(
            database_file,
            readers=settings.database.readers,
            synchronous=settings.database.synchronous,
            busy_timeout_s=settings.database.busy_timeout_s,
            cache_pages=settings.database.cache_pages,
        ) as database,
        open_backend(settings.llm) as backend,
        open_server(
            settings,
            database=database,
            backend=backend,
            metrics=Metrics(figures),
        ) as server,
    ):
        await server.serve(
            [listener],
            stop=trio.sleep_forever,
            on_listening=partial(print, f"listening on {url}", flush=True),
        )


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        trio.run(main, int(sys.argv[1]), Path(folder) / "bench.db")
