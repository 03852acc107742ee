"""More processes, each with its share of the users. They begin together and are added up.

Parent and worker speak in lines of JSON: the plan goes in, `ready` comes out, `go` goes in, then a line for
each second and the document at the end. A worker that breaks ends the run: half a load is another load.
What a scenario prints goes to stderr there, so that it is not taken for a line.
"""

import contextlib
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from functools import partial
from types import TracebackType
from typing import IO, Any, Self

import attrs
import orjson

from loadgen.driver import Driver, Hooks, Share
from loadgen.link import Target
from loadgen.recorder import Second
from loadgen.results import Document, added_second, measured
from loadgen.scenario import ScenarioError
from loadgen.serverwatch import ServerWatch

SILENCE_S = 300.0
"""Longer than any worker is silent: connecting, then a second at a time, then waiting for late answers."""
MAX_UNREAD = 1000
"""Lines that were read and not yet looked at; then the readers wait, and after them the workers."""


class Workers:
    """The parent's side. Leaving the context ends them all."""

    def __init__(self, plan: Mapping[str, Any], url: str, count: int) -> None:
        self._jobs = [{"plan": dict(plan), "url": url, "index": index, "of": count} for index in range(count)]
        self._processes: list[subprocess.Popen[bytes]] = []
        self._lines: queue.Queue[tuple[int, Any]] = queue.Queue(MAX_UNREAD)
        self._readers: list[threading.Thread] = []

    def __enter__(self) -> Self:
        for index, job in enumerate(self._jobs):
            process = subprocess.Popen(
                [sys.executable, "-m", "loadgen.workers"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                # Ctrl-C is the parent's, which ends them.
                start_new_session=True,
            )
            self._processes.append(process)
            assert process.stdout is not None
            reader = threading.Thread(target=self._read, args=(index, process.stdout), daemon=True)
            self._readers.append(reader)
            reader.start()
            self._tell(process, job)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
        # A reader may be at a full queue.
        while any(reader.is_alive() for reader in self._readers):
            with contextlib.suppress(queue.Empty):
                self._lines.get(timeout=0.05)
        for process in self._processes:
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()

    def run(
        self, sample_server: Callable[[], Mapping[str, float]], on_second: Callable[[Second], None]
    ) -> list[Document]:
        """Let them go together; what each saw. Raises `RuntimeError` when one breaks, and `ScenarioError`
        where it is the scenario's own code that does."""
        count = len(self._jobs)
        documents: dict[int, Document] = {}
        ready: set[int] = set()
        seconds: list[list[dict[str, Any]]] = [[] for _ in range(count)]
        shown: list[dict[str, Any]] = []
        while len(documents) < count:
            index, line = self._next()
            if "ready" in line:
                ready.add(index)
                if len(ready) == count:
                    for process in self._processes:
                        self._tell(process, "go")
            elif "second" in line:
                seconds[index].append(line["second"])
                while len(shown) < min(map(len, seconds)):
                    second = added_second([each[len(shown)] for each in seconds])
                    second["server"] = {**second["server"], **sample_server()}
                    shown.append(second)
                    on_second(Second(**second))
            elif "mistake" in line:
                raise ScenarioError(line["mistake"])
            else:
                documents[index] = line["document"]
        # Each worker keeps its own seconds; what was seen of the server goes with the first one's.
        for second, whole in zip(documents[0]["seconds"], shown, strict=False):
            second["server"] = whole["server"]
        return [documents[index] for index in range(count)]

    def _next(self) -> tuple[int, Any]:
        try:
            index, line = self._lines.get(timeout=SILENCE_S)
        except queue.Empty:
            raise RuntimeError(f"no worker said anything for {SILENCE_S:g} s") from None
        if line is None:
            raise RuntimeError(f"worker {index} broke; what it said is above")
        return index, line

    def _read(self, index: int, pipe: IO[bytes]) -> None:
        said_all = False
        for text in pipe:
            line = orjson.loads(text)
            said_all = "document" in line or "mistake" in line
            self._lines.put((index, line))
        if not said_all:
            self._lines.put((index, None))

    @staticmethod
    def _tell(process: "subprocess.Popen[bytes]", message: Any) -> None:
        assert process.stdin is not None
        # One that is gone is noticed by its reader.
        with contextlib.suppress(BrokenPipeError):
            process.stdin.write(orjson.dumps(message) + b"\n")
            process.stdin.flush()


def _say(lines: IO[bytes], message: Any) -> None:
    lines.write(orjson.dumps(message) + b"\n")
    lines.flush()


def main() -> None:
    """A worker's life."""
    lines = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    with lines:
        try:
            _work(partial(_say, lines))
        except ScenarioError as exc:
            _say(lines, {"mistake": str(exc)})


def _work(say: Callable[[Any], None]) -> None:
    # Not at the top: `run` imports this module, too.
    from loadgen.run import Plan

    job = orjson.loads(sys.stdin.buffer.readline())

    def wait_for_go() -> None:
        say({"ready": True})
        sys.stdin.buffer.readline()

    plan = Plan(**job["plan"])
    # The first one watches the server; the parent adds what it sees from outside.
    watch = ServerWatch(None) if job["index"] == 0 else None
    driver = Driver(
        plan.load(),
        Target.of(job["url"]),
        timeout_s=plan.timeout_s,
        share=Share(index=job["index"], of=job["of"]),
        token=plan.token,
        seed=plan.seed,
        hooks=Hooks(
            on_second=lambda second: say({"second": attrs.asdict(second)}),
            sample_server=watch.sample if watch else dict,
            watch_script=watch.script if watch else None,
            before_start=wait_for_go,
        ),
    )
    driver.run()
    say({"document": measured(driver)})


if __name__ == "__main__":
    main()
