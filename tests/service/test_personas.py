"""Who exists: served from memory, written through."""

import math
import sqlite3
import threading
import time
from pathlib import Path

import attrs
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from persona.errors import Conflict, InvalidParams, MemoryFailure, Overloaded, PersonaNotFound
from persona.model import Persona
from persona.service.personas import Personas
from persona.storage import pool, store
from persona.storage.pool import SHIELDED_WRITE_TIMEOUT_S, open_database
from tests.service.stage import Stage, now, open_stage


async def reloaded(stage: Stage) -> Personas:
    """The cast as the next start of the server would find it."""
    personas = Personas(
        stage.database, max_personas=1000, recovery_s=300.0, now=now, on_change=lambda what, persona: None
    )
    await personas.load()
    return personas


async def test_everybody_is_found_by_id_and_by_name_whatever_its_case(autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        personas = stage.personas
        zoe = await personas.create(name="Zoë", description="d")
        bob = await personas.create(name="bob", description="d")
        assert [persona.name for persona in personas.all()] == ["Aria", "bob", "Kira", "Zoë"]
        assert personas.find(zoe.id) is personas.find("ZOË") is personas.get(zoe.id) is zoe
        with pytest.raises(PersonaNotFound) as caught:
            personas.find("Bobby")
        assert caught.value.field == "persona_id"
        assert personas.get("bob") is None
        # An id goes before a name.
        named_as_id = await personas.create(name=bob.id, description="d")
        assert personas.find(bob.id) is bob
        assert personas.find(named_as_id.id) is named_as_id


async def test_changes_are_on_disk_before_anybody_is_told(autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        stage.disk.write_s = 1.0
        bob = await stage.personas.create(name="Bob", description="d", charisma=3)
        await trio.sleep(10)
        renamed = await stage.personas.update(bob, {"name": "Rob"}, None)
        assert (renamed.version, renamed.charisma) == (2, 3)
        assert renamed.updated_at == bob.created_at + 11
        assert (await reloaded(stage)).find("rob") == renamed
        await stage.personas.delete(renamed)
        assert stage.changes == [("created", "Bob"), ("updated", "Rob"), ("deleted", "Rob")]
        with pytest.raises(PersonaNotFound):
            (await reloaded(stage)).find("rob")
        for name in ("Bob", "Rob"):
            with pytest.raises(PersonaNotFound):
                stage.personas.find(name)


async def test_a_name_is_taken_while_its_owner_is_still_being_written(autojump_clock: MockClock) -> None:
    async with open_stage() as stage, trio.open_nursery() as nursery:
        stage.disk.write_s = 1.0
        nursery.start_soon(lambda: stage.personas.create(name="Bob", description="first"))
        await wait_all_tasks_blocked()
        with pytest.raises(PersonaNotFound):
            stage.personas.find("bob")
        for change in (
            stage.personas.create(name="BOB", description="second"),
            stage.personas.update(stage.aria, {"name": "bOb"}, None),
        ):
            with pytest.raises(Conflict) as caught:
                await change
            assert caught.value.field == "name"
        assert stage.aria.version == 1
        await trio.sleep(2)
        assert stage.personas.find("bob").description == "first"


async def test_the_last_place_in_the_cast_is_given_once(autojump_clock: MockClock) -> None:
    """Also where several ask for it in one moment; one who leaves makes room."""
    async with open_stage(max_personas=3) as stage:
        stage.disk.write_s = 1.0
        refused: list[str] = []

        async def create(name: str) -> None:
            try:
                await stage.personas.create(name=name, description="d")
            except Conflict as exc:
                assert "3 personas" in exc.message
                refused.append(name)

        async with trio.open_nursery() as nursery:
            for name in ("Bob", "Cid", "Dan"):
                nursery.start_soon(create, name)
        assert len(refused) == 2
        assert len(stage.personas.all()) == 3
        await stage.personas.delete(stage.aria)
        await create("Eve")
        assert len(refused) == 2
        assert (await reloaded(stage)).all() == stage.personas.all()


async def test_a_cast_that_is_larger_than_it_may_be_stays(autojump_clock: MockClock) -> None:
    """As after the limit was lowered."""
    async with open_stage(max_personas=1) as stage:
        assert len(stage.personas.all()) == 2
        await stage.personas.update(stage.aria, {"name": "Arya"}, None)
        with pytest.raises(Conflict):
            await stage.personas.create(name="Bob", description="d")


@pytest.mark.parametrize("change", ["create", "update", "delete"])
async def test_a_change_whose_caller_leaves_is_made_wholly(change: str, autojump_clock: MockClock) -> None:
    """On disk and in memory, or the next change would meet another persona than it knows."""
    async with open_stage() as stage:
        stage.disk.write_s = 5.0
        with trio.move_on_after(1):
            await make(stage, change)
        assert trio.current_time() == 5
        stage.disk.write_s = 0.0
        assert len(stage.changes) == 1
        assert (await reloaded(stage)).all() == stage.personas.all()


async def make(stage: Stage, change: str) -> None:
    match change:
        case "create":
            await stage.personas.create(name="Bob", description="d")
        case "update":
            await stage.personas.update(stage.aria, {"name": "Bob"}, None)
        case "delete":
            await stage.personas.delete(stage.aria)


@pytest.mark.parametrize("change", ["create", "update", "delete"])
@pytest.mark.parametrize("happens", [False, True])
async def test_what_became_of_a_change_that_took_too_long_is_looked_up(
    change: str, happens: bool, autojump_clock: MockClock
) -> None:
    async with open_stage() as stage:
        stage.personas.record_turn(stage.aria, line="", tokens_used=1000, took_s=1, talked_s=1)
        if happens:
            stage.disk.answers_after_s = math.inf
        else:
            stage.disk.write_s = math.inf
        with pytest.raises(MemoryFailure):
            await make(stage, change)
        assert trio.current_time() == SHIELDED_WRITE_TIMEOUT_S
        assert stage.changes == []
        stage.disk.write_s = stage.disk.answers_after_s = 0.0
        await stage.personas.create(name="Cid", description="d")
        names = {"create": ["Aria", "Bob", "Cid", "Kira"], "update": ["Bob", "Cid", "Kira"]}
        expected = names.get(change, ["Cid", "Kira"]) if happens else ["Aria", "Cid", "Kira"]
        assert [persona.name for persona in stage.personas.all()] == expected
        assert (await reloaded(stage)).all() == stage.personas.all()
        if "Aria" in expected:
            assert stage.personas.state(stage.aria).interaction_fatigue > 0


async def test_a_change_that_is_still_being_written_is_waited_for_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written, held, insert = threading.Event(), threading.Event(), store.insert_persona

    def insert_late(conn: sqlite3.Connection, persona: Persona) -> None:
        insert(conn, persona)
        written.set()
        held.wait(10)

    monkeypatch.setattr(pool, "SHIELDED_WRITE_TIMEOUT_S", 0.05)
    async with open_database(tmp_path / "p.db") as database, trio.open_nursery() as nursery:
        personas = Personas(
            database, max_personas=9, recovery_s=300.0, now=time.time, on_change=lambda what, persona: None
        )
        await personas.load()
        monkeypatch.setattr(store, "insert_persona", insert_late)
        with pytest.raises(MemoryFailure):
            await personas.create(name="Ann", description="d")
        assert written.is_set()
        monkeypatch.setattr(store, "insert_persona", insert)
        monkeypatch.setattr(pool, "SHIELDED_WRITE_TIMEOUT_S", SHIELDED_WRITE_TIMEOUT_S)
        nursery.start_soon(lambda: personas.create(name="Bob", description="d"))
        await wait_all_tasks_blocked(0.05)
        held.set()
    assert [persona.name for persona in personas.all()] == ["Ann", "Aria", "Bob", "Kira"]


async def test_a_failed_change_changes_nothing(autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        before = stage.personas.all()
        stage.disk.failure = Overloaded("full")
        for change in ("create", "update", "delete"):
            with pytest.raises(Overloaded):
                await make(stage, change)
        stage.disk.failure = None
        assert stage.personas.all() == before
        assert stage.changes == []
        for change in ("create", "delete"):
            await make(stage, change)


async def test_a_persona_can_change_the_case_of_its_own_name(autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        changed = await stage.personas.update(stage.aria, {"name": "ARIA"}, 1)
        assert stage.aria is changed
        with pytest.raises(Conflict):
            await stage.personas.create(name="Aria", description="d")


async def test_an_update_needs_a_change_and_the_current_version(autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        first = stage.aria
        with pytest.raises(InvalidParams) as nothing:
            await stage.personas.update(first, {}, 1)
        assert nothing.value.field == "params"
        second = await stage.personas.update(first, {"charisma": 1}, 1)
        with pytest.raises(Conflict) as caught:
            await stage.personas.update(second, {"charisma": 2}, 1)
        assert caught.value.field == "version"
        assert stage.aria is second


@pytest.mark.parametrize("version", [None, 1])
async def test_of_two_updates_at_once_both_are_made_unless_a_version_was_named(
    version: int | None, autojump_clock: MockClock
) -> None:
    outcomes: list[str] = []
    async with open_stage() as stage:
        before = stage.aria
        stage.disk.write_s = 1.0

        async def update(field: str) -> None:
            try:
                await stage.personas.update(before, {field: 7}, version)
                outcomes.append("done")
            except Conflict as exc:
                outcomes.append(exc.field or "")

        async with trio.open_nursery() as nursery:
            for field in ("charisma", "intelligence"):
                nursery.start_soon(update, field)
        after = stage.aria
        if version is None:
            assert outcomes == ["done", "done"]
            assert (after.charisma, after.intelligence, after.version) == (7, 7, 3)
        else:
            assert sorted(outcomes) == ["done", "version"]
            assert after.version == 2
        assert (await reloaded(stage)).find("aria") == after


async def test_another_programs_change_is_noticed_and_taken_over(autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        theirs = attrs.evolve(stage.aria, version=9, charisma=1)
        await stage.database.write(lambda conn: store.update_persona(conn, theirs, 1))
        with pytest.raises(Conflict):
            await stage.personas.update(stage.aria, {"intelligence": 2}, None)
        ours = await stage.personas.update(stage.aria, {"intelligence": 2}, None)
        assert (ours.version, ours.charisma, ours.intelligence) == (10, 1, 2)


@pytest.mark.parametrize("later", ["update", "delete"])
async def test_who_is_deleted_meanwhile_is_not_brought_back(later: str, autojump_clock: MockClock) -> None:
    async with open_stage() as stage, trio.open_nursery() as nursery:
        aria = stage.aria
        stage.disk.write_s = 1.0
        nursery.start_soon(stage.personas.delete, aria)
        await wait_all_tasks_blocked()
        with pytest.raises(PersonaNotFound):
            if later == "delete":
                await stage.personas.delete(aria)
            else:
                await stage.personas.update(aria, {"name": "Ann"}, None)
        assert stage.personas.get(aria.id) is None
        assert stage.changes == [("deleted", "Aria")]
        for name in ("Ann", "Aria"):
            await stage.personas.create(name=name, description="d")


async def test_a_turn_tires_and_the_state_outlives_a_restart(autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        rested = stage.personas.state(stage.aria)
        tired = stage.personas.record_turn(stage.aria, line="", tokens_used=50_000, took_s=9, talked_s=9)
        assert tired.social_energy < rested.social_energy
        assert stage.personas.state(stage.aria) == tired
        assert (await reloaded(stage)).state(stage.aria) == rested
        await stage.database.write(lambda conn: store.save_state(conn, tired))
        assert (await reloaded(stage)).state(stage.aria) == tired
        await trio.sleep(300)
        recovered = stage.personas.state(stage.aria)
        assert recovered.social_energy == rested.social_energy
        assert recovered.interaction_fatigue == tired.interaction_fatigue / 4


async def test_who_rests_is_not_available_until_the_rest_is_over(autojump_clock: MockClock) -> None:
    async with open_stage(recovery_s=300.0) as stage:
        stage.personas.record_turn(stage.aria, line="", tokens_used=10**6, took_s=0, talked_s=0)
        assert not stage.personas.is_available(stage.aria)
        await trio.sleep(59.9)
        assert not stage.personas.is_available(stage.aria)
        await trio.sleep(0.2)
        assert stage.personas.is_available(stage.aria)


async def test_the_state_of_who_is_gone_is_not_kept(autojump_clock: MockClock) -> None:
    async with open_stage() as stage:
        aria = stage.aria
        await stage.personas.delete(aria)
        stage.personas.record_turn(aria, line="", tokens_used=10**6, took_s=0, talked_s=0)
        assert stage.personas.is_available(attrs.evolve(aria))
