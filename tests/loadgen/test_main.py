"""The command, over real sockets on loopback, against a server small enough to misbehave on purpose."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from click.testing import CliRunner, Result
from trio_websocket import ConnectionClosed, WebSocketRequest, serve_websocket

from loadgen.__main__ import is_loopback, lines, main
from loadgen.closed import Report
from persona.errors import PersonaError, RateLimited
from persona.rpc import jsonrpc

Answer = Callable[[Any], Any]


def echo(params: Any) -> Any:
    return {"pong": True, "payload": params["payload"], "time": "2026-01-01T00:00:00.000Z"}


@asynccontextmanager
async def serve(answer: Answer) -> AsyncIterator[str]:
    async def handle(request: WebSocketRequest) -> None:
        socket = await request.accept(subprotocol="mcp")
        try:
            while True:
                await socket.send_message(respond(await socket.get_message()).decode())
        except ConnectionClosed:
            pass

    def respond(frame: str | bytes) -> bytes:
        message = jsonrpc.decode(frame)
        assert isinstance(message, jsonrpc.Request)
        try:
            return jsonrpc.encode_result(message.id, answer(message.params))
        except PersonaError as exc:
            return jsonrpc.encode_error(message.id, exc)

    async with trio.open_nursery() as nursery:
        server = await nursery.start(serve_websocket, handle, "127.0.0.1", 0, None)
        yield f"ws://127.0.0.1:{server.port}/mcp"
        nursery.cancel_scope.cancel()


async def invoke(*args: str) -> Result:
    # The command brings its own trio loop, so it gets a thread.
    with trio.fail_after(30):
        return await trio.to_thread.run_sync(lambda: CliRunner().invoke(main, args))


async def run_against(answer: Answer, *args: str) -> Result:
    async with serve(answer) as url:
        return await invoke("--url", url, "--connections=3", "--duration=0.3", "--warmup=0.1", *args)


async def test_a_good_run_exits_0_and_prints_its_figures() -> None:
    result = await run_against(echo)
    assert result.exit_code == 0, result.output
    assert "connects   3 ok, 0 failed" in result.output
    assert " answered, 0 failed" in result.output
    assert "p99" in result.output
    assert "error" not in result.output


async def test_a_wrong_answer_fails_the_run() -> None:
    answered = 0

    def mix_up(params: Any) -> Any:
        nonlocal answered
        answered += 1
        return echo({"payload": "another's"} if answered == 5 else params)

    result = await run_against(mix_up)
    assert result.exit_code == 1
    assert "wrong_answer: 1 (" in result.output


async def test_rate_limiting_is_named_with_a_hint() -> None:
    def limit(_params: Any) -> Any:
        raise RateLimited("slow down", retry_after_s=0.05)

    result = await run_against(limit)
    assert result.exit_code == 1
    assert "rate_limited" in result.output
    assert "PERSONA_LIMITS_RATE_LIMIT_PER_MINUTE=0" in result.output
    assert "latency" not in result.output


async def test_a_server_that_is_down_is_an_error() -> None:
    async with serve(echo) as url:
        pass
    result = await invoke("--url", url, "--connections=2", "--duration=0.1", "--warmup=0")
    assert result.exit_code == 1
    assert "connects   0 ok, 2 failed" in result.output


async def test_the_chat_workload_asks_for_a_turn() -> None:
    def chat(params: Any) -> Any:
        assert params.keys() == {"message", "persona_id", "token_budget"}
        return {"response": "Well met", "persona_name": params["persona_id"]}

    result = await run_against(chat, "--method", "persona.chat")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    "url",
    [
        "ws://127.0.0.1:8000/mcp",
        "ws://127.9.9.9/",
        "ws://[::1]:8000/mcp",
        "ws://localhost:8000",
        "ws://LOCALHOST",
    ],
)
def test_what_is_loopback(url: str) -> None:
    assert is_loopback(url)


@pytest.mark.parametrize(
    "url",
    [
        "ws://192.168.1.2:8000/mcp",
        "ws://0.0.0.0:8000/mcp",
        "ws://example.org/mcp",
        "ws://localhost.example.org/mcp",
        "ws://127.0.0.1@example.org/mcp",
        "ws://127.0.0.1.example.org/mcp",
        "ws://[::1",
        "127.0.0.1:8000",
        "",
    ],
)
def test_what_is_not(url: str) -> None:
    assert not is_loopback(url)


def test_another_machine_is_refused_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_args: object) -> None:
        raise AssertionError("it connected")

    monkeypatch.setattr(trio, "run", never)
    result = CliRunner().invoke(main, ["--url", "ws://192.0.2.1:8000/mcp"])
    assert result.exit_code == 2
    assert "--allow-remote" in result.output


def test_another_machine_is_driven_when_asked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trio, "run", lambda *_args: Report())
    result = CliRunner().invoke(main, ["--url", "ws://192.0.2.1:8000/mcp", "--allow-remote"])
    assert result.exit_code == 1
    assert "0 answered" in result.output


@pytest.mark.parametrize("grouped", [False, True])
def test_an_interrupted_run_gives_no_figures(monkeypatch: pytest.MonkeyPatch, grouped: bool) -> None:
    def interrupt(*_args: object) -> None:
        raise BaseExceptionGroup("", [KeyboardInterrupt()]) if grouped else KeyboardInterrupt

    monkeypatch.setattr(trio, "run", interrupt)
    result = CliRunner().invoke(main, [])
    assert result.exit_code == 1
    assert "connects" not in result.output


def test_a_busy_load_generator_says_so() -> None:
    assert not any("bottleneck" in line for line in lines(Report(measured_s=2.0, cpu_s=1.0)))
    assert any("97%" in line and "bottleneck" in line for line in lines(Report(measured_s=2.0, cpu_s=1.94)))
