"""How long a model may be silent: before its first token, and between any two."""

from collections.abc import Iterator
from contextlib import contextmanager

import trio

from persona.errors import LLMUnavailable

STEP = 0.01
"""Share of the patience that it may run out early."""
RETRY_AFTER_S = 5.0


class Patience:
    """Is told of each piece of an answer. See `patience_of`."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._heard_at = trio.current_time()
        self.scope = trio.CancelScope(deadline=self._heard_at + seconds)

    def heard(self) -> None:
        """The model has said something."""
        now = trio.current_time()
        # To move a deadline for each token costs more than to send it.
        if now - self._heard_at >= self._seconds * STEP:
            self._heard_at = now
            self.scope.deadline = now + self._seconds


@contextmanager
def patience_of(seconds: float) -> Iterator[Patience]:
    """Around an answer. One bound for the first token and for every silence after it: a model that stalls in
    the middle holds its slot no longer than one that never begins.

    Raises `LLMUnavailable` once there was nothing to hear for so long.
    """
    patience = Patience(seconds)
    with patience.scope:
        yield patience
    if patience.scope.cancelled_caught:
        raise LLMUnavailable(f"the model was silent for {seconds:g} s", retry_after_s=RETRY_AFTER_S)
