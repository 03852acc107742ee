"""Many sockets at once: nobody ever sees a word of somebody else's."""

import functools
import json
import os
import random
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing
from hypothesis import given, settings
from hypothesis import strategies as st
from trio.testing import MockClock
from trio_websocket import wrap_client_stream

from persona.app import open_listeners
from persona.app import open_server as open_real_server
from persona.assembly import Server
from persona.llm.backend import Completed, Delta, Event, GenerateOptions, Message
from persona.llm.select import open_backend
from persona.storage.pool import open_database
from persona.testing import open_server, settings_with
from tests.e2e.exchanges import llm_settings
from tests.e2e.party import NONCE, Party, echo_with_name
from tests.llm.standin import StandIn, open_standin
from tests.serving import Wire

pytestmark = pytest.mark.usefixtures("nothing_crashed")

# Two hundred real sockets.


@asynccontextmanager
async def watched_server(file: Path, **sections: Any) -> AsyncIterator[tuple[Server, int]]:
    """A server on a real socket with a real file, to be looked into; and its port."""
    config = settings_with(database={"path": str(file)}, **sections)
    (listener,) = await open_listeners("127.0.0.1", 0)
    async with (
        listener,
        open_database(file) as database,
        open_backend(config.llm) as backend,
        open_real_server(config, database=database, backend=backend) as server,
        trio.open_nursery() as nursery,
    ):
        stop, listening = trio.Event(), trio.Event()
        nursery.start_soon(  # noqa: ASYNC113 - it says so when it listens
            functools.partial(server.serve, [listener], stop=stop.wait, on_listening=listening.set)
        )
        await listening.wait()
        yield server, listener.socket.getsockname()[1]
        stop.set()


@asynccontextmanager
async def party_on(port: int, nonce: str) -> AsyncIterator[tuple[Party, trio.SocketStream]]:
    async with await trio.open_tcp_stream("127.0.0.1", port) as stream, trio.open_nursery() as nursery:
        with trio.fail_after(60):
            socket = await wrap_client_stream(nursery, stream, f"127.0.0.1:{port}", "/mcp")
        party = Party(nonce, Wire(socket))
        nursery.start_soon(party.listen)
        yield party, stream
        with trio.move_on_after(5):
            await socket.aclose()
        nursery.cancel_scope.cancel()


def counts(server: Server) -> dict[str, float]:
    """All that must be as before once everybody has gone."""
    return {
        "tasks": trio.lowlevel.current_statistics().tasks_living,
        "files": len(os.listdir("/proc/self/fd")),  # noqa: PTH208
        "sessions": len(server.sessions),
        "in flight": server.sessions.in_flight,
        "connections": len(server.listener.connections),
        **{
            name: server.metrics.value(name)
            for name in ("connections", "handshakes", "handlers_running", "llm_running", "llm_queued")
        },
    }


async def settled_counts(server: Server, standin: StandIn, port: int) -> dict[str, float]:
    """Counts at rest. The client of the model keeps idle connections for two seconds and lets
    them go when it is used next, so one chat, and then there is one of them."""
    await trio.sleep(2.1)
    async with party_on(port, "nonce-0-00000000") as (party, _):
        party.persona = "Aria"
        await party.chat("chat")
        with trio.fail_after(10):
            await party.all_answered()
    with trio.fail_after(10):
        await standin.wait_connections(1)
        while counts(server)["connections"]:  # noqa: ASYNC110
            await trio.sleep(0.01)
    await trio.testing.wait_all_tasks_blocked(0.05)
    return counts(server)


SOCKETS = 200
VANISHING = 20
PERSONAS = ("Aria", "Kira", "Bruno", "Céleste", "Dmitri", "Eun-ji")


async def visit(port: int, number: int, *, vanishes: bool, all_here: "Gathering") -> None:
    """One socket's life: choose somebody, say many things at once, and go, politely or not."""
    dice = random.Random(number)
    nonce = f"nonce-{number}-{dice.randrange(16**8):08x}"
    async with party_on(port, nonce) as (party, stream):
        party.persona = dice.choice(PERSONAS)
        party.asked["switch"] = "switch"
        await party.wire.start("persona.switch", {"persona_id": party.persona.upper()}, id="switch")
        await all_here.wait()
        deeds: list[Callable[[], Awaitable[None]]] = [
            functools.partial(party.chat, "chat"),
            functools.partial(party.chat, "chat_stream"),
            functools.partial(party.chat, "stream_true"),
            party.batch,
            party.notify,
            party.ping,
        ]
        dice.shuffle(deeds)
        for deed in deeds:
            await deed()
        if vanishes:
            await trio.sleep(dice.random() * 3)
            await trio.aclose_forcefully(stream)
            return
        with trio.fail_after(120):
            await party.all_answered()
            # Notifications give no sign when they are done; the history does.
            while True:
                await party.histories()
                await party.all_answered()
                (turns,) = (f["result"]["turns"] for f in party.frames if is_history(f, party.persona))
                if len(turns) == 2 * len(party.lines[party.persona]):
                    break
                party.frames = [frame for frame in party.frames if not is_history(frame, party.persona)]
                await trio.sleep(0.5)
        party.check()
        party.check_histories()


def is_history(frame: Any, persona: str) -> bool:
    return isinstance(frame, dict) and frame.get("id") == f"all of {persona}"


