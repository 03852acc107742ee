"""`loadgen bench guide`: what the performance guide promises, against the server that it starts from.

`before` is `peers/before_peer.py`. Ours runs with the model slots that a handler pool of 100 could use: what
is compared are handlers, not models.
"""

import asyncio
import json
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import orjson
import trio

from loadgen.bench import InTurns, Measure, Scenario, fan_out, idle_memory, rows
from loadgen.chatbench import chats, load_figures
from loadgen.requests import chat, ping
from loadgen.scenario import Scenario as Load
from loadgen.scenario import Stage
from loadgen.script import Call, Stream, User
from loadgen.servers import ServerProcess
from loadgen.tables import BenchPlan, Mark, Row
from persona.storage.pool import open_database

SERVERS = ("before", "trio-websocket", "sansio")
MODEL_S = 0.05
WITH_MODEL = {
    "llm.max_concurrency": 100,
    "llm.scripted_first_token_s": MODEL_S,
    "llm.scripted_tokens_per_s": 0,
}
STEPS = (50, 100, 200, 300, 500, 750, 1000)
BEARABLE_MS = 1000.0
"""Slower than this for one in twenty, and a client would say that it does not work."""
WRITERS = 100
ROW_BYTES = 300


def mixed(user: User, n: int) -> Call | Stream:
    """Ten pings, then a chat."""
    return chat(user, n) if n % 11 == 10 else ping(user, n)


def held_connections(server: ServerProcess, seconds: float) -> dict[str, float]:
    """The most clients that all connect and are served bearably: a ping a second each, a chat in ten."""
    held = 0
    for clients in STEPS:
        load = Load(
            name="held",
            summary="",
            stages=(Stage(seconds=2 * seconds + 1, connections=clients, rate=clients * 1.1),),
            request=mixed,
            warm_up_s=1.0,
        )
        figures = load_figures(server, load, timeout_s=5.0)
        if figures["errors"] or figures.get("response.p95_ms", BEARABLE_MS + 1) > BEARABLE_MS:
            break
        held = clients
    return {"clients": float(held)}


def json_row(plan: BenchPlan) -> Row:
    """Reading and writing what goes over the wire, by the two libraries; in this process."""
    documents = [
        {"jsonrpc": "2.0", "id": 7, "method": "system.ping", "params": {"payload": "x" * 40}},
        {"jsonrpc": "2.0", "id": 8, "result": {"response": "y" * 400, "persona_state": {"energy": 88.25}}},
        {
            "jsonrpc": "2.0",
            "id": 9,
            "result": {"turns": [{"id": n, "content": "z" * 200} for n in range(20)]},
        },
    ]
    texts = [json.dumps(document) for document in documents]

    def microseconds(loads: Callable[[str], Any], dumps: Callable[[Any], Any]) -> float:
        end = time.perf_counter() + plan.seconds / 4
        count, began = 0, time.perf_counter()
        while time.perf_counter() < end:
            for text in texts:
                dumps(loads(text))
            count += len(texts)
        return (time.perf_counter() - began) / count * 1e6

    before, ours = [], []
    for _ in range(plan.rounds):
        before.append(microseconds(json.loads, json.dumps))
        ours.append(microseconds(orjson.loads, orjson.dumps))
    return Row(
        name="JSON: read and write a message",
        unit="us",
        rounds={"before": before, "trio-websocket": ours, "sansio": ours},
        marks=(Mark("sansio", "before", 2.0),),
        note="the two libraries alone, in one process; both engines of ours use the same one.",
    )


async def _before_writes(seconds: float, file: Path) -> float:
    connection = sqlite3.connect(file)
    connection.execute("CREATE TABLE rows (id INTEGER PRIMARY KEY, text TEXT)")
    written, began = 0, time.perf_counter()
    end = began + seconds

    async def writer() -> None:
        nonlocal written
        while time.perf_counter() < end:
            connection.execute("INSERT INTO rows (text) VALUES (?)", ("x" * ROW_BYTES,))
            connection.commit()
            written += 1
            await asyncio.sleep(0)

    await asyncio.gather(*(writer() for _ in range(WRITERS)))
    connection.close()
    return written / (time.perf_counter() - began)


