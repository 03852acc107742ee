"""How much of a conversation fits the model: the size of its context, and how its tokens compare with ours.

The size is the one the operator set, else what the model server says, else `UNKNOWN_CONTEXT_TOKENS`. What
a prompt takes is estimated (`llm.prompt.estimate_tokens`), and the estimate is corrected by what the server
counted of earlier prompts: `corrected = estimated * scale`, where `scale` follows the `counted / estimated`
of each answer by exponential smoothing (Brown 1956), `scale += SMOOTHING * (ratio - scale)`.
"""

from collections import OrderedDict

import attrs
import trio

from persona.errors import LLMUnavailable
from persona.llm.backend import Backend

UNKNOWN_CONTEXT_TOKENS = 4096
"""What small local models commonly take. A longer prompt would be cut or refused by the model's server, which
cannot know what in it matters."""
MAX_ANSWER_SHARE = 0.75
"""Of the context; whoever asks for a longer answer may get a shorter one, but is heard."""
ASK_AGAIN_AFTER_S = 60.0
"""A model that is loaded anew may have another context."""
ASK_AGAIN_UNKNOWN_AFTER_S = 5.0
"""Ollama knows it only of a model that is loaded, which the first turn sees to."""
ASK_TIMEOUT_S = 1.0
"""Longer, and the turn goes on without knowing."""
SMOOTHING = 0.3
MIN_RATIO = 0.8
"""A count below that is no count of the whole prompt: some servers, Ollama among them, leave out what they
had seen before."""
MAX_RATIO = 4.0
"""Nor is one far above; but that errs to the safe side, so it counts as this."""
MIN_OBSERVED_TOKENS = 64
"""Of a shorter prompt the template around it is too large a part."""
MAX_MODELS = 64
"""Of whom something is known. Clients name models, so they are not few by nature."""


@attrs.define
class _Known:
    context_tokens: int | None = None
    ask_at: float = -float("inf")
    scale: float | None = None


class ContextBudget:
    """What the prompts of one server may take. Safe to use from many tasks."""

    def __init__(self, backend: Backend, *, configured_tokens: int) -> None:
        """`configured_tokens` 0 asks the backend."""
        self._backend = backend
        self._configured_tokens = configured_tokens
        self._models: OrderedDict[str, _Known] = OrderedDict()

    async def prompt_tokens(self, model: str | None, *, answer_tokens: int) -> int:
        """What the prompt may take, as `estimate_tokens` counts, beside an answer of `answer_tokens`. Never
        fails for a model server that does not answer; cancelling is safe."""
        known = self._known(model)
        context_tokens = await self._context_tokens(known, model)
        room = context_tokens - min(answer_tokens, int(context_tokens * MAX_ANSWER_SHARE))
        return int(room / (known.scale or 1.0))

    def observe(self, model: str | None, *, estimated_tokens: int, counted_tokens: int | None) -> None:
        """Learn from a prompt that was estimated at so much and counted by the server."""
        if not counted_tokens or estimated_tokens < MIN_OBSERVED_TOKENS:
            return
        ratio = min(counted_tokens / estimated_tokens, MAX_RATIO)
        if ratio < MIN_RATIO:
            return
        # A count of nearly all of it cannot be told from one of all, so no prompt becomes larger for it.
        ratio = max(ratio, 1.0)
        known = self._known(model)
        known.scale = ratio if known.scale is None else known.scale + SMOOTHING * (ratio - known.scale)

    async def _context_tokens(self, known: _Known, model: str | None) -> int:
        if self._configured_tokens:
            return self._configured_tokens
        if trio.current_time() >= known.ask_at:
            # First, so that those who come meanwhile do not ask too.
            known.ask_at = trio.current_time() + ASK_AGAIN_UNKNOWN_AFTER_S
            with trio.move_on_after(ASK_TIMEOUT_S):
                known.context_tokens = await self._ask(model)
            if known.context_tokens:
                known.ask_at = trio.current_time() + ASK_AGAIN_AFTER_S
        return known.context_tokens or UNKNOWN_CONTEXT_TOKENS

    async def _ask(self, model: str | None) -> int | None:
        try:
            return await self._backend.context_tokens(model or "")
        except LLMUnavailable:
            return None  # the turn itself will say what is wrong

    def _known(self, model: str | None) -> _Known:
        name = model or self._backend.model
        known = self._models.get(name)
        if known is None:
            known = self._models[name] = _Known()
            if len(self._models) > MAX_MODELS:
                self._models.popitem(last=False)
        self._models.move_to_end(name)
        return known
