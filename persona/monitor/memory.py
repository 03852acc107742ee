"""What happens when memory runs short.

Above the soft mark caches are emptied, once, and new connections are refused; above the hard mark
connections are shed until memory is below the soft mark again.
"""

from collections.abc import Callable

import structlog

from persona.metrics import Metrics

log = structlog.get_logger()

SHED_PER_SAMPLE = 25
"""Connections shed at a time: memory is given back with a delay, and shedding all at once would
cut many more than need be."""
MEGABYTE = 1_000_000


class MemoryGuard:
    """`look` is to be called every now and then; `has_memory` is what the listener asks."""

    def __init__(
        self,
        *,
        soft_limit_mb: float,
        hard_limit_mb: float,
        resident_bytes: Callable[[], int],
        shed: Callable[[int], int],
        drop_caches: Callable[[], object],
        metrics: Metrics,
    ) -> None:
        self._soft_bytes = soft_limit_mb * MEGABYTE
        self._hard_bytes = hard_limit_mb * MEGABYTE
        self._resident_bytes = resident_bytes
        self._shed = shed
        self._drop_caches = drop_caches
        self._metrics = metrics
        self._short_of_memory = False
        self._shedding = False

    def has_memory(self) -> bool:
        """Whether new connections may be let in."""
        return not self._short_of_memory

    def look(self) -> int | None:
        """Look once, and act on it. The resident set size in bytes, if it can be had."""
        try:
            resident = self._resident_bytes()
        except OSError as exc:
            # To look takes a descriptor. That there is none left is no reason to take the server down.
            log.warning("memory_unknown", error=exc.strerror)
            return None
        self._metrics.memory_bytes.set(resident)
        short = 0 < self._soft_bytes < resident
        if short != self._short_of_memory:
            self._short_of_memory = short
            log.warning("memory_short" if short else "memory_recovered", resident_mb=resident // MEGABYTE)
            if short:
                # Not at each look: what was just emptied would be filled again by those who are served.
                self._metrics.caches_dropped.inc()
                self._drop_caches()
        if 0 < self._hard_bytes < resident:
            self._shedding = True
        elif not short:
            self._shedding = False
        if self._shedding:
            count = self._shed(SHED_PER_SAMPLE)
            log.warning("connections_shed", count=count, resident_mb=resident // MEGABYTE)
        return resident
