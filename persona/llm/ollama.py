"""Ollama's own API: `/api/chat`, a JSON object a line, and `/api/tags`."""

from collections.abc import AsyncGenerator
from typing import Any, Literal

import attrs
import httpx2
import msgspec

from persona.llm.backend import Completed, Delta, Event, GenerateOptions, Message
from persona.llm.http import HTTPBackend, count, finish_reason, wire_messages
from persona.llm.upstream import Body


@attrs.frozen
class _Said:
    content: str | None = None


@attrs.frozen
class _Chunk:
    message: _Said | None = None
    done: bool = False
    done_reason: str | None = None
    prompt_eval_count: Any = None
    eval_count: Any = None
    error: Any = None


@attrs.frozen
class _Tag:
    name: str


@attrs.frozen
class _Tags:
    models: list[_Tag] | None = None


@attrs.frozen
class _Loaded:
    name: str
    context_length: Any = None


@attrs.frozen
class _Running:
    models: list[_Loaded] | None = None


class OllamaBackend(HTTPBackend):
    """Models served by Ollama at `base_url`.

    `context_tokens` sets the size of the model's context window (`num_ctx`); without it Ollama
    decides. Raises `SettingsError` for an unusable `base_url`.
    """

    label = "Ollama"
    how_to_get_a_model = "pull one, for example with `ollama pull llama3.2`"
    chat_path = "/api/chat"

    def __init__(
        self, client: httpx2.AsyncClient, *, base_url: str, model: str, context_tokens: int | None = None
    ) -> None:
        super().__init__(client, base_url=base_url, model=model)
        self._num_ctx = context_tokens
        self._chunks = msgspec.json.Decoder(_Chunk)

    @property
    def provider(self) -> Literal["ollama"]:
        return "ollama"

    async def models(self) -> tuple[str, ...]:
        """The names of the models that were pulled. Raises `LLMUnavailable`."""
        tags = await self._upstream.get("/api/tags", _Tags)
        return tuple(tag.name for tag in tags.models or ())

    async def _context_tokens(self, model: str) -> int | None:
        # Of a loaded model. What /api/show tells is what it could have, which few machines have room for.
        if self._num_ctx is not None:
            return self._num_ctx
        running = await self._upstream.get("/api/ps", _Running)
        wanted = model if ":" in model else f"{model}:latest"
        return next(
            (count(each.context_length) for each in running.models or () if each.name == wanted), None
        )

    def _request(self, model: str, messages: tuple[Message, ...], options: GenerateOptions) -> dict[str, Any]:
        wanted: dict[str, Any] = {
            "num_predict": options.max_tokens,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "stop": list(options.stop) or None,
            "seed": options.seed,
            "num_ctx": self._num_ctx or None,
        }
        return {
            "model": model,
            "messages": wire_messages(messages),
            "stream": True,
            "options": {name: value for name, value in wanted.items() if value is not None},
        }

    async def _events(self, body: Body, model: str, max_chars: int) -> AsyncGenerator[Event, None]:
        while (line := await body.next_line()) is not None:
            if not line.strip():
                continue
            chunk = self._upstream.decode(line, self._chunks)
            if chunk.error is not None:
                raise self._upstream.failure("failed", chunk.error)
            text = chunk.message.content if chunk.message else None
            if text:
                yield Delta(text)
                max_chars -= len(text)
            if chunk.done:
                yield Completed(
                    finish_reason=finish_reason(chunk.done_reason),
                    model=model,
                    prompt_tokens=count(chunk.prompt_eval_count),
                    completion_tokens=count(chunk.eval_count),
                )
                await body.skip_end()
                return
            if max_chars < 0:
                yield Completed(finish_reason="length", model=model)
                return
        raise self._upstream.failure("ended its answer halfway")
