"""Empty conversations go after a day, unless somebody is in them."""

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from persona.errors import MemoryFailure, NotFound
from persona.service import retention as retention_module
from persona.service.retention import EMPTY_FOR_S, INTERVAL_S, Retention
from persona.testing import open_server
from tests.service.stage import Stage, now, open_stage


def looked_after(stage: Stage) -> Retention:
    return Retention(
        stage.disk,  # type: ignore[arg-type]
        sessions=stage.sessions,
        background=stage.background,
        metrics=stage.metrics,
        now=now,
    )


async def stored(stage: Stage) -> set[str]:
    rows = await stage.database.read(lambda conn: conn.execute("SELECT id FROM conversations").fetchall())
    return {conversation_id for (conversation_id,) in rows}


async def test_what_stayed_empty_and_was_left_is_removed_after_a_day(autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        gone, stays = stage.session(), stage.session()
        left = await stage.conversations.current(gone, stage.aria)
        spoken = await stage.conversations.current(gone, stage.personas.find("kira"))
        await stage.say("Hello", spoken)
        kept = await stage.conversations.current(stays, stage.aria)
        stage.sessions.close(gone)
        await trio.sleep(EMPTY_FOR_S - 60)
        await looked_after(stage).remove_empty()
        assert await stored(stage) == {left, spoken, kept}
        await trio.sleep(120)
        await looked_after(stage).remove_empty()
        assert await stored(stage) == {spoken, kept}
        assert stage.metrics.value("empty_conversations_removed_total") == 1
        # Who is still there can still speak.
        await stage.say("At last", await stage.conversations.current(stays, stage.aria))
        with pytest.raises(NotFound, match="no such conversation"):
            await stage.conversations.open(stage.session(), left)


async def test_many_are_removed_in_several_writes(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention_module, "BATCH", 3)
    async with open_stage() as stage:
        for _ in range(8):
            await stage.conversations.current(stage.session(), stage.aria)
        for session in stage.sessions:
            stage.sessions.close(session)
        await trio.sleep(EMPTY_FOR_S + 1)
        before = stage.database.statistics().writes
        await looked_after(stage).remove_empty()
        assert await stored(stage) == set()
        assert stage.database.statistics().writes == before + 3
        assert stage.metrics.value("empty_conversations_removed_total") == 8


async def test_who_takes_one_up_as_it_is_removed_gets_another(autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        left = await stage.conversations.current(stage.session("ann"), stage.aria)
        for session in stage.sessions:
            stage.sessions.close(session)
        await trio.sleep(EMPTY_FOR_S + 1)
        ann = stage.session("ann")
        stage.disk.answers_after_s = 1.0
        async with trio.open_nursery() as nursery:
            nursery.start_soon(looked_after(stage).remove_empty)
            await wait_all_tasks_blocked()
            # She read of it before it was removed.
            ann.conversations[stage.aria.id] = left
        stage.disk.answers_after_s = 0.0
        again = await stage.conversations.current(ann, stage.aria)
        assert again != left
        await stage.say("Hello", again)


async def test_the_server_looks_from_time_to_time(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A day of the whole server would be 86,400 looks of its monitor.
    monkeypatch.setattr(retention_module, "EMPTY_FOR_S", 100.0)
    monkeypatch.setattr(retention_module, "INTERVAL_S", 60.0)
    async with open_server() as server:
        metrics = server.server.metrics
        async with server.connect() as client:
            await client.switch("aria")
        async with server.connect() as client:
            await client.switch("aria")
            await client.chat("Hello")
        await trio.sleep(90)
        assert metrics.value("empty_conversations_removed_total") == 0
        await trio.sleep(90)
        assert metrics.value("empty_conversations_removed_total") == 1


async def test_it_looks_at_the_start_and_after_a_failure_an_hour_later(autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        await stage.conversations.current(stage.session(), stage.aria)
        for session in stage.sessions:
            stage.sessions.close(session)
        await trio.sleep(EMPTY_FOR_S + 1)
        stage.disk.failure = MemoryFailure("the disk is stuck")
        async with trio.open_nursery() as nursery:
            await nursery.start(stage.background.run)
            await nursery.start(looked_after(stage).run)
            await wait_all_tasks_blocked()
            assert stage.metrics.value("background_failed_total", job="remove_empty") == 1
            stage.disk.failure = None
            await trio.sleep(INTERVAL_S + 1)
            assert await stored(stage) == set()
            nursery.cancel_scope.cancel()
