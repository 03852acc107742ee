"""What each method answers. The same classes give the published schemas and the Python client's
types. Fields are on the wire under the names they have here; durations are float seconds, times
ISO 8601 in UTC."""

from typing import Any, Literal

import attrs

from persona.errors import PersonaError
from persona.model import Persona, Priority, isoformat


@attrs.frozen(kw_only=True, slots=False)
class PersonaSummary:
    """One entry of `persona.list`."""

    id: str
    name: str
    description: str
    available: bool
    social_energy: float
    current_priority: Priority
    cooldown_remaining: float


@attrs.frozen(kw_only=True, slots=False)
class PersonaList:
    """Answer of `persona.list`."""

    personas: list[PersonaSummary]
    total_count: int
    available_count: int


@attrs.frozen(kw_only=True, slots=False)
class PersonaDetail:
    """The whole persona."""

    id: str
    name: str
    description: str
    personality_traits: dict[str, Any] | list[str]
    topic_preferences: dict[str, int]
    charisma: int
    intelligence: int
    social_rank: str
    backstory: str
    current_priority: Priority
    max_social_energy: float
    max_available_time: float
    version: int
    created_at: str
    updated_at: str

    @classmethod
    def of(cls, persona: Persona) -> "PersonaDetail":
        """The wire's view of `persona`."""
        return cls(
            id=persona.id,
            name=persona.name,
            description=persona.description,
            personality_traits=persona.personality_traits,
            topic_preferences=persona.topic_preferences,
            charisma=persona.charisma,
            intelligence=persona.intelligence,
            social_rank=persona.social_rank,
            backstory=persona.backstory,
            current_priority=persona.current_priority,
            max_social_energy=persona.max_social_energy,
            max_available_time=persona.max_available_time_s,
            version=persona.version,
            created_at=isoformat(persona.created_at),
            updated_at=isoformat(persona.updated_at),
        )


@attrs.frozen(kw_only=True, slots=False)
class PersonaCreated:
    """Answer of `persona.create`."""

    persona_id: str
    name: str
    created: bool
    version: int


@attrs.frozen(kw_only=True, slots=False)
class PersonaDeleted:
    """Answer of `persona.delete`."""

    persona_id: str
    name: str
    deleted: bool
    message: str


@attrs.frozen(kw_only=True, slots=False)
class PersonaSwitched:
    """Answer of `persona.switch`."""

    persona_id: str
    name: str
    description: str
    status: str
    social_energy: float
    available_time: float
    current_priority: Priority
    conversation_id: str


@attrs.frozen(kw_only=True, slots=False)
class InteractionStateView:
    """How a persona feels now."""

    interest_level: float
    interaction_fatigue: float
    current_priority: Priority
    available_time: float
    social_energy: float
    cooldown_until: str | None
    is_available: bool


@attrs.frozen(kw_only=True, slots=False)
class MemoryStats:
    """What a persona has stored."""

    total_turns: int
    total_conversations: int
    last_turn_at: str | None


@attrs.frozen(kw_only=True, slots=False)
class PersonaStatus:
    """Answer of `persona.status`."""

    persona: PersonaDetail
    interaction_state: InteractionStateView
    memory_stats: MemoryStats


@attrs.frozen(kw_only=True, slots=False)
class PersonaState:
    """What a turn took out of the persona."""

    social_energy: float
    available_time: float
    interaction_fatigue: float


@attrs.frozen(kw_only=True, slots=False)
class UsedContext:
    """What the model was given of the conversation."""

    turns: int
    summary: bool
    """Whether a summary told of the turns before."""
    estimated_tokens: int
    """Of the whole prompt, as this server counts."""


@attrs.frozen(kw_only=True, slots=False)
class ChatAnswer:
    """Answer of `persona.chat`, `conversation.regenerate` and `conversation.edit`."""

    response: str
    response_type: str
    continue_score: float
    tokens_used: int
    processing_time: float
    persona_state: PersonaState
    persona_id: str
    persona_name: str
    conversation_id: str
    turn_id: int
    parent_id: int | None
    """The line that it answers."""
    finish_reason: str
    model: str
    time_to_first_token: float
    context: UsedContext | None
    """Only where `include_context` asked for it."""


@attrs.frozen(kw_only=True, slots=False)
class StreamEvent:
    """One event of a stream; `data` depends on `event_type`, and what is repeated beside it does too."""

    event_type: str
    stream_id: str
    timestamp: str
    data: dict[str, Any]
    persona_id: str | None = None
    chunk: str | None = None
    full_response: str | None = None
    tokens_used: int | None = None
    processing_time: float | None = None


@attrs.frozen(kw_only=True, slots=False)
class StreamCancelled:
    """Answer of `stream.cancel`."""

    cancelled: bool
    stream_id: str | None = None


