"""Bad clients: what each of them gets, what counts it, and that nothing of it stays.

In one process, so that tasks and descriptors can be counted. What others notice of it is measured in
`test_abuse_latency.py`.
"""

import resource
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import psutil
import pytest
import trio

from tests.e2e.abusers import ABUSES
from tests.e2e.siege import ENGINES, Held, back_to, bare_client, besieged, knocking, until
from tests.e2e.test_durability import QUICK, server_process
from tests.serving import Wire, dial

ANSWERED_WITHIN_S = 2.0
"""Under abuse, with the abuser in the same process: no measure, but no stall either."""


@attrs.frozen(kw_only=True)
class Case:
    """An abuse, what its sockets get, and what the metrics say of it."""

    fates: dict[str, int]
    refused: dict[str, int] = attrs.field(factory=dict)
    closed: dict[str, int] = attrs.field(factory=dict)
    limits: dict[str, Any] = attrs.field(factory=dict)


FLOOD = Case(fates={"1008": 1}, closed={"flood": 1})
CASES = {
    "slow_handshakes": Case(
        fates={"closed": 200}, refused={"timeout": 200}, limits={"handshake_timeout_s": 2.5}
    ),
    "half_open": Case(
        fates={"closed": 500, "http 503": 100},
        refused={"timeout": 500, "handshakes": 100},
        limits={"handshake_timeout_s": 2.5},
    ),
    "ping_flood": FLOOD,
    "pong_flood": FLOOD,
    "empty_continuations": FLOOD,
    "one_byte_fragments": FLOOD,
    "declared_lengths": Case(fates={"1009": 3}, closed={"too_big": 3}),
    "never_reads": Case(fates={"cut": 10}, closed={"write_deadline": 10}, limits={"write_deadline_s": 2.0}),
    "vanishing": Case(fates={"gone": 90}, refused={"vanished": 10}, closed={"lost": 80}),
    "message_flood": Case(fates={"1008": 1}, closed={"rate_limit": 1}, limits={"rate_limit_per_minute": 100}),
    "garbage": Case(fates={"1002": 10, "http 400": 10}, refused={"bad_request": 10}, closed={"protocol": 10}),
}


async def ping_on(wire: Wire, *, task_status: trio.TaskStatus[None]) -> None:
    """A client that goes on, whatever happens beside it."""
    await wire.alive()
    task_status.started()
    while True:
        with trio.fail_after(ANSWERED_WITHIN_S):
            await wire.alive()
        # No faster than the rate that one of the cases allows.
        await trio.sleep(0.7)


@pytest.mark.slow
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("name", CASES)
async def test_an_abuse_ends_as_it_should_and_leaves_nothing(
    name: str, engine: str, tmp_path: Path, nothing_crashed: None
) -> None:
    case = CASES[name]
    async with besieged(tmp_path, engine, limits=case.limits) as siege, dial(siege.url) as wire:
        async with trio.open_nursery() as nursery:
            await nursery.start(ping_on, wire)
            before = await Held.settled()
            with trio.fail_after(60):
                fates = await trio.to_thread.run_sync(
                    partial(ABUSES[name], siege.port, lambda: None), abandon_on_cancel=True
                )
            assert dict(fates) == case.fates
            await until(lambda: siege.connections == 1)
            await back_to(before)
            assert siege.server.metrics.value("handshakes") == 0
            nursery.cancel_scope.cancel()
        assert siege.refused == case.refused
        assert siege.closed == case.closed
        await wire.alive()


def test_every_abuse_is_tried() -> None:
    assert CASES.keys() == ABUSES.keys()


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="no system call to bound another process")
@pytest.mark.parametrize("engine", ENGINES)
async def test_a_server_without_descriptors_goes_on_and_recovers(engine: str, tmp_path: Path) -> None:
    """Who is in is served, and who comes waits in the backlog until there are some again."""
    async with server_process(tmp_path, **QUICK, PERSONA_SERVER_ENGINE=engine) as server:
        port = int(server.url.rsplit(":", 1)[1].split("/")[0])
        async with bare_client(port) as client:
            held = psutil.Process(server.process.pid).num_fds()
            bound = (held + 20, held + 20)
            resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, bound)
            async with AsyncExitStack() as pile:
                for _ in range(60):
                    await pile.enter_async_context(knocking(port))
                await until(lambda: psutil.Process(server.process.pid).num_fds() == held + 20)
                # Long enough for everything that is done once a second.
                for _ in range(5):
                    await trio.sleep(0.5)
                    await client.alive()
            with trio.fail_after(5):
                async with bare_client(port) as another:
                    await another.alive()
            await until(lambda: psutil.Process(server.process.pid).num_fds() == held)
