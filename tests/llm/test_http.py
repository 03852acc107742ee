"""What both HTTP backends do alike, on real sockets."""

import logging
import traceback
from collections.abc import Callable, Iterable, Iterator

import pytest
import trio
import trio.testing

from persona.errors import LLMUnavailable, SettingsError
from persona.llm import upstream
from persona.llm.backend import Completed, Delta, GenerateOptions, Message
from persona.llm.http import HTTPBackend
from persona.llm.upstream import new_client
from tests.llm.asking import MESSAGES, OPTIONS, ask, backend_for, open_raw_server, opened
from tests.llm.dialects import DIALECTS, Kind
from tests.llm.standin import Variant

pytestmark = pytest.mark.parametrize("kind", ["ollama", "openai"])

ANSWER = "You said: Sing of the sea, naïve 海 🎉 friend"


def pool_of(backend: HTTPBackend) -> list[object]:
    return backend._client._transport._pool._connections  # type: ignore[attr-defined, no-any-return]


async def test_streams_the_answer(kind: Kind) -> None:
    async with opened(kind) as (server, backend):
        text, completed = await ask(backend)
    assert text == ANSWER
    assert completed == Completed(
        finish_reason="stop", model="stand-in", prompt_tokens=11, completion_tokens=10
    )
    (request,) = server.requests
    assert request.body["model"] == "stand-in"
    assert request.body["stream"] is True
    assert request.body["messages"] == [
        {"role": "system", "content": MESSAGES[0].content},
        {"role": "user", "content": MESSAGES[1].content},
    ]


async def test_deltas_come_as_they_are_sent(kind: Kind) -> None:
    async with (
        opened(kind, variant="hang_midway") as (_, backend),
        backend.generate(MESSAGES, OPTIONS) as events,
    ):
        assert await anext(aiter(events)) == Delta("You")


async def test_the_limit_ends_the_answer_with_length(kind: Kind) -> None:
    async with opened(kind) as (_, backend):
        text, completed = await ask(backend, options=GenerateOptions(max_tokens=3))
    assert text == "You said: Sing"
    assert completed.finish_reason == "length"
    assert completed.completion_tokens == 3


async def test_characters_cut_by_chunks_come_out_whole(kind: Kind) -> None:
    async with opened(kind, variant="split") as (_, backend):
        text, completed = await ask(backend)
    assert text == ANSWER
    assert completed.completion_tokens == 10


async def test_many_at_once_get_each_its_own(kind: Kind) -> None:
    async with opened(kind, token_delay_s=0.002) as (server, backend):

        async def one(number: int) -> None:
            messages = (Message("user", f"marker-{number}"),)
            text, _ = await ask(backend, messages)
            assert text == f"You said: marker-{number}"

        async with trio.open_nursery() as nursery:
            for number in range(20):
                nursery.start_soon(one, number)
    assert len(server.requests) == 20


async def test_missing_usage_is_none(kind: Kind) -> None:
    async with opened(kind, variant="no_usage") as (_, backend):
        _, completed = await ask(backend)
    assert (completed.prompt_tokens, completed.completion_tokens) == (None, None)


async def test_calls_of_tools_are_an_empty_answer(kind: Kind) -> None:
    async with opened(kind, variant="tool_calls") as (_, backend):
        text, completed = await ask(backend)
    assert text == ""
    assert completed.finish_reason == "stop"


async def test_an_endless_answer_is_cut_and_hung_up_on(kind: Kind) -> None:
    async with opened(kind, variant="endless") as (server, backend):
        text, completed = await ask(backend, options=GenerateOptions(max_tokens=10))
        await server.wait_client_closed()
    assert completed.finish_reason == "length"
    assert 10 * 64 < len(text) < 10 * 64 + 1200


# The model: named, or the server's first one.


async def test_models(kind: Kind) -> None:
    async with opened(kind, models=("one", "two")) as (_, backend):
        assert await backend.models() == ("one", "two")


async def test_an_empty_model_is_the_first_one_looked_up_once(kind: Kind) -> None:
    async with opened(kind, model="") as (server, backend):
        assert backend.model == ""
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(ask, backend)
        assert backend.model == "stand-in"
    assert [request.method for request in server.requests].count("GET") == 1
    assert {request.body["model"] for request in server.requests if request.body} == {"stand-in"}


