"""What a turn is asked for with, where in its conversation's tree it belongs, and what comes of it.

A turn is one of three: something new is said at the end of the current branch, a line is said
differently (a sibling of it), or a line that was said already gets another answer (a sibling of the
first). In each case what is there already stays as it is.
"""

import hashlib
import math
import sqlite3
from typing import Any, Protocol

import attrs
import orjson

from persona.errors import Conflict, InvalidParams, NotFound
from persona.llm.backend import GenerateOptions
from persona.llm.prompt import BuiltPrompt, estimate_tokens
from persona.model import FinishReason, Persona, Spoken, Turn
from persona.storage import turns
from persona.storage.summaries import after_summary
from persona.storage.turns import Spot

MAX_HISTORY_TURNS = 200
"""Turns read for a prompt: more than fit any context this server is likely to meet."""
WHOLE: tuple[FinishReason, ...] = ("stop", "length")
"""How an answer ends that was not cut."""
MAX_BYTES_PER_TOKEN = 32
"""Of an answer's tokens, on the average: a word has four to ten, so only who does not count gets there."""
MAX_ANSWER_BYTES = 256 * 1024
"""Where an answer is cut whatever its budget: a model that never stops must not fill the memory or the
database."""


@attrs.frozen(kw_only=True)
class TurnRequest:
    """What is asked of a persona, already checked against the session's rights."""

    persona: Persona
    conversation_id: str
    user: str
    party: str
    line: str | None
    """What is said; `None` asks for another answer to what was said already."""
    options: GenerateOptions
    instead_of: int | None = None
    """The turn to be given a sibling: a line to be said differently, or an answer (or the line it is to)
    to be given anew. Where it is left out, something new is said, or the last answer given anew."""
    client_msg_id: str | None = None

    def body_hash(self) -> bytes:
        """Tells this request from another one under the same `client_msg_id`: of all that the answer
        depends on, and not of how it is sent."""
        body = {"line": self.line, "instead_of": self.instead_of, **attrs.asdict(self.options)}
        # What was left out is not in it, so that an option that comes later changes no older hash.
        given = {name: value for name, value in body.items() if value not in (None, ())}
        packed = orjson.dumps(given, option=orjson.OPT_SORT_KEYS)
        return hashlib.blake2b(packed, digest_size=16).digest()


@attrs.frozen(kw_only=True)
class TurnAnswer:
    """What came of it. Durations are seconds; `time_to_first_token_s` counts from the request."""

    text: str
    response_type: str
    conversation_id: str
    turn_id: int
    parent_id: int | None
    """The line it answers."""
    finish_reason: FinishReason
    model: str
    tokens_used: int
    processing_time_s: float
    time_to_first_token_s: float
    continue_score: float
    social_energy: float
    available_time_s: float
    interaction_fatigue: float
    context: dict[str, Any] | None = None
    """What the model was given: `turns`, `summary`, `estimated_tokens`. Answers of earlier versions do not
    know."""

    @classmethod
    def stored(cls, turn: Turn) -> "TurnAnswer":
        """The answer as it was stored, so that giving it again gives the same."""
        return cls(
            text=turn.content,
            conversation_id=turn.conversation_id,
            turn_id=turn.id,
            parent_id=turn.parent_id,
            finish_reason=turn.finish_reason or "stop",
            tokens_used=turn.tokens_used,
            **(turn.details or {}),
        )


class TurnObserver(Protocol):
    """Told of a turn's progress as it happens. Must not wait and must not raise."""

    def started(self, line: str) -> None:
        """The turn will be attempted: `line` is to be answered."""
        ...

    def queued(self, position: int) -> None:
        """It waits for the model; 1 is next."""
        ...

    def delta(self, text: str) -> None:
        """A piece of the answer."""
        ...


@attrs.frozen(kw_only=True)
class Opening:
    """What a turn begins with."""

    line: str
    question: Turn | None = None
    """The line, where it was said already: then only the answer is added."""
    follows: int | None = None
    """The turn that a line said differently follows."""
    stored: Turn | None = None
    """The whole answer that was given to this `client_msg_id` before."""
    cut: Turn | None = None
    """The answer to this `client_msg_id` that was cut; the new one takes the id over."""


@attrs.frozen(kw_only=True)
class Context:
    """What was said before the line, oldest first; `summary` tells of what was before that."""

    history: list[Spoken]
    summary: str = ""


