"""Closed-loop load: each connection asks, waits for the answer, and asks again.

What the figures mean:

* The clock starts when every connection is open or has failed. Warm-up requests are made and
  checked like any other; only those that start after the warm-up give a latency.
* A request that starts before the end is waited for and counted, however late its answer: leaving
  out what was in flight would leave out the slowest.
* The rate counts the answers that arrive between the warm-up and the end, and nothing else.
* A failed request is counted by kind, in the warm-up too, and never gives a latency.
* A closed loop asks less of a server that slows down, so the waiting that independent users would
  have met is not in its percentiles (coordinated omission). It compares two builds; it does not
  promise a latency at an arrival rate.
"""

import itertools
import math
import time
from array import array
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from typing import Any, Protocol

import attrs
import trio

from loadgen.workload import Workload
from persona.client import ClientError, ConnectFailed, ConnectionLost, RemoteError, UnexpectedAnswer

MAX_CONNECTING = 32
"""Handshakes under way at once: a load run is no test of the listener's backlog."""
ERROR_PAUSE_S = 0.1
"""Pause after a failure that names no time to come back: refusals come fast, and a loop of them
would take the processor from the requests that are measured."""


class LoadClient(Protocol):
    """What the driver needs of `persona.client.Client`."""

    async def call(self, method: str, params: Mapping[str, Any] | None = None) -> Any:
        """Call a method and return its result."""
        ...


ClientFactory = Callable[[], AbstractAsyncContextManager[LoadClient]]


@attrs.frozen(kw_only=True)
class Plan:
    """How much, and for how long. A run lasts at most warm-up + duration + one timeout."""

    connections: int
    duration_s: float
    warmup_s: float = 0.0
    timeout_s: float = 60.0
    """After this long an unanswered request is an error, and its connection asks the next."""


@attrs.define
class Report:
    """What a run saw."""

    connected: int = 0
    connect_failures: Counter[str] = attrs.field(factory=Counter)
    latencies_s: "array[float]" = attrs.field(factory=lambda: array("d"))
    """Of right answers to requests that started after the warm-up, in order of arrival."""
    answered_in_time: int = 0
    """Right answers that arrived between the warm-up and the end."""
    errors: Counter[str] = attrs.field(factory=Counter)
    measured_s: float = 0.0
    """Between the warm-up and the end; less than planned when every connection ended sooner."""
    cpu_s: float = 0.0
    """Processor time this process used meanwhile."""

    @property
    def requests_per_s(self) -> float:
        """Right answers a second."""
        return self.answered_in_time / self.measured_s if self.measured_s else 0.0

    @property
    def cpu_share(self) -> float:
        """Of one core; near 1 the figures are the load generator's, not the server's."""
        return self.cpu_s / self.measured_s if self.measured_s else 0.0

    @property
    def is_clean(self) -> bool:
        """Every connection opened, nothing failed, and there is something to show."""
        return bool(self.latencies_s) and not self.errors and not self.connect_failures

    def percentiles_s(self, *quantiles: float) -> list[float]:
        """Latencies by nearest rank: a value that was measured, never one in between. 0 < quantile <= 1;
        needs one latency at least."""
        ordered = sorted(self.latencies_s)
        return [ordered[math.ceil(quantile * len(ordered)) - 1] for quantile in quantiles]


async def run(plan: Plan, workload: Workload, open_client: ClientFactory) -> Report:
    """Drive `plan.connections` clients. Failures are in the report; cancelling is safe."""
    driver = _Driver(plan, workload, open_client)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(driver.keep_time)
        async with trio.open_nursery() as connections:
            for index in range(plan.connections):
                connections.start_soon(driver.connection, index)
        nursery.cancel_scope.cancel()
    return driver.report


class _Driver:
    def __init__(self, plan: Plan, workload: Workload, open_client: ClientFactory) -> None:
        self.report = Report()
        self._plan = plan
        self._workload = workload
        self._open_client = open_client
        self._connecting = trio.CapacityLimiter(MAX_CONNECTING)
        self._unsettled = plan.connections
        self._start = trio.Event()
        self._measure_from = self._end = math.inf

    async def keep_time(self) -> None:
        """Measure this process beside the requests."""
        await self._start.wait()
        await trio.sleep_until(self._measure_from)
        cpu_s = time.process_time()
        try:
            await trio.sleep_until(self._end)
        finally:
            self.report.cpu_s = time.process_time() - cpu_s
            self.report.measured_s = min(trio.current_time(), self._end) - self._measure_from

    async def connection(self, index: int) -> None:
        """One client, from its handshake to the end of the run."""
        async with AsyncExitStack() as stack:
            client = await self._connect(stack)
            self._unsettled -= 1
            if not self._unsettled:
                self._measure_from = trio.current_time() + self._plan.warmup_s
                self._end = self._measure_from + self._plan.duration_s
                self._start.set()
            if client is not None:
                self.report.connected += 1
                await self._start.wait()
                await self._ask(client, index)

    async def _connect(self, stack: AsyncExitStack) -> LoadClient | None:
        try:
            async with self._connecting:
                return await stack.enter_async_context(self._open_client())
        except ClientError as exc:
            self.report.connect_failures[_connect_failure(exc)] += 1
            return None

    async def _ask(self, client: LoadClient, index: int) -> None:
        for n in itertools.count():
            started = trio.current_time()
            if started >= self._end:
                return
            params = self._workload.params(index, n)
            pause_s = ERROR_PAUSE_S
            try:
                with trio.fail_after(self._plan.timeout_s):
                    answer = await client.call(self._workload.method, params)
            except trio.TooSlowError:
                kind = "timeout"
            except ConnectionLost:
                self.report.errors["connection_lost"] += 1
                return
            except RemoteError as exc:
                kind = exc.reason
                if exc.retry_after_s is not None:
                    pause_s = exc.retry_after_s
            except UnexpectedAnswer:
                kind = "unexpected_answer"
            else:
                if self._workload.is_right(params, answer):
                    self._record(started, trio.current_time())
                    continue
                kind = "wrong_answer"
            self.report.errors[kind] += 1
            await trio.sleep_until(min(trio.current_time() + pause_s, self._end))

    def _record(self, started: float, answered: float) -> None:
        if started >= self._measure_from:
            self.report.latencies_s.append(answered - started)
        if self._measure_from <= answered < self._end:
            self.report.answered_in_time += 1


def _connect_failure(exc: ClientError) -> str:
    if isinstance(exc, ConnectFailed) and exc.status is not None:
        return f"http_{exc.status}"
    return "connect_failed"