async def test_a_failed_look_up_is_tried_again(kind: Kind) -> None:
    async with opened(kind, model="", models_variant="failing") as (server, backend):
        with pytest.raises(LLMUnavailable, match="HTTP 500"):
            await ask(backend)
        server.models_variant = "ok"
        await ask(backend)


async def test_a_server_that_came_back_with_another_model_is_asked_for_it_again(kind: Kind) -> None:
    """A server that is restarted, as llama.cpp is to change its model."""
    async with opened(kind, model="") as (server, backend):
        server.variant = lambda body: "ok" if body["model"] in server.models else "not_found"
        await ask(backend)
        server.models = ("another",)
        with pytest.raises(LLMUnavailable, match="no model 'stand-in'"):
            await ask(backend)
        assert backend.model == "stand-in"
        async with trio.open_nursery() as nursery:
            for _ in range(3):
                nursery.start_soon(ask, backend)
        assert backend.model == "another"
    assert [request.method for request in server.requests].count("GET") == 2


@pytest.mark.parametrize("asked_for", [None, "its own"])
async def test_a_model_that_was_set_or_asked_for_is_not_looked_up_when_it_is_missing(
    kind: Kind, asked_for: str | None
) -> None:
    async with opened(kind, model="stand-in", variant="not_found") as (server, backend):
        for _ in range(2):
            with pytest.raises(LLMUnavailable, match="no model"):
                await ask(backend, options=GenerateOptions(max_tokens=9, model=asked_for))
        assert backend.model == "stand-in"
    assert [request.method for request in server.requests] == ["POST", "POST"]


async def test_another_models_absence_says_nothing_of_the_looked_up_one(kind: Kind) -> None:
    async with opened(kind, model="") as (server, backend):
        await ask(backend)
        server.variant = "not_found"
        with pytest.raises(LLMUnavailable, match="no model 'its own'"):
            await ask(backend, options=GenerateOptions(max_tokens=9, model="its own"))
        server.variant = "busy"
        with pytest.raises(LLMUnavailable, match="is busy"):
            await ask(backend)
        server.variant = "ok"
        await ask(backend)
    assert [request.method for request in server.requests].count("GET") == 1


async def test_the_request_may_name_a_model(kind: Kind) -> None:
    async with opened(kind, model="") as (server, backend):
        _, completed = await ask(backend, options=GenerateOptions(max_tokens=9, model="other"))
    assert completed.model == "other"
    assert [request.body["model"] for request in server.requests] == ["other"]


async def test_a_server_without_models(kind: Kind) -> None:
    async with opened(kind, model="", models=()) as (_, backend):
        with pytest.raises(LLMUnavailable, match="has no model yet"):
            await ask(backend)


# Failures: LLMUnavailable with a sentence for people, whatever the server does.


@pytest.mark.parametrize(
    ("variant", "words"),
    [
        ("not_found", "has no model 'stand-in' (HTTP 404): model 'stand-in' not found"),
        ("failing", "failed (HTTP 500): out of memory"),
        ("busy", "is busy (HTTP 503): try later"),
        ("garbage", "sent something that is no valid answer"),
        ("half_line", "sent something that is no valid answer"),
        ("closed_midway", "broke off its answer"),
        ("bad_utf8", "no UTF-8"),
        ("no_end", "ended its answer halfway"),
        ("error_in_band", "failed: the runner has terminated"),
    ],
)
async def test_failures(kind: Kind, variant: Variant, words: str) -> None:
    async with opened(kind, variant=variant) as (server, backend):
        with pytest.raises(LLMUnavailable) as caught:
            await ask(backend)
        assert words in caught.value.message
        assert caught.value.message.isprintable()
        assert caught.value.retry_after_s == (7.0 if variant == "busy" else None)
        # A failure is of one request only.
        server.variant = "ok"
        assert (await ask(backend))[0] == ANSWER


async def test_what_was_said_before_a_failure_was_delivered(kind: Kind) -> None:
    async with opened(kind, variant="closed_midway") as (_, backend):
        text = ""

        async def listen() -> None:
            nonlocal text
            async with backend.generate(MESSAGES, OPTIONS) as events:
                async for event in events:
                    assert isinstance(event, Delta)
                    text += event.text

        with pytest.raises(LLMUnavailable):
            await listen()
    assert text
    assert ANSWER.startswith(text)


