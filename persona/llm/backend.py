"""What a model backend offers: prompt in, stream of deltas out.

Rules every backend keeps:

* `generate` yields zero or more `Delta`, then exactly one `Completed`, or raises
  `LLMUnavailable`; nothing else leaves it but `Cancelled`.
* Leaving the `async with` block, for whatever reason, closes the upstream connection. Nothing
  a backend starts outlives the block.
* It sets no deadline of its own on a generation: the caller owns time.
* No canned text ever stands in for a failed model.
"""

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from typing import Literal, Protocol

import attrs


@attrs.frozen
class Message:
    """One entry of a prompt. User text never enters the `system` role."""

    role: Literal["system", "user", "assistant"]
    content: str


@attrs.frozen(kw_only=True)
class GenerateOptions:
    """What the client asked for. `None` leaves the choice to the model; `max_tokens` is the
    turn's token budget and always reaches the backend."""

    max_tokens: int
    temperature: float | None = None
    top_p: float | None = None
    stop: tuple[str, ...] = ()
    seed: int | None = None
    model: str | None = None


@attrs.frozen
class Delta:
    """A piece of the answer, never empty."""

    text: str


@attrs.frozen(kw_only=True)
class Completed:
    """The answer's end. Token counts are the backend's own, `None` where it reports none."""

    finish_reason: Literal["stop", "length"]
    model: str
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


Event = Delta | Completed


class Backend(Protocol):
    """A source of completions. Safe to use from many tasks at once."""

    @property
    def provider(self) -> str:
        """`ollama`, `openai` or `scripted`."""
        ...

    @property
    def model(self) -> str:
        """The model used when a request names none; empty until one is known."""
        ...

    def generate(
        self, messages: tuple[Message, ...], options: GenerateOptions
    ) -> AbstractAsyncContextManager[AsyncIterator[Event]]:
        """Stream one completion.

        Raises `LLMUnavailable`, on entering or while iterating. Cancelling is safe and closes
        the upstream connection at once.
        """
        ...

    async def models(self) -> tuple[str, ...]:
        """The names of the models there are. Raises `LLMUnavailable`."""
        ...

    async def context_tokens(self, model: str) -> int | None:
        """How much the context of `model` holds, prompt and answer together; `None` where that cannot be
        known. An empty `model` is the default one. Raises `LLMUnavailable`."""
        ...
