"""How long a model may be silent: before its first token, and between any two."""

from types import TracebackType

import trio

from persona.errors import LLMUnavailable

STEP = 0.01
"""Share of the patience that it may run out early."""
RETRY_AFTER_S = 5.0


class Patience:
    """Around an answer, and told of each of its pieces. One bound for the first token and for every silence
    after it: a model that stalls in the middle holds its slot no longer than one that never begins.

    Raises `LLMUnavailable` once there was nothing to hear for `seconds`. Not a generator: `contextlib` would
    let the cancellation know itself, and with it all of the turn until the garbage collector comes.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._heard_at = 0.0
        self._scope = trio.CancelScope()

    def heard(self) -> None:
        """The model has said something."""
        now = trio.current_time()
        # To move a deadline for each token costs more than to send it.
        if now - self._heard_at >= self._seconds * STEP:
            self._heard_at = now
            self._scope.deadline = now + self._seconds

    def __enter__(self) -> "Patience":
        self._heard_at = trio.current_time()
        self._scope.deadline = self._heard_at + self._seconds
        self._scope.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> bool:
        is_caught = self._scope.__exit__(kind, exc, tb)
        if self._scope.cancelled_caught:
            what = f"the model was silent for {self._seconds:g} s"
            raise LLMUnavailable(what, retry_after_s=RETRY_AFTER_S) from None
        return is_caught
