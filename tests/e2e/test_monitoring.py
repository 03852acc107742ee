"""What the server says of itself, beside what was done to it."""

import bisect
import gc
import math
import re
import secrets
import signal
import weakref
from pathlib import Path
from typing import Any

import orjson
import pytest
import trio
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families
from trio.testing import MockClock

from persona.client import RemoteError
from persona.config.sections import AuthToken
from persona.errors import LLMUnavailable
from persona.llm.watch import FIRST_AFTER_S, WATCH_INTERVAL_S
from persona.metrics import SECONDS, Metrics
from persona.testing import open_server
from persona.transport.admission import token_hash
from tests.e2e.process import STREAMING, server_process
from tests.e2e.siege import ENGINES, bare_client, besieged, until
from tests.rpc.methods.asking import TOKENS, open_party
from tests.service.stage import PlayedModel
from tests.serving import dial, free_ports


def scraped(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Every sample, as Prometheus reads it."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(generate_latest(metrics.registry).decode())
        for sample in family.samples
    }


@pytest.mark.parametrize("engine", ENGINES)
async def test_known_traffic_gives_exactly_matching_counters(engine: str, tmp_path: Path) -> None:
    pings, lists, chats, strange, wrong = 40, 7, 3, 5, 4
    async with (
        besieged(tmp_path, engine) as siege,
        dial(siege.url) as wire,
        dial(siege.url) as other,
        dial(siege.url) as watcher,
    ):
        for number in range(pings):
            await (wire if number % 2 else other).call("system.ping", {"payload": number})
        for _ in range(lists):
            await wire.call("persona.list")
        for _ in range(chats):
            await wire.call("persona.chat", {"persona_id": "aria", "message": "Hello"})
        for number in range(strange):
            await wire.error(f"no.such.method{number}")
        for _ in range(wrong):
            await other.error("system.ping", {"nonsense": 1})
        await wire.send("{")
        assert (await wire.receive())["error"]["data"]["reason"] == "parse_error"

        figures = await watcher.call("system.metrics")
        samples = scraped(siege.server.metrics)

        def calls(method: str, outcome: str) -> float:
            return samples["persona_requests_total", (("method", method), ("outcome", outcome))]

        assert calls("system.ping", "ok") == pings
        assert calls("system.ping", "invalid_params") == wrong
        assert calls("persona.list", "ok") == lists
        assert calls("persona.chat", "ok") == chats
        assert calls("unknown", "method_not_found") == strange
        assert samples["persona_request_seconds_count", (("method", "persona.list"),)] == lists
        assert samples["persona_turns_total", (("finish_reason", "stop"),)] == chats
        assert samples["persona_connections", ()] == 3

        errors = {"invalid_params": wrong, "method_not_found": strange, "parse_error": 1}
        assert figures["errors"] == errors
        for reason, count in errors.items():
            assert samples["persona_errors_total", (("reason", reason),)] == count
        counts = {name: each["count"] for name, each in figures["requests"]["by_method"].items()}
        assert counts == {
            "system.ping": pings + wrong,
            "persona.list": lists,
            "persona.chat": chats,
            "unknown": strange,
        }
        answered = pings + wrong + lists + chats + strange
        assert figures["requests"]["total"] == answered
        # With the frame that was no JSON, and the one that asked for the figures.
        assert samples["persona_messages_received_total", ()] == answered + 2
        assert figures["requests"]["error_ratio"] == 0
        assert figures["connections"]["open"] == 3
        assert figures["model"]["seconds"]["buckets"]
        assert sum(bucket["count"] for bucket in figures["model"]["seconds"]["buckets"]) == chats


async def test_percentiles_lie_within_one_bucket_of_the_clients_own(tmp_path: Path) -> None:
    """Of calls whose time is the server's: chats with a model that takes its time."""
    taken: list[float] = []
    alone, crowd = 80, 16
    llm = {"max_concurrency": 1, "scripted_first_token_s": 0.02, "scripted_tokens_per_s": 1000.0}
    async with besieged(tmp_path, "sansio", llm=llm) as siege:

        async def talk(count: int) -> None:
            async with dial(siege.url) as wire:
                for _ in range(count):
                    started = trio.current_time()
                    await wire.call("persona.chat", {"persona_id": "aria", "message": "Hello"})
                    taken.append(trio.current_time() - started)

        with trio.fail_after(60):
            await talk(alone)
            # They wait for each other, so the slow ones are many times slower.
            async with trio.open_nursery() as nursery:
                for _ in range(crowd):
                    nursery.start_soon(talk, 1)
        async with dial(siege.url) as wire:
            figures = await wire.call("system.metrics", {"window_s": 300})
    chat = figures["requests"]["by_method"]["persona.chat"]
    assert chat["count"] == len(taken) == alone + crowd
    for name, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        own = sorted(taken)[math.ceil(q * len(taken)) - 1]
        distance = bisect.bisect_left(SECONDS, chat[name]) - bisect.bisect_left(SECONDS, own)
        assert abs(distance) <= 1, (name, chat[name], own)


