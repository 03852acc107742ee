"""Whether the model answers, asked now and then, so that it is known before somebody chats."""

import structlog
import trio

from persona.errors import LLMUnavailable
from persona.llm.backend import Backend

log = structlog.get_logger()

FIRST_AFTER_S = 5.0
"""Before the first question. At a start there is enough to do, and `auto` has just asked."""
WATCH_INTERVAL_S = 10.0
"""Between two questions. To list models costs a model's server next to nothing, and an operator hears
within half a minute that it is gone."""
ANSWER_TIMEOUT_S = 2.0
"""For one answer: many times what a busy server needs to list its models."""
DOWN_AFTER = 2
"""Questions running that go unanswered before the model counts as down: one may be lost to a restart."""


class ModelWatch:
    """`run` is the service."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._missed = 0
        self.available: bool | None = None
        """`None` until it is known."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask until cancelled."""
        task_status.started()
        await trio.sleep(FIRST_AFTER_S)
        while True:
            if await self._answers():
                self._missed, self.available = 0, True
            else:
                self._missed += 1
                if self._missed >= DOWN_AFTER:
                    self.available = False
            await trio.sleep(WATCH_INTERVAL_S)

    async def _answers(self) -> bool:
        with trio.move_on_after(ANSWER_TIMEOUT_S):
            try:
                await self._backend.models()
            except LLMUnavailable:
                return False
            except Exception:  # the boundary to the backend: a bug in it is no reason to stop watching
                log.exception("model_watch_failed")
                return False
            return True
        return False