class Gathering:
    """Everybody waits until everybody is there."""

    def __init__(self, size: int) -> None:
        self._missing = size
        self._complete = trio.Event()

    async def wait(self) -> None:
        self._missing -= 1
        if not self._missing:
            self._complete.set()
        await self._complete.wait()


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1])
async def test_two_hundred_sockets_chat_at_once_and_nothing_reaches_another(
    seed: int, tmp_path: Path
) -> None:
    def reply(body: dict[str, Any]) -> str:
        assert len(set(NONCE.findall(json.dumps(body)))) == 1, "two clients in one prompt"
        return echo_with_name(body["messages"][0]["content"], body["messages"][-1]["content"])

    async with (
        open_standin("ollama", reply=reply) as standin,
        watched_server(
            tmp_path / "p.db",
            llm=llm_settings(standin, max_concurrency=48, max_queue=2000, first_token_timeout_s=60.0),
            personas={"recovery_s": 0},
            # All of them choose at the same moment; being refused for want of a handler has tests of its own.
            limits={
                "rate_limit_per_minute": 0,
                "max_connections": SOCKETS + 1,
                "handler_pool_size": 2 * SOCKETS,
            },
        ) as (server, port),
    ):
        async with party_on(port, "nonce-0-00000000") as (host, _):
            for name in PERSONAS[2:]:
                params = {"name": name, "description": f"{name}, a guest"}
                host.asked[name] = "create"
                await host.wire.start("persona.create", params, id=name)
            with trio.fail_after(10):
                await host.all_answered()
        before = await settled_counts(server, standin, port)
        gathering = Gathering(SOCKETS)
        with trio.fail_after(240):
            async with trio.open_nursery() as nursery:
                for number in range(1, SOCKETS + 1):
                    nursery.start_soon(
                        functools.partial(
                            visit, port, number, vanishes=number <= VANISHING, all_here=gathering
                        )
                    )
        assert standin.open_connections > 1
        assert await settled_counts(server, standin, port) == before


# A few sockets, every interleaving Hypothesis can think of, in no time.


class EchoModel:
    """A backend that takes half a second to begin and a tenth for each word."""

    provider = "echo"
    model = "echo"

    @asynccontextmanager
    async def generate(
        self, messages: tuple[Message, ...], options: GenerateOptions
    ) -> AsyncIterator[AsyncIterator[Event]]:
        nonces = {nonce for message in messages for nonce in NONCE.findall(message.content)}
        assert len(nonces) == 1, "two clients in one prompt"
        async with aclosing(
            self._events(echo_with_name(messages[0].content, messages[-1].content))
        ) as events:
            yield events

    async def _events(self, answer: str) -> AsyncGenerator[Event, None]:
        await trio.sleep(0.5)
        words = re.findall(r"\s*\S+", answer)
        for word in words:
            await trio.sleep(0.1)
            yield Delta(word)
        yield Completed(finish_reason="stop", model=self.model, completion_tokens=len(words))

    async def context_tokens(self, model: str) -> int | None:
        return None

    async def models(self) -> tuple[str, ...]:
        return (self.model,)


CLIENTS = 4
Deed = str
DEEDS: tuple[Deed, ...] = (
    "chat",
    "chat_stream",
    "stream_true",
    "batch",
    "notify",
    "ping",
    "cancel_latest",
    "switch",
    "vanish",
)
steps = st.lists(
    st.tuples(
        st.integers(0, CLIENTS - 1),
        st.sampled_from(DEEDS),
        # Between the deeds; some fall into the instant in which a token comes or a turn ends.
        st.sampled_from([0.0, 0.0, 0.0, 0.1, 0.5, 0.55, 1.1, 3.0]),
    ),
    min_size=2,
    max_size=30,
)


@settings(max_examples=10, deadline=None)
@given(steps=steps, slots=st.integers(1, 3))
def test_no_interleaving_mixes_clients_up(steps: list[tuple[int, Deed, float]], slots: int) -> None:
    trio.run(play, steps, slots, clock=MockClock(autojump_threshold=0))


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(steps=steps, slots=st.integers(1, 3))
def test_none_of_many_interleavings_mixes_clients_up(
    steps: list[tuple[int, Deed, float]], slots: int
) -> None:
    trio.run(play, steps, slots, clock=MockClock(autojump_threshold=0))


async def play(steps: list[tuple[int, Deed, float]], slots: int) -> None:
    llm = {"max_concurrency": slots}
    async with (
        open_server(backend=EchoModel(), personas={"recovery_s": 0}, llm=llm) as server,
        trio.open_nursery() as nursery,
    ):
        parties, streams = [], []
        for number in range(CLIENTS):
            streams.append(server.connect_stream())
            socket = await wrap_client_stream(nursery, streams[-1], "localhost", "/mcp")  # type: ignore[arg-type]
            parties.append(Party(f"nonce-{number}-{number:08x}", Wire(socket), persona="Aria"))
            nursery.start_soon(parties[-1].listen)
        gone: set[int] = set()
        for number, deed, pause_s in steps:
            if number not in gone:
                await do(deed, parties[number], streams[number])
            if deed == "vanish":
                gone.add(number)
            await trio.sleep(pause_s)
        await trio.sleep(600)
        here = [party for number, party in enumerate(parties) if number not in gone]
        for party in here:
            await party.histories()
        await trio.sleep(10)
        for party in here:
            party.check()
            party.check_histories()
        assert server.server.sessions.in_flight == 0
        assert len(server.server.sessions) == len(here)
        for name in ("llm_running", "llm_queued", "handlers_running"):
            assert server.server.metrics.value(name) == 0, name
        nursery.cancel_scope.cancel()


async def do(deed: Deed, party: Party, stream: trio.abc.Stream) -> None:
    match deed:
        case "chat" | "chat_stream" | "stream_true":
            await party.chat(deed)
        case "batch":
            await party.batch()
        case "notify":
            await party.notify()
        case "ping":
            await party.ping()
        case "cancel_latest":
            await party.cancel_latest()
        case "switch":
            party.persona = "Kira" if party.persona == "Aria" else "Aria"
        case "vanish":
            await trio.aclose_forcefully(stream)
        case _:
            raise AssertionError(deed)
