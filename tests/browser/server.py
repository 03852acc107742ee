"""`persona serve` with its pages, in a process of its own that can stop and start again on the same ports."""

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import attrs
import orjson
from websockets.sync.client import connect

from tests.serving import free_ports

START_WITHIN_S = 30.0
STOP_WITHIN_S = 20.0
CALL_WITHIN_S = 20.0


@attrs.define
class PageServer:
    """A server and where it is; `variables` are its settings, as environment names."""

    folder: Path
    variables: dict[str, str]
    ports: list[int] = attrs.field(factory=lambda: free_ports(2))
    _process: "subprocess.Popen[str] | None" = None

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.ports[0]}/mcp"

    @property
    def pages(self) -> str:
        return f"http://127.0.0.1:{self.ports[1]}"

    def start(self) -> None:
        """Returns once both ports answer."""
        environ = {name: value for name, value in os.environ.items() if not name.startswith("PERSONA_")}
        command = [
            *(sys.executable, "-m", "persona", "serve", "--log-format", "json", "--db", "p.db"),
            *("--port", str(self.ports[0]), "--http-port", str(self.ports[1])),
        ]
        with (self.folder / "server.log").open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                cwd=self.folder,
                env={**environ, "PERSONA_LLM_BACKEND": "scripted", **self.variables},
            )
        assert self._process.stdout is not None
        lines = [self._process.stdout.readline() for _ in range(2)]
        assert lines == [f"listening on {self.url}\n", f"listening on {self.pages}/\n"], self.log()

    def stop(self, *, signal_number: int = signal.SIGTERM) -> None:
        """As an operator does, or, with `SIGKILL`, as a power cut does."""
        if self._process is None:
            return
        self._process.send_signal(signal_number)
        try:
            self._process.wait(STOP_WITHIN_S)
        finally:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
            self._process = None

    def log(self) -> str:
        return (self.folder / "server.log").read_text()

    @contextlib.contextmanager
    def connected(self, *, token: str | None = None) -> Iterator[Callable[..., Any]]:
        """A connection of its own: a function of method and params that gives the first answer's result."""
        headers = {"Authorization": f"Bearer {token}"} if token else None
        numbers = itertools.count(1)
        with connect(self.url, additional_headers=headers, proxy=None) as link:

            def call(method: str, params: Any = None) -> Any:
                request = {"jsonrpc": "2.0", "id": next(numbers), "method": method, "params": params or {}}
                link.send(orjson.dumps(request).decode())
                while (answer := orjson.loads(link.recv(CALL_WITHIN_S))).get("id") != request["id"]:
                    pass
                assert "error" not in answer, answer
                return answer["result"]

            yield call

    def call(self, method: str, params: Any = None, *, token: str | None = None) -> Any:
        """One call on a connection of its own; its result."""
        with self.connected(token=token) as call:
            return call(method, params)


@contextlib.contextmanager
def page_server(folder: Path, **variables: str) -> Iterator[PageServer]:
    """A running server; stopped at the end, and it must have nothing to complain of."""
    folder.mkdir(parents=True, exist_ok=True)
    server = PageServer(folder, variables)
    server.start()
    try:
        yield server
    finally:
        server.stop()
    assert '"level":"error"' not in server.log()


def wait_until(condition: Any, *, within_s: float = 20.0, why: str = "") -> Any:
    """What `condition` gives once that is true. For what another process does, which tells nobody."""
    deadline = time.monotonic() + within_s
    while not (found := condition()):
        assert time.monotonic() < deadline, why or "it did not come"
        time.sleep(0.05)
    return found
