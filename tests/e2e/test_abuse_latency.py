"""Bad clients are nobody else's problem: what others notice of them, and what memory they take.

The server is a process of its own on one core, abusers are another, and ten honest clients ask in a closed
loop. Slices with and without the abuse take turns, and the best of them count: a machine that is busy with
something else spoils some, a server that stalls spoils all.

Not among them is a flood of calls: the honest ones here ask faster than any rate that would stop it.
"""

import math
import statistics
import subprocess
import sys
import time
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs
import pytest

from loadgen.servers import ServerProcess, running
from loadgen.wire import connected, ping_loop
from tests.e2e.abusers import ABUSES
from tests.e2e.siege import ENGINES

CLIENTS = 10
SLICE_S = 0.5
ROUNDS, ROUNDS_OF_THE_DEAREST = 3, 8
MOST_ROUNDS = 12
"""As many more as it takes, while the machine is busy with something else."""
FLOOR_S = 0.010
"""A p99 below this is good whatever it was before: a turn on a shared core takes as long."""
STALL_S = 0.025
"""The same for the p99 of time; half of the shortest stall that is to be seen."""
GROWTH_BYTES = 54_000_000
"""What an abuse may add to the server's memory, however often it comes. The dearest are ten clients that do
not read, each with an outbox of 1 MiB and three times 64 KiB being read and written, and 600 half-open
sockets of some 10 kB; four times that, since memory that was freed in pieces is not at once given back. What
ten such clients ask for in all, a server that kept it would show as 150 MB."""


def p99(latencies: "array[float]") -> float:
    """Of the requests."""
    return statistics.quantiles(latencies, n=100)[98]


def p99_of_time(latencies: "array[float]") -> float:
    """What a request would meet that comes at any moment. A closed loop asks little while the server
    stalls, so one stall of 50 ms a slice is not in `p99`; it is a tenth of the slice."""
    left = sum(latencies) * 0.01
    for latency in sorted(latencies, reverse=True):
        left -= latency
        if left <= 0:
            return latency
    return math.nan


@contextmanager
def under(abuse: str, port: int) -> Iterator[None]:
    """For the body's length the abuse goes on, and stands at its worst when it begins."""
    abuser = subprocess.Popen(
        [sys.executable, "-m", "tests.e2e.abusers", abuse, str(port)],
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
    )
    assert abuser.stdout is not None
    try:
        assert abuser.stdout.readline() == b"at its worst\n"
        yield
        assert abuser.poll() is None, "the abuser gave up"
    finally:
        abuser.kill()
        abuser.wait()
        abuser.stdout.close()


def descriptors_back(server: ServerProcess, before: int) -> None:
    """Waits until the server holds no more than `before` the abuse."""
    until = time.monotonic() + 15
    while server.descriptors() > before and time.monotonic() < until:
        time.sleep(0.02)
    assert server.descriptors() == before


@attrs.define
class Best:
    """The lowest p99 of any slice, of requests and of time."""

    p99_s: float = math.inf
    p99_of_time_s: float = math.inf

    def take(self, latencies: "array[float]") -> None:
        self.p99_s = min(self.p99_s, p99(latencies))
        self.p99_of_time_s = min(self.p99_of_time_s, p99_of_time(latencies))

    def is_hardly_worse_than(self, calm: "Best") -> bool:
        return self.p99_s <= max(2 * calm.p99_s, FLOOR_S) and self.p99_of_time_s <= max(
            2 * calm.p99_of_time_s, STALL_S
        )


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("abuse", sorted(ABUSES.keys() - {"message_flood"}))
def test_honest_clients_hardly_notice(abuse: str, engine: str) -> None:
    with running(engine) as server, connected(server.url, CLIENTS) as clients:
        port = int(server.url.rsplit(":", 1)[1].split("/")[0])
        ping_loop(clients, seconds=SLICE_S)
        before_bytes, before = server.resident_bytes(), server.descriptors()
        calm, loud, rounds = Best(), Best(), 0
        least = ROUNDS_OF_THE_DEAREST if abuse == "never_reads" else ROUNDS
        while rounds < least or not (loud.is_hardly_worse_than(calm) or rounds == MOST_ROUNDS):
            calm.take(ping_loop(clients, seconds=SLICE_S))
            with under(abuse, port):
                loud.take(ping_loop(clients, seconds=SLICE_S))
                assert server.resident_bytes() - before_bytes < GROWTH_BYTES
            descriptors_back(server, before)
            rounds += 1
        assert loud.is_hardly_worse_than(calm), (calm, loud)