async def test_a_thousand_users_leave_the_number_of_series_flat(autojump_clock: MockClock) -> None:
    tokens = tuple(
        AuthToken(f"user{number}", "admin" if number % 2 else "user", token_hash(f"secret{number}"))
        for number in range(1000)
    )
    async with open_server(auth={"tokens": tokens}, llm={"scripted_first_token_s": 0.0}) as server:

        async def visit(number: int) -> None:
            async with server.connect(token=f"secret{number}") as client:
                await client.ping(secrets.token_hex(4))
                await client.subscribe([f"t{secrets.token_hex(8)}"])
                for method in (secrets.token_hex(8), "system.broadcast", "persona.switch"):
                    params = {
                        "topic": f"t{secrets.token_hex(8)}",
                        "type": "x",
                        "data": 1,
                        "persona_id": "aria",
                    }
                    wanted = {
                        "system.broadcast": ("topic", "type", "data"),
                        "persona.switch": ("persona_id",),
                    }
                    named = {name: params[name] for name in wanted.get(method, ())}
                    try:
                        await client.call(method, named)
                    except RemoteError as exc:
                        assert exc.reason in ("method_not_found", "unauthorized")

        for number in range(4):
            await visit(number)
        before = {name for name, _ in scraped(server.server.metrics)}, len(scraped(server.server.metrics))
        for number in range(4, 1000):
            await visit(number)
        samples = scraped(server.server.metrics)
        assert ({name for name, _ in samples}, len(samples)) == before
        text = generate_latest(server.server.metrics.registry).decode()
        assert "user7" not in text
        assert server.server.metrics.value("connections_closed_total", cause="client") == 1000


async def test_who_watches_gets_one_message_a_second_and_it_is_the_same_for_all(
    autojump_clock: MockClock,
) -> None:
    async with open_party(auth={"tokens": TOKENS}) as party:
        ann, root = await party.join("ann"), await party.join("root")
        await trio.sleep(0.1)
        for watcher in (ann, root):
            await watcher.ask("events.subscribe", topics=["system.metrics"])
        await trio.sleep(5)
        seen = [await watcher.news() for watcher in (ann, root)]
        assert seen[0] == seen[1]
        assert [event["seq"] for event in seen[0]] == [1, 2, 3, 4, 5]
        assert {(event["topic"], event["type"]) for event in seen[0]} == {
            ("system.metrics", "system.metrics")
        }
        published = seen[0][-1]["data"]
        assert published["memory"]["heaviest"] == []
        assert published.keys() == (await ann.ask("system.metrics")).keys()
        await root.ask("events.unsubscribe", topics=["system.metrics"])
        await trio.sleep(3)
        assert (len(await ann.news()), len(await root.news())) == (3, 0)


async def test_a_model_that_is_gone_is_an_event_and_so_is_its_return(autojump_clock: MockClock) -> None:
    model = PlayedModel()
    names = model.names
    async with open_party(backend=model) as party:
        asking = await party.join()
        await asking.ask("events.subscribe", topics=["system"])
        await trio.sleep(FIRST_AFTER_S + 1.5)
        assert (await asking.ask("system.metrics"))["model"]["available"] is True
        model.names = LLMUnavailable("gone")
        await trio.sleep(3 * WATCH_INTERVAL_S)
        (event,) = await asking.news()
        assert (event["type"], event["data"]["name"], event["data"]["state"]) == (
            "system.alert",
            "llm_down",
            "raised",
        )
        figures = await asking.ask("system.metrics")
        assert figures["model"]["available"] is False
        assert [alert["name"] for alert in figures["alerts"]] == ["llm_down"]
        model.names = names
        await trio.sleep(2 * WATCH_INTERVAL_S)
        (event,) = await asking.news()
        assert (event["data"]["name"], event["data"]["state"]) == ("llm_down", "cleared")


@pytest.mark.parametrize("engine", ENGINES)
async def test_a_client_that_does_not_read_is_the_heaviest(engine: str, tmp_path: Path) -> None:
    limits = {"write_deadline_s": 60.0, "max_pending_bytes": 10_000_000}
    async with (
        besieged(tmp_path, engine, limits=limits) as siege,
        bare_client(siege.port, receive_buffer_bytes=4096) as deaf,
        dial(siege.url) as admin,
    ):
        await deaf.ask("events.subscribe", {"topics": ["news"]})
        assert "result" in await deaf.answer()
        event = {"topic": "news", "type": "x", "data": "x" * 50_000}
        for _ in range(2000):
            await admin.call("system.broadcast", event)
            if siege.server.listener.heaviest(1):
                break
        await admin.call("system.broadcast", event)
        figures = await admin.call("system.metrics")
        heaviest = figures["memory"]["heaviest"]
        (found,) = [each for each in heaviest if each["outbox_bytes"]]
        assert heaviest[0] == found
        assert found["bytes"] >= found["outbox_bytes"] > 50_000
        assert found["session_id"] in siege.server.listener.connections
        assert figures["memory"]["held_bytes"] >= found["bytes"]
        deaf.vanish()
        await until(lambda: siege.connections == 1)
        assert (await admin.call("system.metrics"))["memory"]["heaviest"] == []


