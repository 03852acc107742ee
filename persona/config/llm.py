"""Settings of the model behind the personas."""

from typing import ClassVar, Literal

import attrs

from persona.config import checks
from persona.config.field import Section, setting
from persona.config.limits import DAY_S


@attrs.frozen(kw_only=True)
class LLMSettings(Section):
    """The model behind the personas."""

    section: ClassVar[str] = "llm"

    backend: Literal["auto", "ollama", "openai", "scripted"] = setting(
        "auto",
        flag="--llm",
        reason="`auto` looks for Ollama for at most a second and falls back to the scripted stand-in "
        "with a warning, so a machine without a model can still be tried.",
    )
    base_url: str = setting(
        "",
        form="an http:// or https:// URL without user, password and query",
        accepts=checks.http_url,
        unset="Ollama's usual address; openai needs one",
        reason="Local first: nothing is sent to another machine unless told to.",
    )
    model: str = setting(
        "",
        unset="the backend's choice",
        reason="Any fixed name would be missing on most machines.",
    )
    api_key: str = setting(
        "",
        secret=True,
        form="ASCII text without spaces",
        accepts=checks.header_value,
        unset="none is sent",
        reason="Local model servers ask for none.",
    )
    max_concurrency: int = setting(
        4,
        unit="generations",
        minimum=1,
        maximum=1000,
        reason="A local model has one to four slots; sending it more makes every answer slower.",
    )
    max_queue: int = setting(
        512,
        unit="requests",
        minimum=1,
        maximum=100_000,
        reason="Room for one waiting chat of each of the 500 clients. Four slots need minutes for that "
        "many, so beyond it `overloaded` is the honest answer.",
    )
    max_queue_wait_s: float = setting(
        240.0,
        unit="s",
        minimum=0.001,
        maximum=DAY_S,
        unset="as long as the chat may take",
        reason="A minute less than chat_timeout_s: a chat that begins later would be cut in the middle of "
        "its answer, so it is told when to come back instead.",
    )
    max_retries: int = setting(
        2,
        unit="retries",
        minimum=0,
        maximum=20,
        reason="With pauses of up to a quarter and half a second that outlasts a worker that restarts, or "
        "a connection lost on the way. Longer is for the client to decide, which has a user to tell.",
    )
    breaker_failures: int = setting(
        5,
        unit="failures",
        minimum=1,
        maximum=1000,
        reason="Failures in a row after which the model is left alone: more than one request makes with its "
        "retries, so a single unlucky one locks nobody out.",
    )
    breaker_open_s: float = setting(
        5.0,
        unit="s",
        minimum=0.001,
        maximum=3600.0,
        reason="How long at first; twice as long after each probe that fails, up to a minute. A model "
        "server takes some seconds to start.",
    )
    first_token_timeout_s: float = setting(
        60.0,
        unit="s",
        minimum=0.001,
        maximum=3600.0,
        reason="A model that has to be loaded from disk may take most of a minute; one that is silent "
        "for longer hangs, and its slot is freed.",
    )
    context_tokens: int = setting(
        0,
        unit="tokens",
        minimum=256,
        maximum=10_000_000,
        unset="as the model server says; 4096 where it does not",
        reason="The server knows what it gave the model. A longer prompt would be cut or refused there, "
        "where nobody knows what in it matters; 4096 is what small local models commonly take.",
    )
    scripted_first_token_s: float = setting(
        0.05,
        unit="s",
        minimum=0.001,
        maximum=3600.0,
        unset="no delay",
        reason="Like a small model that is warm, so a demo and a load test meet realistic timing.",
    )
    scripted_tokens_per_s: float = setting(
        50.0,
        unit="tokens/s",
        minimum=0.001,
        maximum=1_000_000.0,
        unset="no delay",
        reason="As fast as a small local model on a good machine.",
    )
    scripted_seed: int = setting(
        0,
        minimum=0,
        maximum=2**31 - 1,
        reason="The same seed gives the same answers to the same lines in the same order, so tests and load "
        "runs can be repeated.",
    )
