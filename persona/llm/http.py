"""What the backends that speak HTTP have in common."""

import abc
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing, asynccontextmanager
from typing import Any, ClassVar, Literal

import httpx2
import trio

from persona.errors import LLMUnavailable
from persona.llm.backend import Event, GenerateOptions, Message
from persona.llm.upstream import Body, Upstream

MAX_CHARS_PER_TOKEN = 64
MAX_CHARS_BESIDES = 1024
"""A server that ignores its token limit is cut off at so many characters a token and these: no
answer within the limit is as long."""


class HTTPBackend(abc.ABC):
    """A `Backend` behind HTTP. Subclasses say what goes over the wire.

    `client` stays the caller's to close; later requests raise `LLMUnavailable`. An empty `model`
    means the server's first one, asked for when first needed, and anew once the server has refused a
    request for it: it may have come back with another.
    """

    label: ClassVar[str]
    how_to_get_a_model: ClassVar[str] = ""
    chat_path: ClassVar[str]

    def __init__(self, client: httpx2.AsyncClient, *, base_url: str, model: str, api_key: str = "") -> None:
        self._client = client
        self._upstream = Upstream(client, label=self.label, base_url=base_url, api_key=api_key)
        self._model = model
        self._is_model_set = bool(model)
        self._is_model_known = bool(model)
        self._model_lookup = trio.Lock()

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self._upstream.name}, model {self._model!r}>"

    @property
    @abc.abstractmethod
    def provider(self) -> str: ...

    @property
    def model(self) -> str:
        """The model used when a request names none; empty until one is known."""
        return self._model

    @asynccontextmanager
    async def generate(
        self, messages: tuple[Message, ...], options: GenerateOptions
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """Stream one completion. Raises `LLMUnavailable`; cancelling closes the connection."""
        model = options.model or await self.default_model()
        request = self._request(model, messages, options)
        max_chars = options.max_tokens * MAX_CHARS_PER_TOKEN + MAX_CHARS_BESIDES
        async with AsyncExitStack() as stack:
            try:
                body = await stack.enter_async_context(
                    self._upstream.request("POST", self.chat_path, body=request, model=model)
                )
            except LLMUnavailable as exc:
                if model == self._model and not exc.is_transient:
                    self._is_model_known = self._is_model_set
                raise
            yield await stack.enter_async_context(aclosing(self._events(body, model, max_chars)))

    async def default_model(self) -> str:
        """The model used when a request names none, looked up if the settings named none.

        Raises `LLMUnavailable`, also when the server has no model at all.
        """
        if not self._is_model_known:
            async with self._model_lookup:
                if not self._is_model_known:
                    await self.probe()
        return self._model

    async def probe(self) -> str:
        """Ask the server for its models, whether or not the settings name one; gives the default.

        Raises `LLMUnavailable`, also when a default is wanted and there is no model at all.
        """
        names = await self.models()
        if not self._is_model_known:
            if not names:
                raise self._upstream.failure("has no model yet", self.how_to_get_a_model)
            self._model, self._is_model_known = names[0], True
        return self._model

    @abc.abstractmethod
    async def models(self) -> tuple[str, ...]:
        """The names of the models there are. Raises `LLMUnavailable`."""

    async def context_tokens(self, model: str) -> int | None:
        """How much the context of `model` holds, where the server says so. Raises `LLMUnavailable`."""
        return await self._context_tokens(model or await self.default_model())

    @abc.abstractmethod
    async def _context_tokens(self, model: str) -> int | None: ...

    @abc.abstractmethod
    def _request(
        self, model: str, messages: tuple[Message, ...], options: GenerateOptions
    ) -> dict[str, Any]: ...

    @abc.abstractmethod
    def _events(self, body: Body, model: str, max_chars: int) -> AsyncGenerator[Event, None]: ...


def wire_messages(messages: tuple[Message, ...]) -> list[dict[str, str]]:
    """Both dialects write messages alike."""
    return [{"role": message.role, "content": message.content} for message in messages]


def finish_reason(reason: str | None) -> Literal["stop", "length"]:
    """Both dialects say `length` when the limit cut the answer; all else is an end of its own."""
    return "length" if reason == "length" else "stop"


def count(value: object) -> int | None:
    """A token count, or `None` for whatever is not one: no answer fails for its statistics."""
    return value if type(value) is int and value >= 0 else None
