"""What is particular to OpenAI-compatible servers."""

import logging
import traceback
from collections.abc import Iterable
from typing import Any

import pytest
import trio

from persona.errors import LLMUnavailable, SettingsError
from persona.llm import openai
from persona.llm.backend import Completed, GenerateOptions
from persona.llm.openai import OpenAIBackend
from persona.llm.upstream import new_client
from tests.llm.asking import MESSAGES, OPTIONS, ask, open_raw_server, opened
from tests.llm.standin import open_standin

KEY = "sk-very-secret-0123456789"
HEL = b'data: {"choices":[{"index":0,"delta":{"content":"Hel"}}]}\n\n'
LO = b'data: {"choices":[{"index":0,"delta":{"content":"lo"},"finish_reason":null}]}\n\n'
FINISH = b'data: {"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]}\n\n'
USAGE = b'data: {"choices":[],"usage":{"prompt_tokens":7,"completion_tokens":2}}\n\n'
DONE = b"data: [DONE]\n\n"


async def answer_of(*frames: bytes) -> tuple[str, Completed]:
    def given(body: object) -> Iterable[bytes]:
        return frames

    async with opened("openai", variant="raw", frames=given) as (_, backend):
        try:
            return await ask(backend)
        except LLMUnavailable as exc:
            failure = exc
    # Raised out here, since a nursery would wrap it.
    raise failure


async def test_every_option_reaches_the_server() -> None:
    options = GenerateOptions(max_tokens=42, temperature=0.0, top_p=0.9, stop=("END", "\n"), seed=0)
    async with opened("openai") as (server, backend):
        await ask(backend, options=options)
        await ask(backend)
    full, bare = ({k: v for k, v in request.body.items() if k != "messages"} for request in server.requests)
    common = {"model": "stand-in", "stream": True, "stream_options": {"include_usage": True}}
    assert full == common | {
        "max_tokens": 42,
        "temperature": 0.0,
        "top_p": 0.9,
        "stop": ["END", "\n"],
        "seed": 0,
    }
    assert bare == common | {"max_tokens": 100}
    assert {request.path for request in server.requests} == {"/v1/chat/completions"}


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/", " "])
async def test_the_base_url_may_end_in_v1(suffix: str) -> None:
    async with new_client() as client, open_standin("openai") as server:
        backend = OpenAIBackend(client, base_url=server.base_url + suffix, model="", api_key="")
        with trio.fail_after(5):
            await ask(backend)
    assert [request.path for request in server.requests] == ["/v1/models", "/v1/chat/completions"]


@pytest.mark.parametrize(
    "frames",
    [
        pytest.param([HEL, LO, FINISH, USAGE, DONE], id="by the book"),
        pytest.param([HEL, LO, FINISH, USAGE], id="no done"),
        pytest.param([HEL + LO + FINISH + USAGE + DONE], id="all at once"),
        pytest.param([HEL, LO, FINISH, USAGE, b"data: [DONE]"], id="done without an end"),
        pytest.param([HEL, LO, FINISH, USAGE.rstrip()], id="usage without an end"),
        pytest.param([HEL, LO, USAGE, DONE], id="done without a reason"),
        pytest.param([b": hi\n\n", HEL, b":\n\n", LO, b"retry: 5\n\n", FINISH, USAGE, DONE], id="comments"),
        pytest.param([f.replace(b"\n", b"\r\n") for f in (HEL, LO, FINISH, USAGE, DONE)], id="CR LF"),
        pytest.param([f.replace(b"\n", b"\r") for f in (HEL, LO, FINISH, USAGE, DONE)], id="CR"),
        pytest.param([f.replace(b"data: ", b"data:") for f in (HEL, LO, FINISH, USAGE, DONE)], id="no space"),
        pytest.param([b"event: x\nid: 1\n" + f for f in (HEL, LO, FINISH, USAGE, DONE)], id="other fields"),
        pytest.param([b"\xef\xbb\xbf" + HEL, LO, FINISH, USAGE, DONE], id="byte order mark"),
        pytest.param([HEL, LO, FINISH, USAGE, b"data: {{{\n\n"], id="nonsense after the end"),
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
        (b'{"choices":[{"delta":{"content":null},"finish_reason":"length"}],"usage":null}', "length"),
        (b'{"choices":[{"delta":null,"finish_reason":"content_filter"}],"usage":"none"}', "stop"),
        (b'{"choices":[{"finish_reason":"tool_calls"}],"usage":{"prompt_tokens":-1}}', "stop"),
        (
            b'{"choices":[{"delta":{"content":""},"finish_reason":"eos"}],"usage":{"prompt_tokens":"7"}}',
            "stop",
        ),
    ],
)
async def test_ends(frame: bytes, finish_reason: str) -> None:
    text, completed = await answer_of(HEL, b'data: {"choices":null}\n\n', b"data: " + frame + b"\n\n")
    assert (text, completed.finish_reason, completed.prompt_tokens) == ("Hel", finish_reason, None)


