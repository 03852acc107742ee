"""The embedded backend for a machine without a model: a script that plays the persona.

It is honest about being one: `model` says `scripted`, and so does the persona when asked.
"""

import hashlib
import random
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Literal

import msgspec
import trio

from persona.errors import LLMUnavailable
from persona.llm.backend import Completed, Delta, Event, GenerateOptions, Message
from persona.llm.prompt import MESSAGE_OVERHEAD_TOKENS, estimate_tokens
from persona.llm.script import compose

MODEL = "scripted"
BURST_TOKENS = 16
"""Without delay, so many are said before anybody else has a turn."""
PROMPTS = 1024
"""Prompts of which is known what was last said to them: some 500 kB, with answers of a few sentences.
The one that was not asked for longest goes first, and gets its first answer again."""
DRAWS = 8
"""Tries for another answer. The shortest part of the script has three things to say, so all of these come to
the last one once in some thousands."""
# A word with the space before it, as models make tokens; a "word" without end is cut.
_TOKEN = re.compile(r"\s*\S{1,24}|\s+$")


class ScriptedBackend:
    """Answers from a script, the same for the same seed and messages; asked for the same again, with another
    one, so that there is something to see when an answer is regenerated.

    `first_token_s` passes before the first delta, then come `tokens_per_s` deltas a second, each
    about a word; 0 means without delay. The times are set from the start of the generation, so a
    slow reader delays nothing that follows. `options.seed` goes before `seed`, and settles the answer
    however often it is asked for; temperature and `top_p` mean nothing here. `sleep_until` is how it
    waits: hundreds of streams sleep ten thousand times a second.
    """

    def __init__(
        self,
        *,
        seed: int,
        first_token_s: float,
        tokens_per_s: float,
        sleep_until: Callable[[float], Awaitable[None]] = trio.sleep_until,
    ) -> None:
        self._seed = seed
        self._sleep_until = sleep_until
        self._first_token_s = first_token_s
        self._tokens_per_s = tokens_per_s
        self._said: dict[bytes, tuple[int, str | None]] = {}
        """By prompt, which of its answers was the last, and its text; those asked for last are at the end."""

    @property
    def provider(self) -> Literal["scripted"]:
        return "scripted"

    @property
    def model(self) -> str:
        return MODEL

    @asynccontextmanager
    async def generate(
        self, messages: tuple[Message, ...], options: GenerateOptions
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """Stream one answer. Cancelling is safe.

        Raises `LLMUnavailable` when another model than `scripted` is asked for: an answer from
        the script would pass for that model's.
        """
        if options.model not in (None, "", MODEL):
            raise LLMUnavailable(
                "Only the scripted stand-in is here, and the request names another model; "
                "leave the model out, or connect a model server."
            )
        async with aclosing(self._events(messages, options)) as events:
            yield events

    async def models(self) -> tuple[str, ...]:
        """The one there is."""
        await trio.lowlevel.checkpoint()
        return (MODEL,)

    async def context_tokens(self, model: str) -> None:
        """It reads all of what it is given."""
        await trio.lowlevel.checkpoint()

    async def _events(
        self, messages: tuple[Message, ...], options: GenerateOptions
    ) -> AsyncGenerator[Event, None]:
        first_at = trio.current_time() + self._first_token_s
        tokens = _TOKEN.findall(_cut_at(self._answer(messages, options), options.stop))
        spoken = tokens[: max(options.max_tokens, 0)]
        await self._sleep_until(first_at)
        for number, token in enumerate(spoken):
            if self._tokens_per_s and number:
                await self._sleep_until(first_at + number / self._tokens_per_s)
            elif number % BURST_TOKENS == 0:
                await trio.lowlevel.checkpoint()
            yield Delta(token)
        yield Completed(
            finish_reason="stop" if len(spoken) == len(tokens) else "length",
            model=MODEL,
            prompt_tokens=sum(MESSAGE_OVERHEAD_TOKENS + estimate_tokens(m.content) for m in messages),
            completion_tokens=len(spoken),
        )

    def _answer(self, messages: tuple[Message, ...], options: GenerateOptions) -> str:
        seed = self._seed if options.seed is None else options.seed
        # Not hash(): it differs from one process to the next.
        asked = msgspec.json.encode([seed, *((m.role, m.content) for m in messages)])
        prompt = hashlib.sha256(asked).digest()
        if options.seed is not None:
            return compose(messages, _dice(prompt, 0))
        draw, before = self._said.pop(prompt, (-1, None))
        for _ in range(DRAWS):
            draw += 1
            answer = compose(messages, _dice(prompt, draw))
            if answer != before:
                break
        self._said[prompt] = draw, answer
        if len(self._said) > PROMPTS:
            del self._said[next(iter(self._said))]
        return answer


def _dice(prompt: bytes, draw: int) -> random.Random:
    key = prompt + draw.to_bytes(8) if draw else prompt
    return random.Random(key)  # noqa: S311 - a choice of words, nothing to guess


def _cut_at(text: str, stop: tuple[str, ...]) -> str:
    """`text` up to the first of the stop sequences in it."""
    ends = [text.find(sequence) for sequence in stop if sequence]
    return text[: min((end for end in ends if end >= 0), default=len(text))]
