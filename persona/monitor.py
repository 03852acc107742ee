"""The monitor task: looks at memory and the event loop once a second, and sheds load.

It knows no services: `app` hands it functions to sample and to act with. Above the soft mark new
connections are refused; above the hard mark connections are shed until memory is below the soft
mark again.
"""

from collections.abc import Callable

import structlog
import trio

from persona.metrics import Metrics

log = structlog.get_logger()

SAMPLE_INTERVAL_S = 1.0
SHED_PER_SAMPLE = 25
"""Connections shed at a time: memory is given back with a delay, and shedding all at once would
cut many more than need be."""
MEGABYTE = 1_000_000


class Monitor:
    """`run` is the service; `has_memory` is what the listener asks."""

    def __init__(
        self,
        *,
        soft_limit_mb: float,
        hard_limit_mb: float,
        resident_bytes: Callable[[], int],
        shed: Callable[[int], int],
        metrics: Metrics,
    ) -> None:
        self._soft_bytes = soft_limit_mb * MEGABYTE
        self._hard_bytes = hard_limit_mb * MEGABYTE
        self._resident_bytes = resident_bytes
        self._shed = shed
        self._metrics = metrics
        self._short_of_memory = False
        self._shedding = False

    def has_memory(self) -> bool:
        """Whether new connections may be let in."""
        return not self._short_of_memory

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Sample until cancelled."""
        self.sample()
        task_status.started()
        while True:
            due = trio.current_time() + SAMPLE_INTERVAL_S
            await trio.sleep_until(due)
            self._metrics.loop_lag_seconds.set(max(0.0, trio.current_time() - due))
            self.sample()

    def sample(self) -> None:
        """Look once, and act on it."""
        try:
            resident = self._resident_bytes()
        except OSError as exc:
            # To look takes a descriptor. That there is none left is no reason to take the server down.
            log.warning("memory_unknown", error=exc.strerror)
            return
        self._metrics.memory_bytes.set(resident)
        short = 0 < self._soft_bytes < resident
        if short != self._short_of_memory:
            self._short_of_memory = short
            log.warning("memory_short" if short else "memory_recovered", resident_mb=resident // MEGABYTE)
        if 0 < self._hard_bytes < resident:
            self._shedding = True
        elif not short:
            self._shedding = False
        if self._shedding:
            count = self._shed(SHED_PER_SAMPLE)
            log.warning("connections_shed", count=count, resident_mb=resident // MEGABYTE)
