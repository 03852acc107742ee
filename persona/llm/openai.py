"""The OpenAI chat API, as llama.cpp, vLLM, LM Studio and many others serve it:
`/v1/chat/completions` with server-sent events, and `/v1/models`."""

from collections.abc import AsyncGenerator
from typing import Any, Literal

import attrs
import httpx2
import msgspec
import trio

from persona.errors import LLMUnavailable
from persona.llm.backend import Completed, Delta, Event, GenerateOptions, Message
from persona.llm.framing import EventDecoder
from persona.llm.http import HTTPBackend, count, finish_reason, wire_messages
from persona.llm.upstream import MAX_ERROR_BODY_BYTES, Body

TAIL_TIMEOUT_S = 2.0
"""After the reason to finish: how long usage and `[DONE]` may take. The answer is whole by then,
and a server that forgets to hang up must not turn it into a timeout."""
_DONE = "[DONE]"


@attrs.frozen
class _Delta:
    content: str | None = None


@attrs.frozen
class _Choice:
    delta: _Delta | None = None
    finish_reason: str | None = None


@attrs.frozen
class _Chunk:
    choices: list[_Choice] | None = None
    usage: Any = None
    error: Any = None


@attrs.frozen
class _Model:
    id: str
    max_model_len: Any = None


@attrs.frozen
class _Generation:
    n_ctx: Any = None


@attrs.frozen
class _Properties:
    default_generation_settings: _Generation | None = None


@attrs.frozen
class _Models:
    data: list[_Model] | None = None


@attrs.define
class _Ending:
    """What the chunks told of the answer's end."""

    reason: str | None = None
    usage: dict[str, Any] = attrs.field(factory=dict)

    def note(self, chunk: _Chunk) -> None:
        if chunk.choices and chunk.choices[0].finish_reason:
            self.reason = chunk.choices[0].finish_reason
        if isinstance(chunk.usage, dict):
            self.usage = chunk.usage

    def completed(self, model: str) -> Completed:
        return Completed(
            finish_reason=finish_reason(self.reason),
            model=model,
            prompt_tokens=count(self.usage.get("prompt_tokens")),
            completion_tokens=count(self.usage.get("completion_tokens")),
        )


class OpenAIBackend(HTTPBackend):
    """Models behind an OpenAI-compatible API at `base_url`, with or without `/v1`.

    `api_key` may be empty. Raises `SettingsError` for an unusable `base_url` or `api_key`.
    """

    label = "The model server"
    chat_path = "/v1/chat/completions"

    def __init__(self, client: httpx2.AsyncClient, *, base_url: str, model: str, api_key: str) -> None:
        base_url = base_url.strip().rstrip("/").removesuffix("/v1")
        super().__init__(client, base_url=base_url, model=model, api_key=api_key)
        self._chunks = msgspec.json.Decoder(_Chunk)

    @property
    def provider(self) -> Literal["openai"]:
        return "openai"

    async def models(self) -> tuple[str, ...]:
        """The ids of the models served. Raises `LLMUnavailable`."""
        models = await self._upstream.get("/v1/models", _Models)
        return tuple(model.id for model in models.data or ())

    async def _context_tokens(self, model: str) -> int | None:
        """vLLM says so with its models, llama.cpp in its properties; others do not."""
        models = await self._upstream.get("/v1/models", _Models)
        said = next((count(each.max_model_len) for each in models.data or () if each.id == model), None)
        if said is not None:
            return said
        try:
            properties = await self._upstream.get("/props", _Properties)
        except LLMUnavailable:
            return None  # no llama.cpp: it has no such page
        generation = properties.default_generation_settings
        return None if generation is None else count(generation.n_ctx)

    def _request(self, model: str, messages: tuple[Message, ...], options: GenerateOptions) -> dict[str, Any]:
        wanted: dict[str, Any] = {
            "model": model,
            "messages": wire_messages(messages),
            "stream": True,
            "stream_options": {"include_usage": True},
            "max_tokens": options.max_tokens,
            "temperature": options.temperature,
            "top_p": options.top_p,
            "stop": list(options.stop) or None,
            "seed": options.seed,
        }
        return {name: value for name, value in wanted.items() if value is not None}

    async def _events(self, body: Body, model: str, max_chars: int) -> AsyncGenerator[Event, None]:
        if body.media_type == "application/json":
            text = await body.read(MAX_ERROR_BODY_BYTES, cut=True)
            raise self._upstream.failure("did not stream its answer", text.decode(errors="replace"))
        events = EventDecoder()
        ending = _Ending()
        while (data := await _next_data(body, events)) is not None:
            if data == _DONE:
                yield ending.completed(model)
                await body.skip_end()
                return
            chunk = self._chunk(data)
            ending.note(chunk)
            # Anything but text (tool calls, reasoning, a null) is not part of the answer.
            delta = chunk.choices[0].delta if chunk.choices else None
            if delta is not None and delta.content:
                yield Delta(delta.content)
                max_chars -= len(delta.content)
            if ending.reason is not None:
                await self._read_tail(body, events, ending)
                yield ending.completed(model)
                await body.skip_end()
                return
            if max_chars < 0:
                yield Completed(finish_reason="length", model=model)
                return
        raise self._upstream.failure("ended its answer halfway")

    async def _read_tail(self, body: Body, events: EventDecoder, ending: _Ending) -> None:
        """Take the usage that may follow the reason to finish. Nothing that goes wrong now
        concerns the answer."""
        with trio.move_on_after(TAIL_TIMEOUT_S):
            try:
                while (data := await _next_data(body, events)) is not None:
                    if data == _DONE:
                        return
                    ending.note(self._chunk(data))
            except LLMUnavailable:
                return

    def _chunk(self, data: str) -> _Chunk:
        chunk = self._upstream.decode(data, self._chunks)
        if chunk.error is not None:
            raise self._upstream.failure("failed", chunk.error)
        return chunk


async def _next_data(body: Body, events: EventDecoder) -> str | None:
    """The next event's data, `None` at the end of the stream."""
    while (line := await body.next_line()) is not None:
        data = events.feed(line)
        if data is not None:
            return data
    return events.finish()