@attrs.define(eq=False)
class Draft:
    """An answer in the making."""

    started_at: float
    persona_id: str
    admitted_at: float = math.inf
    """When the persona let it in; `talks_since` is when it got the model. On trio's clock, as all here."""
    talks_since: float = math.inf
    budget_tokens: int = 0
    """What the prompt may take."""
    context: Context | None = None
    prompt: BuiltPrompt | None = None
    opening: Opening | None = None
    spot: Spot | None = None
    deltas: list[str] = attrs.field(factory=list)
    size_bytes: int = 0
    first_token_at: float | None = None
    finish_reason: FinishReason = "stop"
    model: str = ""
    tokens: int | None = None

    def add(self, text: str, max_tokens: int) -> str:
        """Take a delta, or as much of it as there is room for in an answer of so many tokens; what was
        taken. A delta is a token or more, so a backend that obeys its budget never finds too little."""
        room = min(max_tokens * MAX_BYTES_PER_TOKEN, MAX_ANSWER_BYTES) - self.size_bytes
        if len(self.deltas) >= max_tokens:
            room = 0
        data = text.encode()
        if len(data) > room:
            data = data[:room]
            text = data.decode(errors="ignore")  # no half letter
        if text:
            self.deltas.append(text)
            self.size_bytes += len(data)
        return text

    @property
    def text(self) -> str:
        return "".join(self.deltas)

    @property
    def tokens_used(self) -> int:
        """The backend's own count, else our estimate of what was said."""
        return self.tokens if self.tokens is not None else estimate_tokens(self.text)

    @property
    def parent_id(self) -> int | None:
        """The turn it will follow, as far as that is known."""
        if self.spot is not None:
            return self.spot.parent_id
        if self.opening is None:
            return None
        question = self.opening.question
        return self.opening.follows if question is None else question.id


def find_opening(conn: sqlite3.Connection, request: TurnRequest) -> Opening:
    """What the turn begins with.

    Raises `NotFound` when the conversation or the turn it names is gone, `InvalidParams` when that turn
    is no line, `Conflict` when the `client_msg_id` was used with another body.
    """
    if request.client_msg_id is not None:
        found = turns.answer_by_client_msg_id(conn, request.conversation_id, request.client_msg_id)
        if found is not None:
            return _answered_before(request, *found)
    if request.line is None:
        question = _question(conn, request)
        return Opening(line=question.content, question=question)
    if request.instead_of is None:
        return Opening(line=request.line)
    edited = turns.get_turn(conn, request.conversation_id, request.instead_of)
    if edited.role != "user":
        text = "only a line of the user can be said differently; an answer can be regenerated"
        raise InvalidParams(text, field="turn_id")
    return Opening(line=request.line, follows=edited.parent_id)


def find_context(conn: sqlite3.Connection, request: TurnRequest, opening: Opening) -> tuple[Context, Spot]:
    """What was said before the line, and where the new turns go. Raises `NotFound` when the conversation is
    gone."""
    leaf_id = turns.current_leaf(conn, request.conversation_id)
    # A repeated request moves on from the answer it repeats, and not from where the user is by now.
    seen = leaf_id if opening.cut is None else opening.cut.id
    follows = leaf_id if request.instead_of is None else opening.follows
    last_id, parent_id = follows, follows
    if opening.question is not None:
        last_id, parent_id = opening.question.parent_id, opening.question.id
    summary, history = after_summary(conn, request.conversation_id, last_id, MAX_HISTORY_TURNS)
    context = Context(history=history, summary="" if summary is None else summary.content)
    return context, Spot(parent_id=parent_id, seen_leaf_id=seen)


def _answered_before(request: TurnRequest, answer: Turn, question: Turn) -> Opening:
    # An answer from before there were branches has no hash; then, the line was all that was compared.
    is_same = (
        question.content == request.line
        if answer.body_hash is None
        else answer.body_hash == request.body_hash()
    )
    if not is_same:
        raise Conflict("this client_msg_id was used with another request", field="client_msg_id")
    if answer.finish_reason in WHOLE:
        return Opening(line=question.content, question=question, stored=answer)
    return Opening(line=question.content, question=question, cut=answer)


def _question(conn: sqlite3.Connection, request: TurnRequest) -> Turn:
    """The line that is to be answered again."""
    turn_id = request.instead_of
    if turn_id is None:
        turn_id = turns.current_leaf(conn, request.conversation_id)
    if turn_id is None:
        raise NotFound("nothing was said in this conversation yet", field="turn_id")
    turn = turns.get_turn(conn, request.conversation_id, turn_id)
    if turn.role == "user" or turn.parent_id is None:
        return turn
    return turns.get_turn(conn, request.conversation_id, turn.parent_id)
