"""A circuit breaker before a model server: one that does not answer is left alone for a while.

States, and what leads from one to the next:

* `closed`: the server is asked. After so many failures in a row, whichever requests they belong to, the
  circuit opens; one answer in between, and the count begins anew.
* `open`: nobody asks; requests fail at once and are told when to come back. After `open_s` the circuit
  is half open. The time doubles with each probe that fails, up to `MAX_OPEN_S`, and is `open_s` again
  once the circuit was closed. Where the server itself asked for more time, it gets that, up to
  `MAX_OPEN_S`.
* `half_open`: the next request is the probe; all others fail at once meanwhile. Where the server answers
  it, the circuit closes; where it fails, or is silent until its caller's patience with a silent model is
  out, the circuit opens again; where it was cancelled before that, the next request is the probe.

Only what says that nobody can be served is a failure (`LLMUnavailable.is_transient`). An answer that is an
error of another kind is an answer: one client that asks for a model that is not there must not cut off the
others.

The pattern is Michael Nygard's ("Release It!", chapter "Stability Patterns"). The probe is a client's own
request and not one for the list of models, which a server may well answer that cannot load any of them.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal

import structlog
import trio

from persona.errors import LLMUnavailable
from persona.metrics import Metrics

log = structlog.get_logger()

State = Literal["closed", "half_open", "open"]
STATES: tuple[State, ...] = ("closed", "half_open", "open")
"""In the order of the numbers that the gauge shows."""
MAX_OPEN_S = 60.0
"""A server that is back should not wait longer than a minute until somebody notices."""
PROBE_RETRY_AFTER_S = 1.0
"""When to come back while a probe is under way, at least: its first token decides, which takes a moment. One
that has taken longer is guessed to take as long again."""
HUNG_SHARE = 0.95
"""Of the patience with a silent model: a probe that was cancelled after that did hang. Its caller counts from
a little earlier."""


class CircuitBreaker:
    """One server's circuit. Single-threaded: every method runs in the event loop.

    `failures` is how many in a row open it. `open_s` counts on trio's clock, and so does `patience_s`, after
    which callers cancel a request to which there is no answer; `now` gives the wall-clock time, in seconds
    since the epoch, for `since`.
    """

    def __init__(
        self,
        *,
        failures: int,
        open_s: float,
        patience_s: float,
        metrics: Metrics,
        now: Callable[[], float],
    ) -> None:
        self._max_failures = failures
        self._patience_s = patience_s
        self._first_open_s = self._open_s = open_s
        self._metrics = metrics
        self._now = now
        self._state: State = "closed"
        self._since = now()
        self._failures = 0
        self._problem = ""
        self._open_until = 0.0
        self._probe_began_at: float | None = None
        # Tells attempts that began in the present state from those that began in an earlier one.
        self._changes = 0

    @property
    def state(self) -> State:
        """The state as of now."""
        if self._state == "open" and (late_s := trio.current_time() - self._open_until) >= 0:
            self._become("half_open")
            # Since its time was up, not since somebody looked: that would be the caller's doing.
            self._since -= late_s
        return self._state

    @property
    def since(self) -> float:
        """When it came into that state, in seconds since the epoch."""
        return self._since

    @property
    def is_refusing(self) -> bool:
        """Whether a request now would be refused."""
        state = self.state
        return state == "open" or (state == "half_open" and self._probe_began_at is not None)

    def check(self) -> None:
        """Raise `LLMUnavailable`, with the time to come back, where a request now would be in vain."""
        if not self.is_refusing:
            return
        self._metrics.llm_refused.labels("circuit").inc()
        raise LLMUnavailable(
            f"The model is given a rest after {self._failures} failures in a row. The last was: "
            f"{self._problem}",
            retry_after_s=self._retry_after_s(),
        )

    @contextmanager
    def attempt(self) -> Iterator[None]:
        """Around one request to the server, up to the first sign of an answer.

        A body that ends is an answer, one that raises `LLMUnavailable` is a failure or an answer; any other
        exception, `Cancelled` above all, says nothing of the server, unless a probe hung before it. Raises as
        `check` does.
        """
        self.check()
        is_probe = self._state == "half_open"
        begun_at, begun_in = trio.current_time(), self._changes
        if is_probe:
            self._probe_began_at = begun_at
        try:
            yield
        except LLMUnavailable as exc:
            if begun_in == self._changes:
                self._judge(exc if exc.is_transient else None)
            raise
        except BaseException:
            # Not `except Cancelled`: a backend's nursery wraps it in a group.
            silent_s = trio.current_time() - begun_at
            if is_probe and silent_s >= self._patience_s * HUNG_SHARE:
                self._judge(LLMUnavailable.transient(f"the model was silent for {round(silent_s, 1):g} s"))
            raise
        else:
            if begun_in == self._changes:
                self._judge(None)
        finally:
            if is_probe:
                self._probe_began_at = None

    def _retry_after_s(self) -> float:
        now = trio.current_time()
        if self._probe_began_at is None:
            return self._open_until - now
        taken_s = now - self._probe_began_at
        return max(PROBE_RETRY_AFTER_S, min(taken_s, self._patience_s - taken_s))

    def _judge(self, failure: LLMUnavailable | None) -> None:
        if failure is None:
            self._failures = 0
            if self._state != "closed":
                self._open_s = self._first_open_s
                self._become("closed")
            return
        self._failures += 1
        self._problem = failure.message
        if self._state == "half_open":
            self._open_s = min(2 * self._open_s, max(MAX_OPEN_S, self._first_open_s))
        elif self._failures < self._max_failures:
            return
        open_s = max(self._open_s, min(failure.retry_after_s or 0.0, MAX_OPEN_S))
        self._open_until = trio.current_time() + open_s
        self._become("open", failures=self._failures, problem=self._problem, probe_after_s=open_s)

    def _become(self, state: State, **details: object) -> None:
        self._state = state
        self._since = self._now()
        self._changes += 1
        self._metrics.llm_circuit_state.set(STATES.index(state))
        self._metrics.llm_circuit_changes.labels(state).inc()
        (log.warning if state == "open" else log.info)(f"llm_circuit_{state}", **details)
