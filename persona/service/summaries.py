"""What was said before the turns that fit a prompt, in short: made by the model, in the background.

When turns no longer fit, the older part of the branch is summed up together with the summary before, so
each turn is read once. What stays as it is takes about half of the room: the next summary is due only when
the other half is full again. A summary belongs to a turn, and so to every branch that goes through it. Where
there is no model (the scripted stand-in), older turns are left out.
"""

from collections.abc import Callable, Sequence
from functools import partial

import structlog
import trio

from persona.errors import LLMUnavailable
from persona.llm.backend import Backend, Delta, GenerateOptions, Message
from persona.llm.prompt import BuiltPrompt, cut_to_tokens, summary_messages, summary_room
from persona.model import Spoken
from persona.service.background import Background, Importance
from persona.service.context import ContextBudget
from persona.service.patience import Patience
from persona.service.scheduler import Scheduler
from persona.service.turn import MAX_HISTORY_TURNS
from persona.storage.pool import Database
from persona.storage.summaries import Summary, after_summary, save_summary

log = structlog.get_logger()

SUMMARY_TOKENS = 300
"""Room for the 150 words that are asked for, in any language."""
MAX_SUMMARY_S = 120.0
"""How long a summary may take, its wait for a slot included; nobody waits for it."""
MAX_CHARS_PER_TOKEN = 16
PARTY = "summaries"
"""Whom the model's slots are shared out to: all summaries together count as one user."""


class Summaries:
    """Sums up what no longer fits. Safe to use from many tasks."""

    def __init__(
        self,
        *,
        database: Database,
        backend: Backend,
        scheduler: Scheduler,
        background: Background,
        budget: ContextBudget,
        first_token_timeout_s: float,
        now: Callable[[], float],
    ) -> None:
        self._database = database
        self._backend = backend
        self._scheduler = scheduler
        self._background = background
        self._budget = budget
        self._first_token_timeout_s = first_token_timeout_s
        self._now = now
        self._under_way: set[str] = set()

    def consider(
        self, conversation_id: str, persona_name: str, history: Sequence[Spoken], prompt: BuiltPrompt
    ) -> None:
        """Have a summary made if turns of `history` did not fit `prompt`. Never waits; a conversation has one
        under way at a time."""
        spoken = [turn for turn in history if turn.content.strip()]
        if not prompt.turns_left_out or self._backend.provider == "scripted":
            return
        if conversation_id in self._under_way:
            return
        last_id = spoken[-(prompt.turns_used // 2) - 1].id
        job = partial(self._sum_up, conversation_id, persona_name, last_id)
        given_up = partial(self._under_way.discard, conversation_id)
        if self._background.submit("summarise", job, Importance.LOW, on_dropped=given_up):
            self._under_way.add(conversation_id)

    async def _sum_up(self, conversation_id: str, persona_name: str, last_id: int) -> None:
        """Up to turn `last_id`, or as far as one prompt holds."""
        try:
            with trio.move_on_after(MAX_SUMMARY_S) as patience:
                before, history = await self._database.read(
                    lambda conn: after_summary(conn, conversation_id, last_id, MAX_HISTORY_TURNS)
                )
                summary = await self._ask(persona_name, before, history)
                if summary is not None:
                    await self._database.write(
                        lambda conn: save_summary(conn, conversation_id, summary, created_at=self._now())
                    )
            if patience.cancelled_caught:
                raise LLMUnavailable(f"a summary took more than {MAX_SUMMARY_S:g} s")
        finally:
            self._under_way.discard(conversation_id)

    async def _ask(
        self, persona_name: str, before: Summary | None, history: Sequence[Spoken]
    ) -> Summary | None:
        """The summary that takes in `before` and what fits of `history`; `None` where that makes none."""
        budget_tokens = await self._budget.prompt_tokens(None, answer_tokens=SUMMARY_TOKENS)
        said_before = "" if before is None else before.content
        messages, covered = summary_messages(persona_name, said_before, history, budget_tokens=budget_tokens)
        if not covered:
            log.warning("summary_impossible", turns=len(history))
            return None
        max_tokens = min(SUMMARY_TOKENS, summary_room(budget_tokens))
        async with self._scheduler.slot(PARTY, lambda _position: None):
            text = await self._hear(messages, GenerateOptions(max_tokens=max_tokens))
        text = cut_to_tokens(text.strip(), max_tokens)
        return Summary(history[covered - 1].id, text) if text else None

    async def _hear(self, messages: tuple[Message, ...], options: GenerateOptions) -> str:
        text = ""
        with Patience(self._first_token_timeout_s) as patience:
            async with self._backend.generate(messages, options) as events:
                async for event in events:
                    patience.heard()
                    if isinstance(event, Delta):
                        text += event.text
                    # A model may not obey, and one that is too long would help nobody.
                    if len(text) > MAX_CHARS_PER_TOKEN * options.max_tokens:
                        break
        return text
