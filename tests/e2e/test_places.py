"""Places and what goes with them: free again at once however a client leaves, nothing left of the dead, and
the living are answered whatever else there is to do."""

from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path

import pytest
import trio

from persona.llm.backend import Delta, Event, GenerateOptions, Message
from persona.testing import settings_with
from persona.transport.connection import MAX_RATE_REFUSALS_PER_MINUTE
from tests.e2e.abusers import CONTINUATION, PING, PONG, TEXT
from tests.e2e.siege import (
    ENGINES,
    Bare,
    Besieged,
    Held,
    back_to,
    bare_client,
    besieged,
    knocking,
    status,
    until,
)
from tests.transport.house import House

BIG = "x" * 30_000
SLOW_MODEL = {"scripted_first_token_s": 0.05, "scripted_tokens_per_s": 2.0}


async def admitted(port: int) -> None:
    """A newcomer asks until it is let in."""
    while True:
        async with knocking(port) as bare:
            head = await status(bare)
            if head.startswith(b"HTTP/1.1 101"):
                await bare.alive()
                return
            assert head.startswith(b"HTTP/1.1 503")
        await trio.sleep(0.02)


# Ways to leave. Each returns in the moment in which the server can know of it.


async def close_frame(client: Bare, _neighbour: Bare, _siege: Besieged) -> None:
    await client.leave()


async def end_of_stream(client: Bare, _neighbour: Bare, _siege: Besieged) -> None:
    await client.stream.aclose()


async def reset(client: Bare, _neighbour: Bare, _siege: Besieged) -> None:
    client.vanish()


async def reset_in_a_frame(client: Bare, _neighbour: Bare, _siege: Besieged) -> None:
    await client.stream.send_all(b"\x81\xfe\x0f")
    client.vanish()


async def too_slow_a_write(client: Bare, _neighbour: Bare, siege: Besieged) -> None:
    """Asks until the answers fill the kernels' buffers."""
    leaver = list(siege.server.listener.connections.values())[1]
    while not leaver.pending_bytes:
        await client.ask("system.ping", {"payload": BIG})
        await trio.lowlevel.checkpoint()
    await trio.sleep(siege.server.settings.limits.write_deadline_s)


async def too_much_waiting(client: Bare, neighbour: Bare, _siege: Besieged) -> None:
    """Reads nothing of a topic on which much is going on."""
    await client.ask("events.subscribe", {"topics": ["news"]})
    await client.answer()
    dropped = 0
    while not dropped:
        await neighbour.ask("system.broadcast", {"topic": "news", "type": "x", "data": BIG})
        dropped = (await neighbour.answer())["result"]["dropped"]


async def a_broken_frame(client: Bare, _neighbour: Bare, _siege: Besieged) -> None:
    await client.stream.send_all(b"\x83\x80\0\0\0\0")


async def too_large_a_message(client: Bare, _neighbour: Bare, siege: Besieged) -> None:
    await client.send(TEXT, b"x" * (siege.server.settings.limits.max_message_bytes + 1))


async def a_flood(client: Bare, _neighbour: Bare, siege: Besieged) -> None:
    await client.send(TEXT, is_final=False)
    for _ in range(siege.server.settings.limits.control_rate_limit_burst):
        await client.send(CONTINUATION, is_final=False)


async def a_rate_ignored(client: Bare, _neighbour: Bare, siege: Besieged) -> None:
    limits = siege.server.settings.limits
    for _ in range(limits.rate_limit_burst + MAX_RATE_REFUSALS_PER_MINUTE + 1):
        await client.send(TEXT, b"{}")


async def memory_wanted(_client: Bare, _neighbour: Bare, siege: Besieged) -> None:
    """The one that was heard of last stays."""
    siege.server.listener.shed(1)


CAUSES: dict[Callable[[Bare, Bare, Besieged], Awaitable[None]], str] = {
    close_frame: "client",
    end_of_stream: "lost",
    reset: "lost",
    reset_in_a_frame: "lost",
    too_slow_a_write: "write_deadline",
    too_much_waiting: "slow_consumer",
    a_broken_frame: "protocol",
    too_large_a_message: "too_big",
    a_flood: "flood",
    a_rate_ignored: "rate_limit",
    memory_wanted: "shed",
}


@pytest.mark.parametrize("leave", CAUSES)
@pytest.mark.parametrize("engine", ENGINES)
async def test_a_place_that_frees_is_to_be_had_within_a_second(
    engine: str, leave: Callable[[Bare, Bare, Besieged], Awaitable[None]], tmp_path: Path
) -> None:
    """Also where the one that leaves does not answer a goodbye, and reads nothing."""
    limits = {
        "max_connections": 2,
        "write_deadline_s": 0.3,
        "control_rate_limit_burst": 20,
        "rate_limit_per_minute": 100 if leave is a_rate_ignored else 0,
    }
    async with (
        besieged(tmp_path, engine, limits=limits) as siege,
        bare_client(siege.port) as neighbour,
        bare_client(siege.port, receive_buffer_bytes=4096) as leaver,
    ):
        async with knocking(siege.port) as late:
            assert (await status(late)).startswith(b"HTTP/1.1 503")
        await neighbour.alive()
        await leave(leaver, neighbour, siege)
        with trio.fail_after(1):
            await admitted(siege.port)
        await until(lambda: sum(siege.closed.values()) == 2)
        # The newcomer has gone too, without a word.
        assert Counter(siege.closed) == Counter([CAUSES[leave], "lost"])
        await neighbour.alive()


