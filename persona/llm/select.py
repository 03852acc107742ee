"""From settings to a backend."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Protocol

import httpx2
import structlog
import trio

from persona.errors import LLMUnavailable, SettingsError
from persona.groups import ungrouped
from persona.llm.backend import Backend
from persona.llm.ollama import OllamaBackend
from persona.llm.openai import OpenAIBackend
from persona.llm.scripted import ScriptedBackend
from persona.llm.upstream import new_client
from persona.timeouts import Sleepers

DEFAULT_OLLAMA_URL = "http://127.0.0.1:11434"
PROBE_TIMEOUT_S = 1.0
"""How long `auto` may look for Ollama: a start without a model must not feel slow."""

log = structlog.get_logger(__name__)


class LLMSettings(Protocol):
    """The settings section `llm`, as far as it concerns backends."""

    @property
    def backend(self) -> str:
        """`auto`, `ollama`, `openai` or `scripted`."""

    @property
    def base_url(self) -> str | None: ...

    @property
    def model(self) -> str | None: ...

    @property
    def api_key(self) -> str | None: ...

    @property
    def context_tokens(self) -> int | None: ...

    @property
    def scripted_first_token_s(self) -> float: ...

    @property
    def scripted_tokens_per_s(self) -> float: ...

    @property
    def scripted_seed(self) -> int: ...


@asynccontextmanager
async def open_backend(settings: LLMSettings) -> AsyncIterator[Backend]:
    """The backend `settings` ask for; leaving the block closes its connections.

    Only `auto` asks the model server anything here: it takes Ollama if that answers within
    `PROBE_TIMEOUT_S` and has a model, and the scripted stand-in, with a warning, if not. A server
    named in the settings may come up later. Raises `SettingsError`.
    """
    if settings.backend == "scripted":
        async with _scripted(settings) as scripted:
            yield scripted
        return
    async with new_client() as client:
        if settings.backend == "openai":
            yield _openai(client, settings)
            return
        if settings.backend not in ("auto", "ollama"):
            raise SettingsError(
                f"llm.backend must be auto, ollama, openai or scripted, not {settings.backend!r}"
            )
        ollama = OllamaBackend(
            client,
            base_url=settings.base_url or DEFAULT_OLLAMA_URL,
            model=settings.model or "",
            context_tokens=settings.context_tokens or None,
        )
        if settings.backend == "ollama" or await _answers(ollama):
            yield ollama
        else:
            async with _scripted(settings) as scripted:
                yield scripted


async def _answers(ollama: OllamaBackend) -> bool:
    """Whether there is a model to talk to; warns if not."""
    problem = f"no answer within {PROBE_TIMEOUT_S:g} s"
    with trio.move_on_after(PROBE_TIMEOUT_S):
        try:
            log.info("llm_found", provider=ollama.provider, model=await ollama.probe())
            return True
        except LLMUnavailable as exc:
            problem = exc.message
    log.warning(
        "llm_not_found",
        problem=problem,
        instead="the scripted stand-in answers; it is no language model",
        remedy="start Ollama, or set llm.base_url (PERSONA_LLM_BASE_URL) to where it is; for llama.cpp, "
        "vLLM, LM Studio and the like set llm.backend to openai and llm.base_url to their address",
    )
    return False


def _openai(client: httpx2.AsyncClient, settings: LLMSettings) -> OpenAIBackend:
    if not settings.base_url:
        raise SettingsError(
            "llm.base_url is needed for llm.backend openai, for example http://127.0.0.1:1234"
        )
    return OpenAIBackend(
        client, base_url=settings.base_url, model=settings.model or "", api_key=settings.api_key or ""
    )


@asynccontextmanager
async def _scripted(settings: LLMSettings) -> AsyncIterator[ScriptedBackend]:
    sleepers = Sleepers()
    with ungrouped():
        async with trio.open_nursery() as nursery:
            await nursery.start(sleepers.run)
            yield ScriptedBackend(
                seed=settings.scripted_seed,
                first_token_s=settings.scripted_first_token_s,
                tokens_per_s=settings.scripted_tokens_per_s,
                sleep_until=sleepers.sleep_until,
            )
            nursery.cancel_scope.cancel()
