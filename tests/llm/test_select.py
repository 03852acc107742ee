import attrs
import pytest
import structlog.testing
import trio
import trio.testing

from persona.errors import LLMUnavailable, SettingsError
from persona.llm import select
from persona.llm.backend import GenerateOptions, Message
from persona.llm.ollama import OllamaBackend
from persona.llm.openai import OpenAIBackend
from persona.llm.select import open_backend
from tests.llm.asking import ask
from tests.llm.standin import open_standin


@attrs.frozen(kw_only=True)
class Settings:
    backend: str = "auto"
    base_url: str | None = ""
    model: str | None = ""
    api_key: str | None = ""
    context_tokens: int | None = None
    scripted_first_token_s: float = 0.0
    scripted_tokens_per_s: float = 0.0
    scripted_seed: int = 0


async def free_port() -> int:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with listener:
        return int(listener.socket.getsockname()[1])


async def test_scripted_takes_its_settings(autojump_clock: trio.testing.MockClock) -> None:
    settings = Settings(backend="scripted", scripted_first_token_s=3.0, scripted_tokens_per_s=1.0)
    messages = (Message("user", "The rain falls."),)
    options = GenerateOptions(max_tokens=3)
    async with open_backend(settings) as backend:
        assert backend.provider == "scripted"
        first, _ = await ask(backend, messages)
        start = trio.current_time()
        await ask(backend, messages, options)
        assert trio.current_time() - start == pytest.approx(5.0)
    texts = {first}
    for seed in range(1, 6):
        async with open_backend(attrs.evolve(settings, scripted_seed=seed)) as backend:
            texts.add((await ask(backend, messages))[0])
    assert len(texts) > 1


async def test_auto_takes_ollama_and_its_first_model() -> None:
    with trio.fail_after(5), structlog.testing.capture_logs() as logs:
        async with open_standin("ollama") as server:
            async with open_backend(Settings(base_url=server.base_url, context_tokens=99)) as backend:
                assert isinstance(backend, OllamaBackend)
                assert backend.model == "stand-in"
                await ask(backend)
            await server.wait_connections(0)
    assert [request.path for request in server.requests] == ["/api/tags", "/api/chat"]
    assert server.requests[1].body["options"]["num_ctx"] == 99
    assert [entry["log_level"] for entry in logs] == ["info"]


async def test_auto_keeps_the_model_that_was_named() -> None:
    with trio.fail_after(5):
        async with open_standin("ollama", models=()) as server:
            settings = Settings(base_url=server.base_url, model="mine", context_tokens=0)
            async with open_backend(settings) as backend:
                assert (backend.provider, backend.model) == ("ollama", "mine")
                await ask(backend)
    assert server.requests[-1].body["model"] == "mine"
    assert "num_ctx" not in server.requests[-1].body["options"]


async def test_auto_looks_where_ollama_usually_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert select.DEFAULT_OLLAMA_URL == "http://127.0.0.1:11434"
    with trio.fail_after(5):
        async with open_standin("ollama") as server:
            monkeypatch.setattr(select, "DEFAULT_OLLAMA_URL", server.base_url)
            async with open_backend(Settings()) as backend:
                assert backend.provider == "ollama"


async def fallback(settings: Settings) -> str:
    """The problem that the warning names, having checked that there is one and the stand-in answers."""
    with trio.fail_after(5), structlog.testing.capture_logs() as logs:
        async with open_backend(settings) as backend:
            assert backend.provider == "scripted"
            assert (await ask(backend))[0]
    (entry,) = logs
    assert entry["log_level"] == "warning"
    assert "PERSONA_LLM_BASE_URL" in entry["remedy"]
    return str(entry["problem"])


async def test_auto_falls_back_when_nobody_listens() -> None:
    port = await free_port()
    assert "cannot be reached" in await fallback(Settings(base_url=f"http://127.0.0.1:{port}"))


async def test_auto_falls_back_when_there_is_no_model() -> None:
    async with open_standin("ollama", models=()) as server:
        assert "ollama pull" in await fallback(Settings(base_url=server.base_url))


async def test_auto_falls_back_when_it_is_something_else() -> None:
    async with open_standin("openai") as server:
        assert "HTTP 404" in await fallback(Settings(base_url=server.base_url))


async def test_auto_waits_a_second_and_no_longer() -> None:
    async with open_standin("ollama", models_variant="hang") as server:
        start = trio.current_time()
        assert "within 1 s" in await fallback(Settings(base_url=server.base_url))
        assert 0.9 < trio.current_time() - start < 2.0
        await server.wait_client_closed()


@pytest.mark.parametrize("kind", ["ollama", "openai"])
async def test_a_server_that_was_named_may_come_up_later(kind: str) -> None:
    port = await free_port()
    settings = Settings(backend=kind, base_url=f"http://127.0.0.1:{port}")
    with trio.fail_after(5), structlog.testing.capture_logs() as logs:
        async with open_backend(settings) as backend:
            assert backend.provider == kind
            with pytest.raises(LLMUnavailable):
                await ask(backend)
    assert logs == []


async def test_openai_takes_its_settings() -> None:
    with trio.fail_after(5):
        async with open_standin("openai") as server:
            settings = Settings(backend="openai", base_url=server.base_url + "/v1", api_key="sk-1", model="m")
            async with open_backend(settings) as backend:
                assert isinstance(backend, OpenAIBackend)
                await ask(backend)
            await server.wait_connections(0)
    (request,) = server.requests
    assert (request.headers["authorization"], request.body["model"]) == ("Bearer sk-1", "m")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (Settings(backend="openai"), r"llm\.base_url is needed"),
        (Settings(backend="ollama", base_url="localhost"), r"llm\.base_url must be"),
        (Settings(backend="auto", base_url="localhost"), r"llm\.base_url must be"),
        (Settings(backend="gpt"), r"llm\.backend must be .* not 'gpt'"),
    ],
)
async def test_bad_settings(settings: Settings, words: str) -> None:
    with pytest.raises(SettingsError, match=words):
        async with open_backend(settings):
            pass


async def test_proxies_of_the_environment_are_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{await free_port()}")
    with trio.fail_after(5):
        async with (
            open_standin("ollama") as server,
            open_backend(Settings(base_url=server.base_url)) as backend,
        ):
            assert backend.provider == "ollama"