# Who is dead


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
async def test_a_dead_peer_is_gone_in_time_with_everything_of_its(engine: str, tmp_path: Path) -> None:
    """Its kernel goes on taking what comes, as that of a stopped process does."""
    interval_s = timeout_s = 0.5
    limits = {"ping_interval_s": interval_s, "ping_timeout_s": timeout_s}
    async with (
        besieged(tmp_path, engine, limits=limits, llm={**SLOW_MODEL, "max_concurrency": 1}) as siege,
        bare_client(siege.port) as living,
        trio.open_nursery() as nursery,
    ):
        # The database opens the last of its files with the first turn.
        await living.ask("persona.switch", ["aria"])
        await living.answer()
        await living.ask("conversation.history")
        await living.answer()
        nursery.start_soon(answer_pings, living)
        value = siege.server.metrics.value
        before = await Held.settled()
        async with bare_client(siege.port) as dead:
            await dead.ask("events.subscribe", {"topics": ["news"]})
            # One that has the model, and one that waits for it.
            await dead.ask("persona.chat", {"message": "Tell me a long story", "persona_id": "aria"}, id=2)
            await dead.ask("persona.chat", {"message": "Tell me a long story", "persona_id": "kira"}, id=3)
            await until(lambda: value("llm_running") == value("llm_queued") == 1)
            started = trio.current_time()
            await until(lambda: siege.connections == 1)
            assert trio.current_time() - started < interval_s + timeout_s + 2
            assert value("llm_running") == value("llm_queued") == 0
            assert len(siege.server.sessions) == 1
            # Of what is left, one socket is the dead peer's own.
            await back_to(Held(before.tasks, before.descriptors + 1))
        # The same interval went by many times for the other one.
        await trio.sleep(interval_s + timeout_s)
        assert siege.closed == {"ping_timeout": 1}
        assert siege.connections == 1
        nursery.cancel_scope.cancel()


async def answer_pings(client: Bare) -> None:
    while True:
        opcode, payload = await client.receive()
        if opcode == PING:
            await client.send(PONG, payload)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
async def test_a_peer_slower_than_the_interval_is_not_dead(engine: str, tmp_path: Path) -> None:
    limits = {"ping_interval_s": 0.2, "ping_timeout_s": 2.0}
    async with besieged(tmp_path, engine, limits=limits) as siege, bare_client(siege.port) as client:
        for _ in range(4):
            opcode, payload = await client.receive()
            assert opcode == PING
            await trio.sleep(0.7)
            await client.send(PONG, payload)
        await client.alive()


# The living


@asynccontextmanager
async def open_to_all(engine: str, **limits: float) -> AsyncIterator[tuple[House, int]]:
    """A house with a real door; its port."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        house = House(settings_with(limits=limits, server={"engine": engine}), nursery)
        await nursery.start(house.listener.serve, [listener])
        yield house, listener.socket.getsockname()[1]
        nursery.cancel_scope.cancel()


class Endless:
    """A model that says something a hundred times a second until it is cut."""

    provider = model = "endless"

    @asynccontextmanager
    async def generate(
        self, _messages: tuple[Message, ...], _options: GenerateOptions
    ) -> AsyncIterator[AsyncIterator[Event]]:
        async with aclosing(self._speech()) as speech:
            yield speech

    async def models(self) -> tuple[str, ...]:
        return (self.model,)

    async def context_tokens(self, _model: str) -> None:
        """It has no end."""

    async def _speech(self) -> AsyncGenerator[Event, None]:
        while True:
            yield Delta("on and on ")
            await trio.sleep(0.01)


async def ping_pong(client: Bare) -> None:
    """A ping frame is answered within a second."""
    with trio.fail_after(1):
        await client.send(PING, b"there?")
        assert await client.pong() == b"there?"


@pytest.mark.parametrize("engine", ENGINES)
async def test_pings_are_answered_while_every_worker_and_handler_is_busy(engine: str) -> None:
    async with (
        open_to_all(engine, max_in_flight=16, handler_pool_size=16) as (house, port),
        bare_client(port) as busy,
        bare_client(port) as idle,
    ):
        for n in range(16):
            await busy.ask("t.sleep", {"seconds": 600}, id=n)
        await until(lambda: house.value("handlers_running") == 16)
        for client in (busy, idle):
            await ping_pong(client)
            with trio.fail_after(1):
                await client.ask("t.now", id="now")
                assert (await client.answer(id="now"))["result"] == "now"
        # It was busy indeed.
        await busy.ask("t.sleep", id=16)
        assert (await busy.answer(id=16))["error"]["data"]["reason"] == "overloaded"


@pytest.mark.parametrize("engine", ENGINES)
async def test_pings_are_answered_while_sixteen_streams_run(engine: str, tmp_path: Path) -> None:
    llm = {"max_concurrency": 16}
    async with (
        besieged(tmp_path, engine, llm=llm, backend=Endless()) as siege,
        bare_client(siege.port) as client,
    ):
        for n in range(16):
            await client.ask("persona.create", {"name": f"P{n}", "description": "x"}, id="new")
            assert "result" in await client.answer(id="new")
        for n in range(16):
            chat = {"message": "Tell me everything", "persona_id": f"P{n}"}
            await client.ask("persona.chat_stream", chat, id=n)
        await until(lambda: siege.server.metrics.value("llm_running") == 16)
        for _ in range(5):
            await ping_pong(client)
            with trio.fail_after(1):
                await client.alive()
        assert siege.server.metrics.value("llm_running") == 16


@pytest.mark.parametrize("engine", ENGINES)
async def test_pings_are_answered_while_much_waits_to_be_sent(engine: str, tmp_path: Path) -> None:
    """To a client that was slow and reads now: what was asked before the ping comes first."""
    async with besieged(tmp_path, engine) as siege, bare_client(siege.port) as client:
        while not siege.server.metrics.value("reads_paused_total"):
            await client.ask("system.ping", {"payload": BIG})
            await trio.lowlevel.checkpoint()
        await ping_pong(client)