async def test_reasoning_is_not_the_answer() -> None:
    thought = b'data: {"choices":[{"delta":{"reasoning_content":"hmm","content":null}}]}\n\n'
    assert (await answer_of(thought, HEL, LO, FINISH, DONE))[0] == "Hello"


@pytest.mark.parametrize("frames", [[HEL, LO], [HEL, USAGE], [], [b": only comments\n\n"]])
async def test_an_answer_without_its_end_is_broken(frames: list[bytes]) -> None:
    with pytest.raises(LLMUnavailable, match="ended its answer halfway"):
        await answer_of(*frames)


async def test_a_server_that_does_not_hang_up_costs_no_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openai, "TAIL_TIMEOUT_S", 0.05)
    answer = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n\r\n" + HEL + LO + FINISH
    async with new_client() as client, open_raw_server(answer, hang=True) as (url, hung_up):
        text, completed = await ask(OpenAIBackend(client, base_url=url, model="m", api_key=""))
        await hung_up.wait()
    assert (text, completed.finish_reason) == ("Hello", "stop")


async def test_a_json_answer_to_a_request_for_a_stream() -> None:
    body = b'{"error": {"message": "no streaming here"}}'
    head = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n" % len(body)

    async with new_client() as client, open_raw_server(head + body) as (url, _):
        with pytest.raises(LLMUnavailable, match="did not stream its answer: no streaming here"):
            await ask(OpenAIBackend(client, base_url=url, model="m", api_key=""))


async def test_the_api_key_is_sent_and_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)

    def frames(body: dict[str, Any]) -> Iterable[bytes]:
        return [b'data: {"error": {"message": "Incorrect API key provided: ' + KEY.encode() + b'"}}\n\n']

    async with opened("openai", api_key=KEY, variant="raw", frames=frames) as (server, backend):
        with pytest.raises(LLMUnavailable) as caught:
            await ask(backend)
        await backend.models()
        server.variant = "ok"
        async with backend.generate(MESSAGES, OPTIONS) as events:
            shown = repr(backend) + repr(events) + repr(vars(backend)["_upstream"])
    assert {request.headers["authorization"] for request in server.requests} == {f"Bearer {KEY}"}
    assert "Incorrect API key provided: ***" in caught.value.message
    assert "POST" in caplog.text
    assert KEY not in caplog.text + shown + "".join(traceback.format_exception(caught.value))


async def test_without_a_key_nothing_is_sent() -> None:
    async with opened("openai") as (server, backend):
        await ask(backend)
    assert "authorization" not in server.requests[0].headers


@pytest.mark.parametrize("key", ["sk-véry", "sk-\nvery", "sk-\x00"])
async def test_a_key_no_header_can_hold(key: str) -> None:
    async with new_client() as client:
        with pytest.raises(SettingsError, match="api_key") as caught:
            OpenAIBackend(client, base_url="http://127.0.0.1:1", model="", api_key=key)
    assert "sk-" not in str(caught.value)


@pytest.mark.parametrize(
    ("pages", "context"),
    [
        ({"/v1/models": {"data": [{"id": "other"}, {"id": "stand-in", "max_model_len": 32768}]}}, 32768),
        ({"/props": {"default_generation_settings": {"n_ctx": 65536}, "total_slots": 4}}, 65536),
        ({"/props": {"default_generation_settings": {"n_ctx": "many"}}}, None),
        ({"/props": {}}, None),
        ({}, None),
    ],
    ids=["vLLM", "llama.cpp", "nonsense", "nothing", "no such page"],
)
async def test_the_context_where_the_server_says_so(pages: dict[str, object], context: int | None) -> None:
    async with opened("openai", pages=pages) as (_, backend):
        assert await backend.context_tokens("") == context


async def test_a_server_that_is_gone_says_nothing_of_its_context() -> None:
    async with new_client() as client:
        backend = OpenAIBackend(client, base_url="http://127.0.0.1:1", model="m", api_key="")
        with pytest.raises(LLMUnavailable):
            await backend.context_tokens("")
