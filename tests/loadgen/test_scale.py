"""The generator against the fastest peer, made small."""

import importlib.util
import threading
import time
from itertools import islice
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from loadgen import chatbench, scale
from loadgen.script import Call, User
from loadgen.tables import BenchPlan
from tests.loadgen.answering import answering, echo

pytestmark = pytest.mark.slow


def test_the_rate_that_is_asked_for_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("picows") is None:
        pytest.skip("picows is not installed; it comes with the extra `peers`")
    monkeypatch.setattr(scale, "CONNECTIONS", 50)
    monkeypatch.setattr(scale, "RATE", 500.0)
    row, busy, latency = scale.measure(BenchPlan(rounds=1, seconds=3.0))
    # Poisson: 1,500 arrivals are within a tenth, but for once in a thousand years.
    assert row.value("picows") == pytest.approx(500, rel=0.1)
    assert row.extra["picows"]["errors"] == 0
    assert row.bounds == {"500 asked": 500.0}
    assert not any(each.is_missed(mark) for each in (busy, latency) for mark in each.marks)


def test_a_server_that_cannot_keep_up_misses_the_marks(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked 400 times a second, and does about 100."""

    def slowly(request: dict[str, Any]) -> list[bytes]:
        with one_at_a_time:
            time.sleep(0.01)
        return echo(request)

    one_at_a_time = threading.Lock()
    monkeypatch.setattr(scale, "CONNECTIONS", 10)
    with answering(slowly) as server:
        figures = scale.pings_at(400.0)(SimpleNamespace(url=server.url), 1.0)
    assert figures["answered/s"] < 200
    assert figures["p99_ms"] > 500


def test_chats_are_measured_by_number_of_clients() -> None:
    rows = list(chatbench.measure(BenchPlan(rounds=1, seconds=0.5, servers=("sansio",), only=", 10 ")))
    assert [row.name for row in rows] == ["persona.chat, 10 connections, closed loop"]
    assert rows[0].value("sansio") > 0


def test_one_client_begins_a_conversation_every_so_often() -> None:
    user = User(0, Random(0), "nonce")
    methods = [command.method for command in islice(chatbench.talks(user), 23) if isinstance(command, Call)]
    chats = ["persona.chat"] * chatbench.TALK_TURNS
    assert methods == [*chats, "session.clear", *chats, "session.clear", "persona.chat"]
    rows = list(
        chatbench.measure(BenchPlan(rounds=1, seconds=0.5, servers=("sansio",), only="of one client"))
    )
    assert [row.unit for row in rows] == ["ms"]
    assert rows[0].value("sansio") > 0