@attrs.frozen(kw_only=True, slots=False)
class TurnView:
    """One line of a conversation, and its place among its siblings: the turns that follow the same one."""

    id: int
    role: str
    speaker_id: str
    content: str
    created_at: str
    tokens_used: int
    finish_reason: str | None
    parent_id: int | None
    """The turn it follows; `None` for the first."""
    sibling_index: int
    """From 1, oldest first."""
    sibling_count: int
    """The turn itself among them, so never 0."""
    previous_sibling_id: int | None
    next_sibling_id: int | None


@attrs.frozen(kw_only=True, slots=False)
class History:
    """Answer of `conversation.history`: the current branch, oldest first; pass `next_before` as
    `before`."""

    conversation_id: str | None
    """`None` where there is no conversation yet."""
    turns: list[TurnView]
    has_more: bool
    next_before: int | None
    current_turn_id: int | None
    """The last turn of the current branch; `None` where nothing was said."""


@attrs.frozen(kw_only=True, slots=False)
class BranchSelected:
    """Answer of `conversation.select`."""

    conversation_id: str
    turn_id: int
    """As asked."""
    current_turn_id: int
    """The last turn of the branch that is current now."""


@attrs.frozen(kw_only=True, slots=False)
class ConversationDeleted:
    """Answer of `conversation.delete`."""

    conversation_id: str
    deleted: bool
    turns_deleted: int
    current_turn_id: int | None
    """The last turn of the current branch; `None` where nothing is left."""


@attrs.frozen(kw_only=True, slots=False)
class ConversationView:
    """One entry of `conversation.list`."""

    id: str
    persona_id: str
    persona_name: str
    created_at: str
    updated_at: str
    turn_count: int


@attrs.frozen(kw_only=True, slots=False)
class ConversationList:
    """Answer of `conversation.list`: newest first; pass `next_before` as `before`."""

    conversations: list[ConversationView]
    has_more: bool
    next_before: str | None


@attrs.frozen(kw_only=True, slots=False)
class ServerInfo:
    """Who answers."""

    name: str
    version: str
    engine: str
    llm: str


@attrs.frozen(kw_only=True, slots=False)
class SessionInfo:
    """Answer of `session.info`. `limits` holds what a client must stay under, by setting name."""

    session_id: str
    user: str
    role: str
    current_persona: str | None
    conversation_id: str | None
    limits: dict[str, float]
    server: ServerInfo


@attrs.frozen(kw_only=True, slots=False)
class SessionCleared:
    """Answer of `session.clear`."""

    cleared: bool


@attrs.frozen(kw_only=True, slots=False)
class Topics:
    """The topics a session is subscribed to now."""

    topics: list[str]


# Not frozen, as the others are: the price of freezing shows where an answer is all there is to do.
@attrs.define(kw_only=True, slots=False)
class Pong:
    """Answer of `system.ping`."""

    pong: bool
    payload: Any
    time: str


@attrs.frozen(kw_only=True, slots=False)
class Circuit:
    """The circuit breaker before the model: `closed` while it answers, `open` while it is left alone, and
    `half_open` while one request tries whether it is back."""

    state: Literal["closed", "half_open", "open"]
    since: str


@attrs.frozen(kw_only=True, slots=False)
class SystemStatus:
    """Answer of `system.status`."""

    system_status: str
    status: str
    llm_available: bool
    llm_circuit: Circuit
    total_personas: int
    available_personas: int
    active_conversations: int
    current_persona: str | None
    current_conversation: str | None
    timestamp: str
    uptime_seconds: float
    active_connections: int
    total_requests: int
    avg_response_time: float
    memory_usage_mb: float


@attrs.frozen(kw_only=True, slots=False)
class Models:
    """Answer of `system.models`."""

    available_models: list[str]
    current_model: str
    provider: str


@attrs.frozen(kw_only=True, slots=False)
class Broadcast:
    """Answer of `system.broadcast`."""

    delivered: int
    dropped: int


@attrs.frozen(kw_only=True, slots=False)
class OpenRPCDocument:
    """Answer of `rpc.discover`: see the OpenRPC 1.4 specification."""

    openrpc: str
    info: dict[str, Any]
    servers: list[dict[str, Any]]
    methods: list[dict[str, Any]]
    components: dict[str, Any]


def error_schema() -> dict[str, Any]:
    """JSON Schema of `error.data`."""
    return {
        "type": "object",
        "properties": {
            "reason": {"type": "string", "enum": sorted({c.reason for c in error_classes()})},
            "retryable": {"type": "boolean"},
            "retry_after_s": {"type": "number", "minimum": 0},
            "field": {"type": "string"},
        },
        "required": ["reason", "retryable"],
    }


def error_classes() -> list[type[PersonaError]]:
    """Every class of the error tree that can be answered, by code."""
    return sorted(PersonaError.__subclasses__(), key=lambda c: -c.code)
