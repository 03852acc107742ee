"""`persona.*`: the cast, and talking to it."""

from typing import Any

from msgspec import UNSET

from persona.errors import NoActivePersona, PersonaNotFound
from persona.model import Persona, isoformat
from persona.rpc import params as p
from persona.rpc import results as r
from persona.rpc.dispatch import Call, Caller, method
from persona.service import availability
from persona.service.conversations import Conversations
from persona.service.personas import Personas
from persona.service.sessions import Session

# On the wire durations have no unit suffix; in the model they do.
_MODEL_NAMES = {"max_available_time": "max_available_time_s"}


class PersonaMethods:
    """Everything about the cast but the talking."""

    def __init__(self, personas: Personas, conversations: Conversations) -> None:
        self._personas = personas
        self._conversations = conversations

    @method("persona.list", params=p.NoParams, result=r.PersonaList)
    def list(self, _caller: Caller, _params: p.NoParams) -> r.PersonaList:
        """Everybody there is, and who is available."""
        summaries = [self._summary(persona) for persona in self._personas.all()]
        return r.PersonaList(
            personas=summaries,
            total_count=len(summaries),
            available_count=sum(summary.available for summary in summaries),
        )

    @method("persona.get", params=p.PersonaRef, result=r.PersonaDetail)
    def get(self, _caller: Caller, params: p.PersonaRef) -> r.PersonaDetail:
        """The whole persona."""
        return r.PersonaDetail.of(self._personas.find(params.persona_id))

    @method("persona.create", params=p.CreatePersona, result=r.PersonaCreated)
    async def create(self, _call: Call, params: p.CreatePersona) -> r.PersonaCreated:
        """Add a persona; its name must be free."""
        persona = await self._personas.create(**_given(params))
        return r.PersonaCreated(
            persona_id=persona.id, name=persona.name, created=True, version=persona.version
        )

    @method("persona.update", params=p.UpdatePersona, result=r.PersonaDetail)
    async def update(self, _call: Call, params: p.UpdatePersona) -> r.PersonaDetail:
        """Change a persona's fields; with `version`, only if nobody else changed it meanwhile."""
        changes = _given(params)
        del changes["persona_id"], changes["version"]
        persona = self._personas.find(params.persona_id)
        return r.PersonaDetail.of(await self._personas.update(persona, changes, params.version))

    @method("persona.delete", params=p.PersonaRef, result=r.PersonaDeleted)
    async def delete(self, _call: Call, params: p.PersonaRef) -> r.PersonaDeleted:
        """Delete a persona and everything of it, conversations included."""
        persona = self._personas.find(params.persona_id)
        await self._personas.delete(persona)
        return r.PersonaDeleted(
            persona_id=persona.id,
            name=persona.name,
            deleted=True,
            message=f"{persona.name} and all that was said with {persona.name} are gone",
        )

    @method("persona.switch", params=p.PersonaRef, result=r.PersonaSwitched, ordered=True)
    async def switch(self, call: Call, params: p.PersonaRef) -> r.PersonaSwitched:
        """Make a persona the one this session talks to."""
        persona = self._personas.find(params.persona_id)
        conversation_id = await self._conversations.current(call.session, persona)
        call.session.current_persona_id = persona.id
        state = self._personas.state(persona)
        return r.PersonaSwitched(
            persona_id=persona.id,
            name=persona.name,
            description=persona.description,
            status="active",
            social_energy=round(state.social_energy, 2),
            available_time=round(state.available_time_s, 2),
            current_priority=persona.current_priority,
            conversation_id=conversation_id,
        )

    @method("persona.status", params=p.OptionalPersonaRef, result=r.PersonaStatus)
    async def status(self, call: Call, params: p.OptionalPersonaRef) -> r.PersonaStatus:
        """How a persona feels, and what it has stored."""
        persona = resolve_persona(self._personas, call.session, params.persona_id)
        state = self._personas.state(persona)
        is_available = availability.cooldown_remaining_s(state) == 0
        rests_until = None if is_available else state.cooldown_until
        turns, conversations, last_turn_at = await self._conversations.statistics(persona)
        return r.PersonaStatus(
            persona=r.PersonaDetail.of(persona),
            interaction_state=r.InteractionStateView(
                interest_level=round(state.interest_level, 2),
                interaction_fatigue=round(state.interaction_fatigue, 2),
                current_priority=persona.current_priority,
                available_time=round(state.available_time_s, 2),
                social_energy=round(state.social_energy, 2),
                cooldown_until=None if rests_until is None else isoformat(rests_until),
                is_available=is_available,
            ),
            memory_stats=r.MemoryStats(
                total_turns=turns,
                total_conversations=conversations,
                last_turn_at=None if last_turn_at is None else isoformat(last_turn_at),
            ),
        )

    def _summary(self, persona: Persona) -> r.PersonaSummary:
        state = self._personas.state(persona)
        remaining = availability.cooldown_remaining_s(state)
        return r.PersonaSummary(
            id=persona.id,
            name=persona.name,
            description=persona.description,
            available=remaining == 0,
            social_energy=round(state.social_energy, 2),
            current_priority=persona.current_priority,
            cooldown_remaining=round(remaining, 3),
        )


def resolve_persona(personas: Personas, session: Session, reference: str | None) -> Persona:
    """The persona named, else the session's current one.

    Raises `PersonaNotFound`, or `NoActivePersona` when none is named and none is current.
    """
    if reference is not None:
        return personas.find(reference)
    if session.current_persona_id is None:
        raise NoActivePersona("no persona is active; call persona.switch first")
    current = personas.get(session.current_persona_id)
    if current is None:
        raise PersonaNotFound("the active persona was deleted; call persona.switch")
    return current


def _given(params: p.CreatePersona | p.UpdatePersona) -> dict[str, Any]:
    """The fields that were given, under the model's names."""
    return {
        _MODEL_NAMES.get(name, name): value
        for name in type(params).__annotations__
        if (value := getattr(params, name)) is not UNSET
    }
