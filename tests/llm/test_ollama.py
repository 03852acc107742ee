"""What is particular to Ollama."""

from collections.abc import Iterable

import pytest
import trio

from persona.errors import LLMUnavailable
from persona.llm.backend import Completed, GenerateOptions
from persona.llm.ollama import OllamaBackend
from persona.llm.upstream import new_client
from tests.llm.asking import ask, opened
from tests.llm.standin import open_standin

HEL = b'{"model":"m","message":{"role":"assistant","content":"Hel"},"done":false}\n'
LO = b'{"message":{"role":"assistant","content":"lo"},"done":false}\n'
END = b'{"message":{"content":""},"done":true,"done_reason":"stop","prompt_eval_count":7,"eval_count":2}\n'


async def answer_of(*frames: bytes) -> tuple[str, Completed]:
    def given(body: object) -> Iterable[bytes]:
        return frames

    async with opened("ollama", variant="raw", frames=given) as (_, backend):
        try:
            return await ask(backend)
        except LLMUnavailable as exc:
            failure = exc
    # Raised out here, since a nursery would wrap it.
    raise failure


async def test_every_option_reaches_the_server() -> None:
    options = GenerateOptions(max_tokens=42, temperature=0.0, top_p=0.9, stop=("END", "\n"), seed=0)
    async with new_client() as client, open_standin("ollama") as server:
        with trio.fail_after(5):
            wide = OllamaBackend(client, base_url=server.base_url + "/", model="m", context_tokens=8192)
            await ask(wide, options=options)
            await ask(OllamaBackend(client, base_url=server.base_url, model="m"))
    full, bare = (request.body["options"] for request in server.requests)
    assert full == {
        "num_predict": 42,
        "temperature": 0.0,
        "top_p": 0.9,
        "stop": ["END", "\n"],
        "seed": 0,
        "num_ctx": 8192,
    }
    assert bare == {"num_predict": 100}
    assert {request.path for request in server.requests} == {"/api/chat"}


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([HEL, LO, END], id="by the book"),
        pytest.param([HEL + LO + END], id="all at once"),
        pytest.param([HEL, LO, END.rstrip()], id="last line without an end"),
        pytest.param([HEL, b"\n", LO, b"\r\n", END], id="blank lines"),
        pytest.param([HEL, LO, END, b"{{{ after the end\n"], id="nonsense after the end"),
        pytest.param([HEL, LO.replace(b'lo"', b'lo","thinking":"hm"'), END], id="thinking"),
    ],
)
async def test_ways_to_say_the_same(frames: list[bytes]) -> None:
    text, completed = await answer_of(*frames)
    assert text == "Hello"
    assert completed == Completed(
        finish_reason="stop", model="stand-in", prompt_tokens=7, completion_tokens=2
    )


@pytest.mark.parametrize(
    ("frame", "finish_reason"),
    [
        (b'{"done":true,"done_reason":"length","eval_count":-1}', "length"),
        (b'{"done":true}', "stop"),
        (b'{"done":true,"done_reason":"load","eval_count":"2","prompt_eval_count":true}', "stop"),
    ],
)
async def test_ends(frame: bytes, finish_reason: str) -> None:
    text, completed = await answer_of(HEL, frame + b"\n")
    assert (text, completed.finish_reason) == ("Hel", finish_reason)
    assert (completed.prompt_tokens, completed.completion_tokens) == (None, None)


async def test_the_last_line_may_hold_text() -> None:
    assert (await answer_of(HEL, b'{"message":{"content":"p"},"done":true}\n'))[0] == "Help"


async def test_an_error_in_the_middle() -> None:
    with pytest.raises(
        LLMUnavailable, match=r"Ollama at http://127\.0\.0\.1:.* failed: CUDA error: no memory"
    ):
        await answer_of(HEL, b'{"error":"CUDA error:\\u0007\\n no memory"}\n')


async def test_no_models_says_how_to_get_one() -> None:
    async with opened("ollama", model="", models=()) as (_, backend):
        with pytest.raises(LLMUnavailable, match="ollama pull"):
            await ask(backend)


@pytest.mark.parametrize(
    ("model", "context"), [("llama3.2:3b", 8192), ("qwen", 4096), ("qwen:latest", 4096), ("unloaded", None)]
)
async def test_the_context_is_that_of_the_loaded_model(model: str, context: int | None) -> None:
    loaded = [
        {"name": "llama3.2:3b", "context_length": 8192},
        {"name": "qwen:latest", "context_length": 4096},
    ]
    async with opened("ollama", pages={"/api/ps": {"models": loaded}}) as (_, backend):
        assert await backend.context_tokens(model) == context


@pytest.mark.parametrize("page", [{}, {"models": None}, {"models": [{"name": "stand-in:latest"}]}])
async def test_an_older_ollama_does_not_say(page: object) -> None:
    async with opened("ollama", pages={"/api/ps": page}) as (_, backend):
        assert await backend.context_tokens("") is None


async def test_a_context_that_was_set_needs_no_question() -> None:
    async with new_client() as client:
        backend = OllamaBackend(client, base_url="http://127.0.0.1:1", model="m", context_tokens=2048)
        assert await backend.context_tokens("") == 2048