async def test_requests_under_way_are_held_and_let_go(autojump_clock: MockClock) -> None:
    async with open_server() as server, server.connect() as client:
        (connection,) = server.server.listener.connections.values()
        line = "Tell me a long story. " * 50
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.call, "persona.chat", {"persona_id": "aria", "message": line})
            await trio.sleep(0.5)
            assert connection.requests_bytes > len(line)
        assert connection.requests_bytes == 0


class Ring:
    """Knows itself, so only the garbage collector ends it."""

    def __init__(self) -> None:
        self.me = self


async def test_caches_are_dropped_when_memory_runs_short(tmp_path: Path) -> None:
    resident_mb = 100
    limits = {"memory_soft_limit_mb": 200}
    async with besieged(
        tmp_path, "sansio", limits=limits, resident_bytes=lambda: resident_mb * 1_000_000
    ) as siege:
        metrics = siege.server.metrics
        gc.disable()
        try:
            ring = weakref.ref(Ring())
            assert ring() is not None
            resident_mb = 201
            await until(lambda: ring() is None)
        finally:
            gc.enable()
        assert metrics.value("caches_dropped_total") == 1
        await until(lambda: not siege.server.background.queued)
    assert metrics.value("background_failed_total", job="release_memory") == 0


# The tree


def drawn() -> list[str]:
    """The names of the tree that the architecture page draws."""
    page = (Path(__file__).parents[2] / "docs" / "architecture.md").read_text(encoding="utf-8")
    block = page.partition("## The nursery tree")[2].partition("```\n")[2].partition("```")[0]
    # In brackets: what is there at times, and has a test of its own where that is easily made.
    names = re.findall(r"[|`]- (.+?)(?: {2,}.*)?$", block, flags=re.MULTILINE)
    assert len(names) > 10
    return [name for name in names if not name.startswith("(")]


@pytest.mark.parametrize("engine", ENGINES)
async def test_what_the_architecture_page_draws_is_what_one_sees(engine: str, tmp_path: Path) -> None:
    (http_port,) = free_ports(1)
    settings = {"PERSONA_SERVER_ENGINE": engine, "PERSONA_SERVER_HTTP_PORT": str(http_port)}
    async with (
        server_process(tmp_path, **STREAMING, **settings) as server,
        dial(server.url) as talker,
        dial(server.url) as admin,
        await trio.open_tcp_stream("127.0.0.1", http_port) as browser,
    ):
        await talker.start("persona.chat_stream", {"persona_id": "aria", "message": "A story"})
        assert (await talker.receive())["result"]["event_type"] == "stream_start"
        with trio.fail_after(10):
            # Answered, and kept open.
            await browser.send_all(b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert (await browser.receive_some()).startswith(b"HTTP/1.1 200")
            answer = await admin.call("system.tasks", {"siblings": 10})
    text = answer["text"]
    for name in drawn():
        # The one is there only while a socket is full; and that engine reads by itself.
        if name == "writer" or (engine == "sansio" and name == "websocket reader"):
            continue
        assert re.search(rf"^[ |`-]*{re.escape(name)}( s\d+)?( [\d.]+ s)?:", text, flags=re.MULTILINE), name
    assert "request persona.chat_stream" in text
    # All of it is somewhere in the tree, or counted.
    assert str(tmp_path) not in text


async def test_only_admins_see_the_tree(autojump_clock: MockClock) -> None:
    async with open_party(auth={"tokens": TOKENS}) as party:
        error = await (await party.join("ann")).refused("system.tasks")
        assert error.reason == "unauthorized"
        answer = await (await party.join("root")).ask("system.tasks", siblings=1)
        assert "connection" in answer["text"]
        assert answer["tasks"] > 10


async def test_many_connections_make_a_small_answer_soon(autojump_clock: MockClock) -> None:
    async with open_party() as party:
        for _ in range(100):
            await party.join()
        asking = await party.join()
        answer = await asking.ask("system.tasks")
        shown = re.findall(r"[|`]- connection s\d+ ", answer["text"])
        assert len(shown) == 3
        assert "and 98 more: connection\n" in answer["text"]
        assert answer["tasks"] > 200


async def test_sigusr1_shows_the_tree_in_the_log_and_hurts_nothing(tmp_path: Path) -> None:
    async with server_process(tmp_path, **STREAMING) as server:
        async with dial(server.url) as wire:
            for count in (1, 2):
                server.process.send_signal(signal.SIGUSR1)
                with trio.fail_after(10):
                    while len(trees(tmp_path / "server.log")) < count:
                        await wire.alive()
                        await trio.sleep(0.02)
        tree = trees(tmp_path / "server.log")[-1]
        assert "connection s1" in names(tree)
        assert "monitor" in names(tree)
        server.process.terminate()
        assert await server.ended(within_s=20) == 0


def trees(log: Path) -> list[Any]:
    events = [orjson.loads(line) for line in log.read_bytes().splitlines()]
    return [event["tree"] for event in events if event["event"] == "tasks"]


def names(node: Any) -> set[str]:
    below = [task for nursery in node.get("nurseries", ()) for task in nursery["tasks"]]
    return {node["name"]}.union(*map(names, below))