async def test_nobody_listens(kind: Kind) -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    async with new_client() as client:
        backend = backend_for(kind, client, f"http://127.0.0.1:{port}")
        with trio.fail_after(5):
            with pytest.raises(LLMUnavailable, match=f"127.0.0.1:{port} cannot be reached"):
                await ask(backend)
            with pytest.raises(LLMUnavailable, match="cannot be reached"):
                await backend.models()


RAW: dict[str, Callable[[], Iterable[bytes]]] = {
    "line without end": lambda: (b"x" * 65536 for _ in range(10**9)),
    "event without end": lambda: (b"data: " + b"x" * 60000 + b"\n" for _ in range(10**9)),
    "deep": lambda: [b'data: {"usage":' + b"[" * 500_000 + b"\n\n"],
    "deep line": lambda: [b'{"eval_count":' + b"[" * 500_000 + b"\n"],
    "wrong types": lambda: [b'data: {"choices": [{"delta": {"content": 5}}]}\n\n'],
    "wrong types in a line": lambda: [b'{"message": {"content": 5}}\n'],
    "half a surrogate pair": lambda: [b'data: {"choices": [{"delta": {"content": "\\ud83d"}}]}\n\n'],
    "half a surrogate pair in a line": lambda: [b'{"message": {"content": "\\ud83d"}}\n'],
    "a list": lambda: [b"[1, 2]\n", b"data: [1, 2]\n\n"],
    "nothing": tuple,
    "blank": lambda: [b"\n\r\n\n"],
    "page": lambda: [b"<html><body>Log in to the hotel's network</body></html>\n"],
}


@pytest.mark.parametrize("raw", RAW)
async def test_hostile_bytes_are_unavailable_and_nothing_else(kind: Kind, raw: str) -> None:
    def frames(body: object) -> Iterator[bytes]:
        yield from RAW[raw]()

    async with opened(kind, variant="raw", frames=frames) as (server, backend):
        with pytest.raises(LLMUnavailable):
            await ask(backend)
        # What breaks the rules in the middle is hung up on; only a whole answer keeps the connection.
        await server.wait_connections(len(pool_of(backend)))


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "gave no answer"),
        (b"220 mail.example ESMTP\r\n\r\n", "gave no answer"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 200_000, "gave no answer"),
        (b"HTTP/1.1 307 Go\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n", "HTTP 307"),
        (b"HTTP/1.1 401 No\r\nContent-Length: 0\r\n\r\n", "refused the credentials (HTTP 401)."),
        (b"HTTP/1.1 500 Oh\r\nContent-Length: 99\r\n\r\nwill hang", "failed (HTTP 500)."),
        (b"HTTP/1.1 502 Oh\r\nContent-Length: 13\r\n\r\n<html></html>", "failed (HTTP 502)."),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\nthis is no gzip", "compressed its answer"),
    ],
)
async def test_servers_that_are_none(
    kind: Kind, answer: bytes, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upstream, "ERROR_BODY_TIMEOUT_S", 0.05)
    async with new_client() as client, open_raw_server(answer, hang=b"hang" in answer) as (url, _):
        backend = backend_for(kind, client, url)
        with pytest.raises(LLMUnavailable) as caught:
            await ask(backend)
        assert words in caught.value.message


async def test_a_list_of_models_without_end(kind: Kind) -> None:
    async with opened(kind, models=("m" * 2_000_000,)) as (_, backend):
        with pytest.raises(LLMUnavailable, match="more than 1048576 bytes"):
            await backend.models()


@pytest.mark.parametrize(
    "url", ["", "127.0.0.1:11434", "ftp://host", "http://", "http://[::1", "http://h/?a=b"]
)
async def test_an_unusable_base_url(kind: Kind, url: str) -> None:
    async with new_client() as client:
        with pytest.raises(SettingsError, match=r"llm\.base_url"):
            backend_for(kind, client, url)


# Time and clean-up.


