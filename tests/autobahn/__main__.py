"""`python -m tests.autobahn WSTEST FOLDER`: the verdict of Autobahn's fuzzing client on both engines."""

import logging
import sys
from contextlib import AsyncExitStack
from pathlib import Path

import structlog
import trio

from tests.autobahn.client import ClientFailed, run_client
from tests.autobahn.echo import open_echo
from tests.autobahn.report import is_good, judge, lines

ENGINES = ("trio-websocket", "sansio")
LIMIT_S = 300.0
"""For the whole run, which takes some 20 s where nothing hangs."""


async def main(wstest: str, folder: Path) -> bool:
    """Print the table; whether it is good."""
    async with AsyncExitStack() as stack:
        urls = {engine: await stack.enter_async_context(open_echo(engine)) for engine in ENGINES}
        try:
            run = await run_client([wstest], urls, folder, limit_s=LIMIT_S)
        except ClientFailed as exc:
            print(exc)
            return False
    verdicts = {engine: judge(run.seen.get(engine, {}), run.cases) for engine in ENGINES}
    print("\n".join(lines(verdicts)))
    return all(map(is_good, verdicts.values()))


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    sys.exit(not trio.run(main, sys.argv[1], Path(sys.argv[2])))
