"""What is logged of calls: each at debug, slow ones as warnings. What they were and what became of them,
never what was said."""

import math
from collections.abc import Callable

import structlog

from persona.metrics import Metrics
from persona.rpc import jsonrpc

log = structlog.get_logger()

LOGGED_ID_CHARS = 64
"""What the log shows of a request's id, which is the client's choice and may be as long as a message."""


class RequestLog:
    """With `logs_all` each call is logged. One that took longer than `slow_after_s` (0 is off) is logged as a
    warning and counted, unless its method `waits_for_model`, which takes what the model takes."""

    def __init__(
        self,
        metrics: Metrics,
        *,
        waits_for_model: Callable[[str], bool],
        logs_all: bool,
        slow_after_s: float,
    ) -> None:
        self._metrics = metrics
        self._waits_for_model = waits_for_model
        self._logs_all = logs_all
        self._slow_after_s = slow_after_s or math.inf
        self.noted_after_s = 0.0 if logs_all else self._slow_after_s
        """Calls that took no longer need not be noted. Known in advance: only to ask structlog whether it
        would log costs a tenth of a ping."""

    def note(self, label: str, outcome: str, seconds: float, request_id: jsonrpc.Id) -> None:
        """Log a call of the method `label`, if it is one to be logged."""
        is_slow = seconds > self._slow_after_s and not self._waits_for_model(label)
        if is_slow:
            self._metrics.slow_requests.labels(label).inc()
        if is_slow or self._logs_all:
            said = log.warning if is_slow else log.debug
            said(
                "slow_request" if is_slow else "request",
                method=label,
                outcome=outcome,
                request=shown(request_id),
                seconds=round(seconds, 6),
            )


def shown(request_id: jsonrpc.Id) -> str | int | None:
    """A request's id as the log shows it."""
    return request_id[:LOGGED_ID_CHARS] if isinstance(request_id, str) else request_id
