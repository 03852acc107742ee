"""The nouns of the domain. Plain values, no I/O.

Times are `float` seconds since the epoch (UTC); `isoformat` turns one into the wire's form.
"""

import enum
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Literal, NamedTuple

import attrs

Role = Literal["user", "assistant"]
FinishReason = Literal["stop", "length", "cancelled", "timeout", "error", "disconnected"]


def isoformat(time_s: float) -> str:
    """ISO 8601 in UTC with milliseconds and `Z`: `2026-01-31T12:00:00.000Z`."""
    return _moment(round(time_s * 1e6) // 1000)


# Nearly every time that is written is of this moment: the events and answers of one turn of the loop.
@lru_cache(maxsize=16)
def _moment(milliseconds: int) -> str:
    seconds, rest = divmod(milliseconds, 1000)
    return f"{_second(seconds)}.{rest:03d}Z"


@lru_cache(maxsize=16)
def _second(seconds: int) -> str:
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%dT%H:%M:%S}"


class Priority(enum.StrEnum):
    """What a persona has on its mind, from idle to critical."""

    NONE = "none"
    CASUAL = "casual"
    SOCIAL = "social"
    ACADEMIC = "academic"
    BUSINESS = "business"
    URGENT = "urgent"
    IMPORTANT = "important"
    CRITICAL = "critical"


@attrs.frozen(kw_only=True)
class Persona:
    """A character. `version` rises by one with each change."""

    id: str
    name: str
    description: str
    personality_traits: dict[str, Any] | list[str] = attrs.field(factory=dict)
    """Trait name to strength or wording, or a bare list of traits: kept as its author gave it."""
    topic_preferences: dict[str, int] = attrs.field(factory=dict)
    """Topic to liking, 0 (dislikes) to 100 (loves)."""
    charisma: int = 10
    intelligence: int = 10
    social_rank: str = "commoner"
    backstory: str = ""
    current_priority: Priority = Priority.CASUAL
    max_social_energy: float = 100.0
    """Energy when rested; a turn costs some, time gives it back."""
    max_available_time_s: float = 300.0
    """Seconds of talking it has in it when rested."""
    version: int = 1
    created_at: float
    updated_at: float


@attrs.frozen(kw_only=True)
class InteractionState:
    """How a persona feels, as of `as_of`; `service.availability` moves it through time."""

    persona_id: str
    as_of: float
    social_energy: float
    available_time_s: float
    interaction_fatigue: float = 0.0
    interest_level: float = 50.0
    cooldown_until: float | None = None
    """When the last rest ends, or ended."""


@attrs.frozen(kw_only=True)
class Conversation:
    """One user's talk with one persona. `id` cannot be guessed: an anonymous client that
    knows it may go on with the conversation."""

    id: str
    persona_id: str
    user: str
    created_at: float
    updated_at: float
    turn_count: int = 0


@attrs.frozen(kw_only=True)
class Turn:
    """One line of a conversation.

    `parent_id` is the turn it follows; turns that follow the same one are siblings. An assistant's turn
    holds what it takes to give the answer again: the `client_msg_id` it was asked under, if the client
    gave one, with `body_hash`, which tells another request under that id, and `details` (JSON-ready).
    """

    id: int
    conversation_id: str
    parent_id: int | None
    role: Role
    speaker_id: str
    content: str
    created_at: float
    tokens_used: int = 0
    finish_reason: FinishReason | None = None
    client_msg_id: str | None = None
    body_hash: bytes | None = None
    details: dict[str, Any] | None = None


class Spoken(NamedTuple):
    """What was said in a turn: all that a model is shown of it."""

    id: int
    role: Role
    content: str


@attrs.frozen(kw_only=True)
class Siblings:
    """A turn's place among the turns that follow the same one, oldest first."""

    index: int
    """From 1."""
    count: int
    """How many there are, the turn itself among them."""
    previous_id: int | None
    next_id: int | None


@attrs.frozen(kw_only=True)
class NewTurn:
    """A turn that has no id yet."""

    role: Role
    speaker_id: str
    content: str
    created_at: float
    tokens_used: int = 0
    finish_reason: FinishReason | None = None
    client_msg_id: str | None = None
    body_hash: bytes | None = None
    details: dict[str, Any] | None = None
