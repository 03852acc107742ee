"""What each method takes. One declaration gives types, checks, error paths and JSON Schema.

`rpc.validation` makes them. These are the only classes of msgspec's own here: it makes an attrs instance of
a dict in half a microsecond, and one of these in a tenth, which a ping shows.
"""

from typing import Annotated, Any

from msgspec import UNSET, Meta, Struct, UnsetType, field

from persona.model import Priority

# Python's `$` also matches before a last newline, that of JSON Schema does not; `(?!\n)` is for both.
Name = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=80,
        pattern=r"^[^\x00-\x20\x7f-\xa0\u2028\u2029][^\x00-\x1f\x7f-\x9f\u2028\u2029]*$(?!\n)",
        description="one line without control characters that begins with no space",
    ),
]
Reference = Annotated[str, Meta(min_length=1, max_length=128, description="an id, or a name in any case")]
Text = Annotated[str, Meta(max_length=8000)]
Score = Annotated[int, Meta(ge=1, le=20)]
Liking = Annotated[int, Meta(ge=0, le=100, description="0 dislikes, 100 loves")]
Likings = Annotated[dict[Annotated[str, Meta(min_length=1, max_length=80)], Liking], Meta(max_length=100)]
Traits = (
    Annotated[dict[str, Any], Meta(max_length=100)]
    | Annotated[list[Annotated[str, Meta(max_length=200)]], Meta(max_length=100)]
)
Rank = Annotated[str, Meta(min_length=1, max_length=80)]
Energy = Annotated[float, Meta(gt=0, le=10_000)]
Limit = Annotated[int, Meta(ge=1, le=200)]
StopSequences = Annotated[list[Annotated[str, Meta(min_length=1, max_length=200)]], Meta(max_length=8)]
ConversationId = Annotated[str, Meta(min_length=1, max_length=64)]
TurnId = Annotated[int, Meta(ge=1, le=2**63 - 1)]
Line = Annotated[str, Meta(min_length=1, max_length=32_000)]
TokenBudget = Annotated[int, Meta(ge=1, le=32_768)]
ClientMsgId = Annotated[str, Meta(min_length=1, max_length=128)]
Topic = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=64,
        pattern=r"^[a-z][a-z0-9_.:-]*$(?!\n)",
        description="a small letter, then small letters, digits and any of `_.:-`",
    ),
]


class Params(Struct, forbid_unknown_fields=True):
    """What a method takes. `timeout_s`, which all of them take, is none of these."""


class NoParams(Params):
    """No parameters."""


class PersonaRef(Params):
    """Which persona."""

    persona_id: Reference


class OptionalPersonaRef(Params):
    """Which persona; the session's current one if left out."""

    persona_id: Reference | None = None


class CreatePersona(Params):
    """A new persona."""

    name: Name
    description: Annotated[str, Meta(min_length=1, max_length=2000)]
    personality_traits: Traits = field(default_factory=dict)
    topic_preferences: Likings = field(default_factory=dict)
    charisma: Score = 10
    intelligence: Score = 10
    social_rank: Rank = "commoner"
    backstory: Text = ""
    current_priority: Priority = Priority.CASUAL
    max_social_energy: Energy = 100.0
    max_available_time: Energy = 300.0


class UpdatePersona(Params):
    """The fields to change; `version` makes the change fail when somebody else was faster."""

    persona_id: Reference
    version: Annotated[int, Meta(ge=1)] | None = None
    name: Name | UnsetType = UNSET
    description: Annotated[str, Meta(min_length=1, max_length=2000)] | UnsetType = UNSET
    personality_traits: Traits | UnsetType = UNSET
    topic_preferences: Likings | UnsetType = UNSET
    charisma: Score | UnsetType = UNSET
    intelligence: Score | UnsetType = UNSET
    social_rank: Rank | UnsetType = UNSET
    backstory: Text | UnsetType = UNSET
    current_priority: Priority | UnsetType = UNSET
    max_social_energy: Energy | UnsetType = UNSET
    max_available_time: Energy | UnsetType = UNSET


