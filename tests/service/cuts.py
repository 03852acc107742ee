"""Ways to cut a turn: at a moment that is named, or at each of its checkpoints."""

import math
from collections.abc import Callable
from typing import Any

import attrs
import trio

from persona.errors import DeadlineExceeded, LLMUnavailable, PersonaError, RequestCancelled, ShuttingDown
from persona.service.sessions import RunningRequest
from persona.service.turn import TurnAnswer
from tests.service.stage import Stage, Watcher


@attrs.frozen
class Cut:
    """One way to end a turn at 2.5 s; the first token comes at 1 s unless `mute`."""

    finish_reason: str
    error: type[PersonaError] | None
    """`None` where the client is gone, so that nobody is told."""


CUTS = {
    "client": Cut("cancelled", RequestCancelled),
    "shutdown": Cut("cancelled", ShuttingDown),
    "deadline": Cut("timeout", DeadlineExceeded),
    "model": Cut("error", LLMUnavailable),
    "silence": Cut("error", LLMUnavailable),
    "disconnect": Cut("disconnected", None),
}


async def take_and_cut(
    stage: Stage, how: str, conversation_id: str, *, mute: bool, line: str | None = "Hello", **turn: Any
) -> PersonaError | None:
    """Take a turn that is cut after 2.5 s, in the middle of " met" and "." unless `mute`."""
    running = RunningRequest(
        id=1, method="m", deadline=trio.current_time() + 2.5 if how == "deadline" else math.inf
    )
    head = () if mute else (1.0, "Well", 1.0, " met")
    rest = 2.5 if mute else 0.5
    if how == "model":
        stage.model.script = (*head, rest, LLMUnavailable("the model fell over"))
    else:
        stage.model.script = (*head, math.inf)
    errors: list[PersonaError] = []

    async def talk() -> None:
        try:
            await stage.say(line, conversation_id, running=running, **turn)
        except PersonaError as exc:
            errors.append(exc)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk)
        if how in ("client", "shutdown", "disconnect"):
            await trio.sleep(2.5)
        if how == "disconnect":
            nursery.cancel_scope.cancel()
        elif how in ("client", "shutdown"):
            running.cancel(how)
    return errors[0] if errors else None


class CancelAtStep(trio.abc.Instrument):
    """Calls `cut` when the task that made it comes to its `step`-th checkpoint."""

    def __init__(self, step: int, cut: Callable[[], None]) -> None:
        self._task = trio.lowlevel.current_task()
        self.left = step
        self._cut = cut

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if task is self._task:
            self.left -= 1
            if self.left == 0:
                self._cut()


async def cut_at_step(
    stage: Stage, step: int, how: str, conversation_id: str, *, line: str | None = "Me", **turn: Any
) -> tuple[bool, Any, str]:
    """Cut a turn at one checkpoint: whether it had so many, its answer or error, what was heard."""
    watcher, running = Watcher(), RunningRequest(id=1, method="m")
    outcome: TurnAnswer | PersonaError | None = None
    with trio.CancelScope() as scope:
        knife = CancelAtStep(step, scope.cancel if how == "disconnect" else lambda: running.cancel("client"))
        trio.lowlevel.add_instrument(knife)
        try:
            outcome = await stage.say(
                line, conversation_id, running=running, watcher=watcher, client_msg_id="me", **turn
            )
        except RequestCancelled as exc:
            outcome = exc
        finally:
            trio.lowlevel.remove_instrument(knife)
    return knife.left <= 0, outcome, watcher.heard
