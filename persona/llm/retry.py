"""A backend that is asked again where it could not be had at first, and left alone where that is in vain.

Rules:

* Asked again is only before the first token. What was shown cannot be taken back, and a second answer
  would not go on from it.
* Asked again is only after a failure that may pass (`LLMUnavailable.is_transient`): no connection, a
  connection that broke, "busy". The same request would meet any other failure again.
* Pauses grow, and are spread by chance, so that requests that failed together do not come back together:
  `min(MAX_PAUSE_S, FIRST_PAUSE_S * 2 ** n) * uniform(1/2, 1)` before the n-th retry, counted from 0 (Marc
  Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog, 2015: "equal jitter"). Where the server
  says how long to wait, it is given that time; where that is more than `MAX_PAUSE_S`, the client is told
  instead.
* The caller keeps its slot of the model between two attempts. Giving it up would send the next of a long
  queue against the same closed door, and the request, which has waited already, to the end of the queue. The
  pauses are short, and a server in trouble is not helped by more requests.
* Every attempt goes through the circuit breaker, and none is made while that refuses.
"""

import random
from collections.abc import AsyncIterator, Awaitable
from contextlib import AsyncExitStack, asynccontextmanager

import structlog
import trio

from persona.errors import LLMUnavailable
from persona.llm.backend import Backend, Event, GenerateOptions, Message
from persona.llm.breaker import CircuitBreaker
from persona.metrics import Metrics

log = structlog.get_logger()

FIRST_PAUSE_S = 0.25
"""A server that restarts a worker, or that one connection got lost on, is back in less."""
MAX_PAUSE_S = 2.0
"""Longer is a matter for the client, which can tell its user."""


class RetryingBackend:
    """`backend` behind a circuit breaker and with up to `max_retries` retries.

    Keeps the rules of `persona.llm.backend`; in addition, entering `generate` waits for the first event.
    """

    def __init__(
        self,
        backend: Backend,
        breaker: CircuitBreaker,
        *,
        max_retries: int,
        metrics: Metrics,
        chance: random.Random | None = None,
    ) -> None:
        self._backend = backend
        self._breaker = breaker
        self._max_retries = max_retries
        self._metrics = metrics
        self._chance = chance or random.Random()  # noqa: S311 - spreads requests, protects nothing

    @property
    def provider(self) -> str:
        """As the backend's."""
        return self._backend.provider

    @property
    def model(self) -> str:
        """As the backend's."""
        return self._backend.model

    async def models(self) -> tuple[str, ...]:
        """As the backend's; asked once, whatever the circuit's state. Raises `LLMUnavailable`."""
        return await self._backend.models()

    async def context_tokens(self, model: str) -> int | None:
        """As the backend's; asked once, whatever the circuit's state. Raises `LLMUnavailable`."""
        return await self._backend.context_tokens(model)

    @asynccontextmanager
    async def generate(
        self, messages: tuple[Message, ...], options: GenerateOptions
    ) -> AsyncIterator[AsyncIterator[Event]]:
        """Stream one completion. Raises `LLMUnavailable`, on entering where nothing was generated yet.

        Cancelling is safe, closes the connection at once, and ends all retries.
        """
        async with AsyncExitStack() as stack:
            for retries in range(self._max_retries + 1):
                try:
                    first, events = await self._begin(stack, messages, options)
                    break
                except LLMUnavailable as exc:
                    if retries == self._max_retries or not self._may_pass(exc):
                        raise
                    pause_s = max(self._pause_s(retries), exc.retry_after_s or 0.0)
                    log.info("llm_retry", problem=exc.message, retry=retries + 1, pause_s=round(pause_s, 3))
                self._metrics.llm_retries.inc()
                await trio.sleep(pause_s)
            yield _Rejoined(first, events)

    async def _begin(
        self, stack: AsyncExitStack, messages: tuple[Message, ...], options: GenerateOptions
    ) -> tuple[Event | None, AsyncIterator[Event]]:
        """Ask once; the first event and the rest. What was opened is `stack`'s to close, unless it failed."""
        with self._breaker.attempt():
            async with AsyncExitStack() as opened:
                events = await opened.enter_async_context(self._backend.generate(messages, options))
                first = await anext(events, None)
                stack.push_async_exit(opened.pop_all())
        return first, events

    def _may_pass(self, failure: LLMUnavailable) -> bool:
        too_long = (failure.retry_after_s or 0.0) > MAX_PAUSE_S
        return failure.is_transient and not too_long and not self._breaker.is_refusing

    def _pause_s(self, retries: int) -> float:
        return min(MAX_PAUSE_S, FIRST_PAUSE_S * 2.0**retries) * self._chance.uniform(0.5, 1.0)


class _Rejoined(AsyncIterator[Event]):
    """`first`, if there is one, and the rest as it comes: a generator around a generator would cost each
    token a step more."""

    def __init__(self, first: Event | None, rest: AsyncIterator[Event]) -> None:
        self._first = first
        self._rest = rest

    def __anext__(self) -> Awaitable[Event]:
        if self._first is None:
            return self._rest.__anext__()
        first, self._first = self._first, None
        return _ready(first)


async def _ready(event: Event) -> Event:
    return event
