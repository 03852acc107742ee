"""Who exists, and how they feel.

Personas and their interaction states are served from memory: the database is read once at the
start and written through on every change. This object is the only writer of both tables.
"""

import sqlite3
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeVar

import attrs
import trio

from persona.errors import Conflict, InvalidParams, MemoryFailure, PersonaNotFound
from persona.model import InteractionState, Persona
from persona.service import availability
from persona.storage import store
from persona.storage.pool import Database, write_shielded

OnChange = Callable[[str, Persona], None]
T = TypeVar("T")


class Personas:
    """The cast. `on_change` is told `created`, `updated` or `deleted` after the fact is on disk."""

    def __init__(
        self,
        database: Database,
        *,
        max_personas: int,
        recovery_s: float,
        now: Callable[[], float],
        on_change: OnChange,
    ) -> None:
        self._database = database
        self._max_personas = max_personas
        self._recovery_s = recovery_s
        self._now = now
        self._on_change = on_change
        self._by_id: dict[str, Persona] = {}
        self._ids_by_name: dict[str, str] = {}
        self._states: dict[str, InteractionState] = {}
        self._changes = trio.Lock()
        self._is_in_doubt = False
        """Whether the outcome of a write is not known."""

    async def load(self) -> None:
        """Read everybody from the database. States that are in memory already are newer and stay."""
        # As a write: it comes after one that is not known to have ended, of which a reader sees nothing yet.
        personas, states = await self._database.write(
            lambda conn: (store.list_personas(conn), store.load_states(conn))
        )
        self._by_id.clear()
        self._ids_by_name.clear()
        for persona in personas:
            self._remember(persona)
        known = {state.persona_id: state for state in states} | self._states
        self._states = {key: state for key, state in known.items() if key in self._by_id}

    def all(self) -> list[Persona]:
        """Everybody, by name."""
        return sorted(self._by_id.values(), key=lambda persona: persona.name.casefold())

    def find(self, reference: str) -> Persona:
        """By id, else by name whatever its case. Raises `PersonaNotFound`."""
        persona = self._by_id.get(reference)
        if persona is None:
            persona = self._by_id.get(self._ids_by_name.get(reference.casefold(), ""))
        if persona is None:
            raise PersonaNotFound("no persona has this id or name", field="persona_id")
        return persona

    def get(self, persona_id: str) -> Persona | None:
        """By id; `None` when it is gone."""
        return self._by_id.get(persona_id)

    async def create(self, **fields: Any) -> Persona:
        """Add a persona. Raises `Conflict` when the name is taken, or there are `max_personas` already."""
        async with self._changing():
            if len(self._by_id) >= self._max_personas:
                raise Conflict(f"there are {len(self._by_id)} personas already; delete one first")
            now = self._now()
            persona = Persona(id=uuid.uuid4().hex, created_at=now, updated_at=now, **fields)
            self._require_free_name(persona)
            await self._write(lambda conn: store.insert_persona(conn, persona))
            self._remember(persona)
            self._on_change("created", persona)
            return persona

    async def update(self, persona: Persona, changes: dict[str, Any], version: int | None) -> Persona:
        """Change a persona's fields, whatever became of the others since `persona` was found.

        Raises `Conflict` when `version` is given and is not the current one, or the new name is
        taken; `PersonaNotFound` when it is gone meanwhile; `InvalidParams` when nothing changes.
        """
        if not changes:
            raise InvalidParams("nothing to change was given", field="params")
        async with self._changing():
            current = self._current(persona)
            if version is not None and version != current.version:
                raise Conflict(f"the persona is at version {current.version}", field="version")
            changed = attrs.evolve(current, **changes, version=current.version + 1, updated_at=self._now())
            self._require_free_name(changed)
            if not await self._write(lambda conn: store.update_persona(conn, changed, current.version)):
                self._is_in_doubt = True
                raise Conflict("another program changed or deleted the persona", field="version")
            self._forget(current)
            self._remember(changed)
            self._on_change("updated", changed)
            return changed

    async def delete(self, persona: Persona) -> None:
        """Remove a persona and everything of it: conversations, turns, state. Raises
        `PersonaNotFound` when it is gone already."""
        async with self._changing():
            current = self._current(persona)
            await self._write(lambda conn: store.delete_persona(conn, current.id))
            self._forget(current)
            self._states.pop(current.id, None)
            self._on_change("deleted", current)

    def state(self, persona: Persona) -> InteractionState:
        """How the persona feels now."""
        now = self._now()
        known = self._states.get(persona.id)
        if known is None:
            return availability.rested(persona, now)
        return availability.advance(known, persona, now=now, recovery_s=self._recovery_s)

    def is_available(self, persona: Persona) -> bool:
        """Whether it would answer now."""
        return availability.cooldown_remaining_s(self.state(persona)) == 0

    def record_turn(
        self, persona: Persona, *, line: str, tokens_used: int, took_s: float, talked_s: float
    ) -> InteractionState:
        """Let a turn take its toll, in memory; its caller puts it on disk, with the turn. For the figures see
        `availability.after_turn`."""
        now = self._now()
        state = availability.after_turn(
            self._states.get(persona.id) or availability.rested(persona, now - talked_s),
            persona,
            now=now,
            line=line,
            tokens_used=tokens_used,
            took_s=took_s,
            talked_s=talked_s,
            recovery_s=self._recovery_s,
        )
        if persona.id in self._by_id:
            self._states[persona.id] = state
        return state

    @asynccontextmanager
    async def _changing(self) -> AsyncIterator[None]:
        """One change at a time, and what is in memory at its beginning is what is on disk."""
        async with self._changes:
            if self._is_in_doubt:
                await self.load()
                self._is_in_doubt = False
            yield

    async def _write(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        """Shielded, for a change that is on disk and not in memory would be undone by the next one."""
        try:
            return await write_shielded(self._database, fn)
        except MemoryFailure:
            self._is_in_doubt = True
            raise

    def _current(self, persona: Persona) -> Persona:
        current = self._by_id.get(persona.id)
        if current is None:
            raise PersonaNotFound("the persona was deleted meanwhile", field="persona_id")
        return current

    def _require_free_name(self, persona: Persona) -> None:
        if self._ids_by_name.get(persona.name.casefold(), persona.id) != persona.id:
            raise Conflict("a persona of this name exists already", field="name")

    def _remember(self, persona: Persona) -> None:
        self._by_id[persona.id] = persona
        self._ids_by_name[persona.name.casefold()] = persona.id

    def _forget(self, persona: Persona) -> None:
        del self._by_id[persona.id]
        del self._ids_by_name[persona.name.casefold()]
