"""Whether the model answers, asked now and then, so that it is known before somebody chats.

There is one question under way at a time, whoever wants to know: to a server that hangs, a hundred clients
who ask for its models are one request, and each of them hears within `ANSWER_TIMEOUT_S` that it hangs.
"""

import attrs
import trio

from persona.errors import LLMUnavailable, PersonaError
from persona.llm.backend import Backend
from persona.log import internal_error

FIRST_AFTER_S = 5.0
"""Before the first question. At a start there is enough to do, and `auto` has just asked."""
WATCH_INTERVAL_S = 10.0
"""Between two questions. To list models costs a model's server next to nothing, and an operator hears
within half a minute that it is gone."""
ANSWER_TIMEOUT_S = 2.0
"""For one answer: many times what a busy server needs to list its models."""
DOWN_AFTER = 2
"""Questions running that go unanswered before the model counts as down: one may be lost to a restart."""


@attrs.define(eq=False)
class _Question:
    """What models there are, and what came of asking."""

    names: tuple[str, ...] = ()
    failure: PersonaError | None = None
    is_answered: trio.Event = attrs.field(factory=trio.Event)


class ModelWatch:
    """`run` is the service, and asks; without it nobody is answered."""

    def __init__(self, backend: Backend) -> None:
        self._backend = backend
        self._missed = 0
        self._question: _Question | None = None
        self._wanted = trio.Event()
        self.answered: bool | None = None
        """Whether it answered when last asked; `None` before that."""
        self.available: bool | None = None
        """The same, but down only after `DOWN_AFTER` questions in vain; `None` until it is known."""

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask until cancelled."""
        task_status.started()
        due_at = trio.current_time() + FIRST_AFTER_S
        while True:
            with trio.move_on_at(due_at):
                await self._wanted.wait()
            question = self._question = self._question or _Question()
            await self._ask(question)
            self.answered = question.failure is None
            if self.answered:
                self._missed, self.available = 0, True
            # Questions of clients may follow one another at once, and then say no more than one.
            if trio.current_time() >= due_at:
                self._missed += not self.answered
                if self._missed >= DOWN_AFTER:
                    self.available = False
                due_at = trio.current_time() + WATCH_INTERVAL_S
            self._question, self._wanted = None, trio.Event()
            question.is_answered.set()

    async def models(self) -> tuple[str, ...]:
        """The names of the models there are, from the question under way if there is one.

        Raises `LLMUnavailable`, after `ANSWER_TIMEOUT_S` where there is no answer, and `InternalError`.
        Cancelling is safe; whoever else waits for the answer gets it.
        """
        question = self._question
        if question is None:
            question = self._question = _Question()
            self._wanted.set()
        await question.is_answered.wait()
        if question.failure is not None:
            raise question.failure
        return question.names

    async def _ask(self, question: _Question) -> None:
        with trio.move_on_after(ANSWER_TIMEOUT_S) as patience:
            try:
                question.names = await self._backend.models()
            except LLMUnavailable as exc:
                question.failure = exc
            except Exception as exc:  # noqa: BLE001 - the boundary to the backend: a bug ends no watching
                question.failure = internal_error(exc, where="model watch")
        if patience.cancelled_caught:
            question.failure = LLMUnavailable(f"the model did not list its models in {ANSWER_TIMEOUT_S:g} s")
