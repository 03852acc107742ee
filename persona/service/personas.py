"""Who exists, and how they feel.

Personas and their interaction states are served from memory: the database is read once at the
start and written through on every change. This object is the only writer of both tables.
"""

import uuid
from collections.abc import Callable
from typing import Any

import attrs

from persona.errors import Conflict, InvalidParams, PersonaNotFound
from persona.model import InteractionState, Persona
from persona.service import availability
from persona.storage import store
from persona.storage.pool import Database

OnChange = Callable[[str, Persona], None]


class Personas:
    """The cast. `on_change` is told `created`, `updated` or `deleted` after the fact is on disk."""

    def __init__(
        self, database: Database, *, recovery_s: float, now: Callable[[], float], on_change: OnChange
    ) -> None:
        self._database = database
        self._recovery_s = recovery_s
        self._now = now
        self._on_change = on_change
        self._by_id: dict[str, Persona] = {}
        self._ids_by_name: dict[str, str] = {}
        self._states: dict[str, InteractionState] = {}

    async def load(self) -> None:
        """Read everybody from the database."""
        for persona in await self._database.read(store.list_personas):
            self._remember(persona)
        for state in await self._database.read(store.load_states):
            self._states[state.persona_id] = state

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
        """Add a persona. Raises `Conflict` when the name is taken."""
        now = self._now()
        persona = Persona(id=uuid.uuid4().hex, created_at=now, updated_at=now, **fields)
        self._claim_name(persona)
        try:
            await self._database.write(lambda conn: store.insert_persona(conn, persona))
        except BaseException:
            self._release_name(persona)
            raise
        self._remember(persona)
        self._on_change("created", persona)
        return persona

    async def update(self, persona: Persona, changes: dict[str, Any], version: int | None) -> Persona:
        """Change a persona's fields.

        Raises `Conflict` when `version` is given and is not the current one, or the new name is
        taken; `InvalidParams` when nothing changes.
        """
        if not changes:
            raise InvalidParams("nothing to change was given")
        if version is not None and version != persona.version:
            raise Conflict(f"the persona is at version {persona.version}", field="version")
        changed = attrs.evolve(persona, **changes, version=persona.version + 1, updated_at=self._now())
        renamed = changed.name.casefold() != persona.name.casefold()
        if renamed:
            self._claim_name(changed)
        try:
            done = await self._database.write(
                lambda conn: store.update_persona(conn, changed, persona.version)
            )
            if not done:
                raise Conflict("the persona was changed or deleted meanwhile", field="version")
        except BaseException:
            if renamed:
                self._release_name(changed)
            raise
        if renamed:
            self._release_name(persona)
        self._remember(changed)
        self._on_change("updated", changed)
        return changed

    async def delete(self, persona: Persona) -> None:
        """Remove a persona and everything of it: conversations, turns, state."""
        await self._database.write(lambda conn: store.delete_persona(conn, persona.id))
        self._by_id.pop(persona.id, None)
        self._states.pop(persona.id, None)
        self._release_name(persona)
        self._on_change("deleted", persona)

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
        self, persona: Persona, *, line: str, tokens_used: int, processing_time_s: float
    ) -> InteractionState:
        """Let a turn take its toll, in memory; `save_state` puts it on disk when there is time."""
        state = availability.after_turn(
            self.state(persona),
            persona,
            line=line,
            tokens_used=tokens_used,
            processing_time_s=processing_time_s,
            recovery_s=self._recovery_s,
        )
        if persona.id in self._by_id:
            self._states[persona.id] = state
        return state

    async def save_state(self, persona_id: str) -> None:
        """Write the state as it is now; nothing when the persona is gone meanwhile."""
        state = self._states.get(persona_id)
        if state is not None:
            await self._database.write(lambda conn: store.save_state(conn, state))

    def _remember(self, persona: Persona) -> None:
        self._by_id[persona.id] = persona
        self._ids_by_name[persona.name.casefold()] = persona.id

    def _claim_name(self, persona: Persona) -> None:
        # Claimed before the write, so that two requests cannot both pass the check and then
        # meet in the database.
        if self._ids_by_name.setdefault(persona.name.casefold(), persona.id) != persona.id:
            raise Conflict("a persona of this name exists already", field="name")

    def _release_name(self, persona: Persona) -> None:
        if self._ids_by_name.get(persona.name.casefold()) == persona.id:
            del self._ids_by_name[persona.name.casefold()]
