"""The generator against the fastest peer, made small."""

import importlib.util

import pytest

from loadgen import chatbench, scale
from loadgen.tables import BenchPlan

pytestmark = pytest.mark.slow


def test_the_rate_that_is_asked_for_is_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("picows") is None:
        pytest.skip("picows is not installed; it comes with the extra `peers`")
    monkeypatch.setattr(scale, "CONNECTIONS", 50)
    monkeypatch.setattr(scale, "RATE", 500.0)
    (row,) = scale.measure(BenchPlan(rounds=1, seconds=3.0))
    # Poisson: 1,500 arrivals are within a tenth, but for once in a thousand years.
    assert row.value("picows") == pytest.approx(500, rel=0.1)
    assert row.extra["picows"]["errors"] == 0
    assert row.bounds == {"500 asked": 500.0}


def test_chats_are_measured_by_number_of_clients() -> None:
    rows = list(chatbench.measure(BenchPlan(rounds=1, seconds=0.5, servers=("sansio",), only=" 10 ")))
    assert [row.name for row in rows] == ["persona.chat, 10 connections, closed loop"]
    assert rows[0].value("sansio") > 0