class ModelOptions(Params):
    """Handed to the model as given; left out means the model's own choice."""

    model: Annotated[str, Meta(min_length=1, max_length=200)] | None = None
    temperature: Annotated[float, Meta(ge=0, le=2)] | None = None
    top_p: Annotated[float, Meta(gt=0, le=1)] | None = None
    stop: StopSequences = field(default_factory=list)
    seed: Annotated[int, Meta(ge=0, le=2**63 - 1)] | None = None


class ChatParams(Params):
    """One line to a persona. `token_budget` bounds what the model may generate."""

    message: Line
    token_budget: TokenBudget = 500
    persona_id: Reference | None = None
    conversation_id: ConversationId | None = None
    client_msg_id: ClientMsgId | None = None
    options: ModelOptions = field(default_factory=ModelOptions)
    include_context: bool = False


class ChatOrStreamParams(ChatParams):
    """As `persona.chat_stream`; with `stream` the progress comes as `stream.event` notifications."""

    stream: bool = False


class CancelParams(Params):
    """Which request: by the `stream_id` of its events, or by the request's own id."""

    stream_id: Annotated[str, Meta(min_length=1, max_length=64)] | None = None
    request_id: str | int | None = None


class HistoryParams(Params):
    """Whose turns: a conversation's, or those with a persona, else those with the current one."""

    conversation_id: ConversationId | None = None
    persona_id: Reference | None = None
    limit: Limit = 20
    before: TurnId | None = None


class RegenerateParams(Params):
    """Which answer to give anew, or which line to answer again; the last one of the conversation if left
    out. Whose conversation, and what the model gets: as in `persona.chat`."""

    turn_id: TurnId | None = None
    token_budget: TokenBudget = 500
    persona_id: Reference | None = None
    conversation_id: ConversationId | None = None
    client_msg_id: ClientMsgId | None = None
    options: ModelOptions = field(default_factory=ModelOptions)
    include_context: bool = False


class RegenerateOrStreamParams(RegenerateParams):
    """As `conversation.regenerate_stream`; `stream` as in `persona.chat`."""

    stream: bool = False


class EditParams(Params):
    """Which line to say differently, and how; the rest is as in `persona.chat`."""

    turn_id: TurnId
    message: Line
    token_budget: TokenBudget = 500
    persona_id: Reference | None = None
    conversation_id: ConversationId | None = None
    client_msg_id: ClientMsgId | None = None
    options: ModelOptions = field(default_factory=ModelOptions)
    include_context: bool = False


class EditOrStreamParams(EditParams):
    """As `conversation.edit_stream`; `stream` as in `persona.chat`."""

    stream: bool = False


class SelectParams(Params):
    """A turn of the branch to be the current one; whose conversation, as in `conversation.history`."""

    turn_id: TurnId
    conversation_id: ConversationId | None = None
    persona_id: Reference | None = None


class DeleteConversationParams(Params):
    """Which conversation; with `turn_id`, only that turn of it and all that follows it."""

    conversation_id: ConversationId
    turn_id: TurnId | None = None


class ConversationListParams(Params):
    """Which conversations; newest first."""

    persona_id: Reference | None = None
    limit: Limit = 20
    before: Annotated[str, Meta(min_length=1, max_length=200)] | None = None


class PingParams(Params):
    """`payload` comes back as sent."""

    payload: Any = None


class TopicParams(Params):
    """Topic names, such as `system` and `personas`."""

    topics: Annotated[list[Topic], Meta(min_length=1, max_length=50)]


class BroadcastParams(Params):
    """An event for every subscriber of `topic`."""

    type: Annotated[str, Meta(min_length=1, max_length=64)]
    data: Any
    topic: Topic = "system"


class MetricsParams(Params):
    """Figures of the last `window_s` seconds."""

    window_s: Annotated[float, Meta(ge=1, le=300)] = 60.0


class TasksParams(Params):
    """At most `siblings` tasks of a kind in each nursery; the rest are counted."""

    siblings: Annotated[int, Meta(ge=1, le=500)] = 3
