"""How a server's refusals are read."""

import email.utils
import time

import msgspec
import pytest
import trio

from persona.errors import LLMUnavailable
from persona.llm.upstream import Upstream, new_client
from tests.llm.asking import open_raw_server


async def refusal(head: str, body: bytes = b"") -> LLMUnavailable:
    """What a GET answered with this status and header lines raises."""
    answer = f"HTTP/1.1 {head}\r\nContent-Length: {len(body)}\r\n\r\n".encode() + body
    async with new_client() as client, open_raw_server(answer) as (url, _):
        with pytest.raises(LLMUnavailable) as caught:
            await Upstream(client, label="It", base_url=url, api_key="sk-1").get("/x", dict)
    return caught.value


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("7", 7.0),
        ("0.5", 0.5),
        ("-3", 0.0),
        ("1e9", 3600.0),
        ("nan", None),
        ("inf", None),
        ("soon", None),
        ("", None),
        ("Sat, 01 Jan 2000 00:00:00 GMT", 0.0),
        ("Sat, 99 Jan 2000 00:00:00 GMT", None),
    ],
)
@pytest.mark.parametrize("status", ["503 Busy", "429 Slow down"])
async def test_retry_after(status: str, value: str, seconds: float | None) -> None:
    error = await refusal(f"{status}\r\nRetry-After: {value}")
    assert error.retry_after_s == seconds
    assert "is busy" in error.message


@pytest.mark.parametrize(
    ("status", "is_transient"),
    [
        ("503 Busy", True),
        ("429 Slow down", True),
        ("502 Bad gateway", True),
        ("504 Gateway timeout", True),
        ("500 Oh", False),
        ("404 Not here", False),
        ("401 Who are you", False),
        ("400 What", False),
        ("302 Elsewhere", False),
    ],
)
async def test_what_may_pass_and_what_will_not(status: str, is_transient: bool) -> None:
    assert (await refusal(status)).is_transient is is_transient


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{", b"nonsense\r\n\r\n"]
)
async def test_a_connection_that_breaks_may_pass(answer: bytes) -> None:
    async with new_client() as client, open_raw_server(answer) as (url, _):
        with pytest.raises(LLMUnavailable) as caught:
            await Upstream(client, label="It", base_url=url).get("/x", dict)
    assert caught.value.is_transient


async def test_nobody_listening_may_pass() -> None:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listener.socket.getsockname()[1]
    await listener.aclose()
    async with new_client() as client:
        with pytest.raises(LLMUnavailable, match="is it running") as caught:
            await Upstream(client, label="It", base_url=f"http://127.0.0.1:{port}").get("/x", dict)
    assert caught.value.is_transient


async def test_retry_after_as_a_date() -> None:
    error = await refusal("503 Busy\r\nRetry-After: " + email.utils.formatdate(time.time() + 60, usegmt=True))
    assert error.retry_after_s == pytest.approx(60, abs=5)


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"plain words", ": plain words"),
        (b'{"error": "words"}', ": words"),
        (b'{"error": {"message": "words", "code": 5}}', ": words"),
        (b'{"object": "error", "message": "words"}', ": words"),
        (b'{"detail": "words"}', ": words"),
        (b'"words"', ': "words"'),
        (b'{"detail": [{"loc": 1}]}', "."),
        (b'{"error": {"error": {"error": {"error": "deep"}}}}', "."),
        (b"<!DOCTYPE html><p>words", "."),
        (b"", "."),
        (b"\xff\x1b[31m  words\x00\n\xe2\x80\xaeagain", ": \ufffd [31m words again"),
        (b"key sk-1 is wrong", ": key *** is wrong"),
        (b"w" * 100_000, ": " + "w" * 199 + "…"),
    ],
)
async def test_the_servers_own_words(body: bytes, words: str) -> None:
    error = await refusal("500 Oh", body)
    assert error.message.endswith("failed (HTTP 500)" + words)


async def test_a_host_name_no_dns_can_hold() -> None:
    async with new_client() as client:
        upstream = Upstream(client, label="It", base_url="http://" + "a" * 70 + ".test")
        with pytest.raises(LLMUnavailable) as caught:
            await upstream.get("/x", dict)
    assert not caught.value.is_transient


async def test_text_that_is_no_unicode() -> None:
    async with new_client() as client:
        upstream = Upstream(client, label="It", base_url="http://127.0.0.1:1")
        with pytest.raises(LLMUnavailable):
            async with upstream.request("POST", "/x", body={"text": "\ud800"}):
                pass


async def test_get_takes_only_what_it_was_told() -> None:
    async with new_client() as client, open_raw_server(b"HTTP/1.1 200 OK\r\n\r\n[1]") as (url, _):
        assert await Upstream(client, label="It", base_url=url).get("/x", list) == [1]
    async with new_client() as client, open_raw_server(b"HTTP/1.1 200 OK\r\n\r\n[1]") as (url, _):
        with pytest.raises(LLMUnavailable, match="no valid answer") as caught:
            await Upstream(client, label="It", base_url=url).get("/x", dict)
    assert isinstance(caught.value.__cause__, msgspec.ValidationError)