@pytest.mark.parametrize("variant", ["hang", "hang_midway"])
async def test_cancelling_closes_the_upstream_connection_within_250_ms(kind: Kind, variant: Variant) -> None:
    async with opened(kind, variant=variant) as (server, backend):
        tasks_before = None
        cancelled_at = 0.0
        outcome: BaseException | None = None

        async def generation() -> None:
            nonlocal outcome
            try:
                await ask(backend)
            except BaseException as exc:
                outcome = exc
                raise

        async with trio.open_nursery() as nursery:
            await trio.testing.wait_all_tasks_blocked()
            tasks_before = trio.lowlevel.current_statistics().tasks_living
            nursery.start_soon(generation)
            await server.wait_requests(1)
            if variant == "hang_midway":
                await server.wait_tokens(5)
            await trio.testing.wait_all_tasks_blocked()
            cancelled_at = trio.current_time()
            nursery.cancel_scope.cancel()
        assert type(outcome) is trio.Cancelled
        noticed_at = await server.wait_client_closed()
        assert noticed_at - cancelled_at < 0.25
        await server.wait_connections(0)
        await trio.testing.wait_all_tasks_blocked()
        assert trio.lowlevel.current_statistics().tasks_living == tasks_before
        assert pool_of(backend) == []


async def test_cancelling_while_the_model_is_looked_up(kind: Kind) -> None:
    async with opened(kind, model="", models_variant="hang") as (server, backend):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(ask, backend)
            nursery.start_soon(ask, backend)
            await server.wait_requests(1)
            nursery.cancel_scope.cancel()
        await server.wait_connections(0)
        server.models_variant = "ok"
        await ask(backend)


@pytest.mark.parametrize("variant", ["slow", "endless", "hang_midway"])
async def test_leaving_the_block_hangs_up(kind: Kind, variant: Variant) -> None:
    async with opened(kind, variant=variant) as (server, backend):
        async with backend.generate(MESSAGES, OPTIONS) as events:
            async for _ in events:
                break
        left_at = trio.current_time()
        assert await server.wait_client_closed() - left_at < 0.25
        assert [event async for event in events] == []
        assert pool_of(backend) == []


async def test_leaving_the_block_before_reading(kind: Kind) -> None:
    async with opened(kind, variant="hang_midway") as (server, backend):
        async with backend.generate(MESSAGES, OPTIONS):
            pass
        await server.wait_connections(0)


async def test_an_exception_of_the_callers_passes_through(kind: Kind) -> None:
    async with opened(kind, variant="hang_midway") as (server, backend):

        async def stumble() -> None:
            async with backend.generate(MESSAGES, OPTIONS) as events:
                async for _ in events:
                    raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await stumble()
        await server.wait_client_closed()


async def test_a_finished_connection_is_used_again(kind: Kind) -> None:
    async with opened(kind) as (server, backend):
        for _ in range(3):
            await ask(backend)
        await backend.models()
        assert server.connections_made == 1
        await backend._client.aclose()
        await server.wait_connections(0)


async def test_closing_the_client_ends_what_runs(kind: Kind) -> None:
    async with opened(kind, variant="hang_midway") as (server, backend):
        async with trio.open_nursery() as nursery:

            async def generation() -> None:
                with pytest.raises(LLMUnavailable):
                    await ask(backend)

            nursery.start_soon(generation)
            await server.wait_tokens(1)
            await trio.testing.wait_all_tasks_blocked()
            await backend._client.aclose()
        await server.wait_connections(0)
        with pytest.raises(LLMUnavailable, match="stopping"):
            await ask(backend)


# Secrets.


async def test_a_password_in_the_base_url_stays_out_of_sight(
    kind: Kind, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    refusal = DIALECTS[kind].frame(DIALECTS[kind].error("no access for hunter2 " + "x" * 500))
    async with opened(kind, frames=lambda body: [refusal]) as (server, _), new_client() as client:
        backend = backend_for(kind, client, server.base_url.replace("http://", "http://me:hunter2@"))
        await ask(backend)
        server.variant = "raw"
        with pytest.raises(LLMUnavailable) as caught:
            await ask(backend)
    assert server.requests[0].headers["authorization"] == "Basic bWU6aHVudGVyMg=="
    assert "no access for ***" in caught.value.message
    assert len(caught.value.message) < 300
    seen = caplog.text + repr(backend) + "".join(traceback.format_exception(caught.value))
    assert "POST" in caplog.text
    assert "hunter2" not in seen
    assert "bWU6" not in seen


async def test_a_bad_base_url_with_a_password_is_not_shown(kind: Kind) -> None:
    async with new_client() as client:
        with pytest.raises(SettingsError) as caught:
            backend_for(kind, client, "htp://me:hunter2@host")
    assert "hunter2" not in str(caught.value)