async def _our_writes(seconds: float, file: Path) -> float:
    written = 0

    def insert(connection: sqlite3.Connection) -> None:
        connection.execute("INSERT INTO bench_rows (text) VALUES (?)", ("x" * ROW_BYTES,))

    def create(connection: sqlite3.Connection) -> None:
        connection.execute("CREATE TABLE bench_rows (id INTEGER PRIMARY KEY, text TEXT)")

    async with open_database(file) as database:
        await database.write(create)
        began = time.perf_counter()
        end = began + seconds

        async def writer() -> None:
            nonlocal written
            while time.perf_counter() < end:
                await database.write(insert)
                written += 1

        async with trio.open_nursery() as nursery:
            for _ in range(WRITERS):
                nursery.start_soon(writer)
        return written / (time.perf_counter() - began)


def database_row(plan: BenchPlan) -> Row:
    """Rows on disk a second, written by a hundred tasks that each wait for theirs."""
    before, ours = [], []
    for _ in range(plan.rounds):
        with tempfile.TemporaryDirectory(dir=plan.folder, prefix="bench-guide-") as folder:
            before.append(asyncio.run(_before_writes(plan.seconds, Path(folder) / "before.db")))
            ours.append(trio.run(partial(_our_writes, plan.seconds, Path(folder) / "ours.db")))
    return Row(
        name=f"database: rows of {ROW_BYTES} bytes, {WRITERS} writers",
        unit="rows/s",
        rounds={"before": before, "trio-websocket": ours, "sansio": ours},
        more_is_better=True,
        marks=(Mark("sansio", "before", 3.0),),
        note="one connection in its default journal mode, against our writer with `synchronous=FULL`; "
        "both in one process, without a server.",
    )


def measure(plan: BenchPlan) -> Iterator[Row]:
    """See `tables.TABLES`."""

    def line(
        name: str,
        unit: str,
        figure: Measure | InTurns,
        promise: float,
        note: str,
        *,
        more_is_better: bool = False,
        in_steps: bool = False,
    ) -> Scenario:
        marks = tuple((server, "before", promise) for server in SERVERS[1:])
        return Scenario(
            name,
            SERVERS,
            unit,
            figure,
            marks,
            more_is_better=more_is_better,
            in_steps=in_steps,
            settings=WITH_MODEL,
            note=note,
        )

    yield from rows(
        [
            line(
                "connections: clients served at once",
                "clients",
                held_connections,
                5.0,
                f"the most of {', '.join(map(str, STEPS))} that all connect and get 95 % of their answers "
                f"within a second, each with a ping a second and a chat in ten (model: {MODEL_S:g} s); "
                "more were not tried.",
                more_is_better=True,
                in_steps=True,
            )
        ],
        plan,
    )
    for name, make in (("JSON", json_row), ("database", database_row)):
        if plan.only in name or name in plan.only or not plan.only:
            yield make(plan)
    yield from rows(
        [
            line(
                "handlers: chats of 100 clients",
                "turns/s",
                chats(100),
                5.0,
                f"each as fast as it is answered; the model takes {MODEL_S:g} s and has a slot for each.",
                more_is_better=True,
            ),
            line(
                "broadcast of 500 bytes to 500, last receipt",
                "ms",
                fan_out(500),
                2.0,
                "50 to 80 % less is a ratio of 2 to 5. With nobody slow among them, to encode 500 times and "
                "send one after the other costs `before` little, and that one slow client holds up nobody "
                "does not show here.",
            ),
            line(
                "memory of an idle connection, of 500",
                "kB",
                idle_memory(500),
                2.0,
                "50 to 80 % less is a ratio of 2 to 5. aiohttp's connections, which `before` is made of, "
                "have little to save: a WebSocket and an entry in a dict. Ours hold a session, an outbox and "
                "limits in the same space; trio-websocket's own reader, channel and parser take the rest.",
            ),
        ],
        plan,
    )
