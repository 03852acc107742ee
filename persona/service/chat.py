"""One turn: context -> prompt -> a slot of the model -> generation -> saved turn -> answer.

There is one path for every kind of chat. What the client says and what the persona answered are
written in one transaction before the answer is given, so an acknowledged turn is on disk. A turn
that was cut after its first token is saved with what there is and marked with its
`finish_reason`; a turn that failed before its first token leaves no trace, so that it can simply
be tried again.
"""

import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import structlog
import trio

from persona.errors import (
    DeadlineExceeded,
    LLMUnavailable,
    NotFound,
    PersonaError,
    PersonaNotFound,
    RequestCancelled,
    ShuttingDown,
)
from persona.llm.backend import Backend, Completed, Delta
from persona.llm.prompt import BuiltPrompt, Frame, build_messages, frame
from persona.log import internal_error
from persona.metrics import Metrics
from persona.model import InteractionState, NewTurn, Turn
from persona.service import availability
from persona.service.context import ContextBudget
from persona.service.patience import Patience
from persona.service.personas import Personas
from persona.service.scheduler import Scheduler
from persona.service.sessions import RunningRequest
from persona.service.summaries import Summaries
from persona.service.turn import (
    WHOLE,
    Draft,
    Opening,
    TurnAnswer,
    TurnObserver,
    TurnRequest,
    find_context,
    find_opening,
)
from persona.storage import store, turns
from persona.storage.pool import Database, write_shielded

log = structlog.get_logger()

BURST_DELTAS = 16
"""Taken without letting anybody else run. To stop after each costs as much as it does."""


class Chat:
    """Takes turns."""

    def __init__(
        self,
        *,
        database: Database,
        backend: Backend,
        personas: Personas,
        scheduler: Scheduler,
        budget: ContextBudget,
        summaries: Summaries,
        metrics: Metrics,
        first_token_timeout_s: float,
        now: Callable[[], float],
    ) -> None:
        self._database = database
        self._backend = backend
        self._personas = personas
        self._scheduler = scheduler
        self._metrics = metrics
        self._budget = budget
        self._summaries = summaries
        self._first_token_timeout_s = first_token_timeout_s
        self._now = now
        self._under_way: dict[str, dict[RunningRequest, Draft]] = {}

    async def turn(self, request: TurnRequest, running: RunningRequest, observer: TurnObserver) -> TurnAnswer:
        """Take one turn; turns of one conversation are taken one after the other, in order.

        Raises `PersonaUnavailable`, `InvalidParams` (the line is too long for the model's context),
        `Overloaded`, `LLMUnavailable`, `RequestCancelled`, `DeadlineExceeded`, `ShuttingDown`,
        `NotFound` (the conversation, or the turn it belongs to, is gone or was deleted meanwhile),
        `PersonaNotFound` (the same of the persona),
        `Conflict` (the `client_msg_id` was used with another request) or `MemoryFailure`. When a part of
        the answer was saved, the error's `details` hold `partial_response` and `turn_id`. Cancelling
        is safe.
        """
        draft = Draft(started_at=trio.current_time(), persona_id=request.persona.id)
        with self._registered(request, running, draft):
            try:
                return await self._turn(request, running, observer, draft)
            except NotFound as exc:
                if self._personas.get(request.persona.id) is None:
                    raise PersonaNotFound("the persona was deleted meanwhile") from exc
                raise

    def end_turns(self, conversation_id: str, deleted: frozenset[int] | None = None) -> None:
        """The conversation is deleted, or only the turns `deleted` of it: turns under way that belong
        there end with `NotFound`, and nothing of them is kept."""
        for running, draft in self._under_way.get(conversation_id, {}).items():
            if deleted is None or draft.parent_id in deleted:
                running.cancel("deleted")

    def end_turns_with(self, persona_id: str) -> None:
        """The persona is deleted: likewise."""
        for drafts in self._under_way.values():
            for running, draft in drafts.items():
                if draft.persona_id == persona_id:
                    running.cancel("deleted")

    @contextmanager
    def _registered(self, request: TurnRequest, running: RunningRequest, draft: Draft) -> Iterator[None]:
        here = self._under_way.setdefault(request.conversation_id, {})
        here[running] = draft
        try:
            yield
        finally:
            del here[running]
            if not here:
                del self._under_way[request.conversation_id]

    async def _turn(
        self, request: TurnRequest, running: RunningRequest, observer: TurnObserver, draft: Draft
    ) -> TurnAnswer:
        async with self._in_order(request.conversation_id, running):
            with running.interruptible():
                opening = draft.opening = await self._opening(request)
                draft.budget_tokens = await self._budget.prompt_tokens(
                    request.options.model, answer_tokens=request.options.max_tokens
                )
            if opening.stored is not None:
                observer.started(opening.line)
                observer.delta(opening.stored.content)
                return TurnAnswer.stored(opening.stored)
            availability.require_available(self._personas.state(request.persona), request.persona)
            draft.admitted_at = trio.current_time()
            # A line that no prompt can hold is refused before it waits for the model.
            framed = self._frame(request, opening, draft.budget_tokens)
            observer.started(opening.line)
            failure = await self._attempt(request, opening, framed, running, observer, draft)
            running.settle()
            if failure is None:
                return await self._save(request, opening, draft)
            self._metrics.turns.labels(draft.finish_reason).inc()
            if draft.deltas:
                answer = await self._save(request, opening, draft)
                failure.details = {
                    **(failure.details or {}),
                    "partial_response": answer.text,
                    "turn_id": answer.turn_id,
                    "finish_reason": answer.finish_reason,
                }
            try:
                raise failure
            finally:
                # Its traceback holds this frame, and that what was said: break the cycle.
                del failure

    @asynccontextmanager
    async def _in_order(self, conversation_id: str, running: RunningRequest) -> AsyncIterator[None]:
        with self._scheduler.line(conversation_id) as standing:
            # It stands there from that call on, so the session's next turn may come.
            running.place()
            with running.interruptible():
                await standing.reach_front()
            yield

    async def _attempt(
        self,
        request: TurnRequest,
        opening: Opening,
        framed: Frame,
        running: RunningRequest,
        observer: TurnObserver,
        draft: Draft,
    ) -> PersonaError | None:
        """Generate into `draft`; what stopped it, if anything did."""
        try:
            with running.interruptible():
                await self._generate(request, opening, framed, observer, draft)
        except LLMUnavailable as exc:
            draft.finish_reason = "error"
            return exc
        except DeadlineExceeded as exc:
            draft.finish_reason = "timeout"
            return exc
        except (RequestCancelled, ShuttingDown) as exc:
            draft.finish_reason = "cancelled"
            return exc
        except PersonaError:
            # Among them `NotFound`: what it belongs to was deleted, so nothing is kept.
            raise
        except Exception as exc:  # noqa: BLE001 - the boundary to the backend: what was shown is kept
            draft.finish_reason = "error"
            return internal_error(exc, where="turn")
        except BaseException:
            # Not `except Cancelled`: a backend's nursery wraps it in a group.
            await self._save_disconnected(request, opening, draft)  # noqa: ASYNC102 - shielded in there
            raise
        return None

    async def _generate(
        self,
        request: TurnRequest,
        opening: Opening,
        framed: Frame,
        observer: TurnObserver,
        draft: Draft,
    ) -> None:
        async with self._scheduler.slot(request.party, observer.queued):
            draft.talks_since = trio.current_time()
            # Not before: another branch may be chosen while it waits for the model.
            context, draft.spot = await self._database.read(lambda conn: find_context(conn, request, opening))
            prompt = build_messages(framed, context.history, summary=context.summary)
            draft.context, draft.prompt = context, prompt
            asked_at = trio.current_time()
            with Patience(self._first_token_timeout_s) as patience:
                async with self._backend.generate(prompt.messages, request.options) as events:
                    async for event in events:
                        patience.heard()
                        if isinstance(event, Completed):
                            self._complete(draft, event, request.options.model)
                        elif self._take(draft, event, request, observer, asked_at):
                            break
                        # A model server may send a whole answer in one burst; its client's writer,
                        # and everybody else, must get their turn in between.
                        if len(draft.deltas) % BURST_DELTAS == 0:
                            await trio.lowlevel.checkpoint()

    def _frame(self, request: TurnRequest, opening: Opening, budget_tokens: int) -> Frame:
        persona = request.persona
        mood = availability.mood_words(self._personas.state(persona), persona)
        return frame(persona, mood, opening.line, budget_tokens=budget_tokens)

    def _take(
        self, draft: Draft, event: Delta, request: TurnRequest, observer: TurnObserver, asked_at: float
    ) -> bool:
        """Add a delta; whether the answer must be cut here."""
        if draft.first_token_at is None:
            draft.first_token_at = trio.current_time()
            self._metrics.first_token_seconds.observe(draft.first_token_at - asked_at)
        max_tokens = request.options.max_tokens
        taken = draft.add(event.text, max_tokens)
        if taken:
            observer.delta(taken)
        if len(taken) == len(event.text):
            return False
        log.warning("answer_cut", size_bytes=draft.size_bytes, deltas=len(draft.deltas))
        draft.finish_reason = "length"
        draft.model = request.options.model or self._backend.model
        draft.tokens = min(draft.tokens_used, max_tokens)
        return True

    def _complete(self, draft: Draft, event: Completed, model: str | None) -> None:
        if draft.prompt is not None:
            self._budget.observe(
                model,
                estimated_tokens=draft.prompt.estimated_tokens,
                counted_tokens=event.prompt_tokens,
            )
        draft.finish_reason = event.finish_reason
        draft.model = event.model
        draft.tokens = event.completion_tokens

    async def _opening(self, request: TurnRequest) -> Opening:
        if request.line is not None and request.instead_of is None and request.client_msg_id is None:
            return Opening(line=request.line)  # Needs nothing of what was said.
        return await self._database.read(lambda conn: find_opening(conn, request))

    async def _save(self, request: TurnRequest, opening: Opening, draft: Draft) -> TurnAnswer:
        """Put the user's line, if it is new, the answer, and how the persona is after it on disk together.
        The toll is taken first, because the stored answer tells of it."""
        now = trio.current_time()
        processing_time_s = now - draft.started_at
        tokens_used = draft.tokens_used
        state = self._personas.record_turn(
            request.persona,
            line=opening.line,
            tokens_used=tokens_used,
            took_s=now - draft.admitted_at,
            talked_s=now - draft.talks_since,
        )
        figures = self._figures(request, draft, state, processing_time_s)
        said_at = self._now()
        client_msg_id = request.client_msg_id
        answer = NewTurn(
            role="assistant",
            speaker_id=request.persona.id,
            content=draft.text,
            created_at=said_at,
            tokens_used=tokens_used,
            finish_reason=draft.finish_reason,
            client_msg_id=client_msg_id,
            body_hash=None if client_msg_id is None else request.body_hash(),
            details=figures,
        )
        line = NewTurn(
            role="user",
            speaker_id=request.user,
            content=opening.line,
            created_at=said_at - processing_time_s,
        )
        added = (line, answer) if opening.question is None else (answer,)
        saved = await self._append(request, opening, draft, added, state)
        if draft.context is not None and draft.prompt is not None:
            name, history = request.persona.name, draft.context.history
            self._summaries.consider(request.conversation_id, name, history, draft.prompt)
        self._metrics.tokens.inc(tokens_used)
        if draft.finish_reason in WHOLE:
            self._metrics.turns.labels(draft.finish_reason).inc()
        return TurnAnswer.stored(saved[-1])

    async def _append(
        self,
        request: TurnRequest,
        opening: Opening,
        draft: Draft,
        added: tuple[NewTurn, ...],
        state: InteractionState,
    ) -> list[Turn]:
        supersedes = None if opening.cut is None else opening.cut.id

        def append(conn: sqlite3.Connection) -> list[Turn]:
            saved = turns.append_turns(
                conn, request.conversation_id, added, draft.spot, supersedes=supersedes
            )
            store.save_state(conn, state)
            return saved

        # Shielded, so that an answer is not lost because its client left while it was being written.
        return await write_shielded(self._database, append)

    async def _save_disconnected(self, request: TurnRequest, opening: Opening, draft: Draft) -> None:
        """Keep what was said before the connection ended; there is nobody left to tell if it fails."""
        if not draft.deltas:
            return
        draft.finish_reason = "disconnected"
        self._metrics.turns.labels(draft.finish_reason).inc()
        try:
            await self._save(request, opening, draft)
        except PersonaError as exc:
            log.warning("partial_answer_lost", reason=exc.reason)

    def _figures(
        self, request: TurnRequest, draft: Draft, state: InteractionState, processing_time_s: float
    ) -> dict[str, Any]:
        first_token_at = draft.first_token_at
        return {
            "response_type": "scripted" if self._backend.provider == "scripted" else "llm",
            "model": draft.model or request.options.model or self._backend.model,
            "processing_time_s": round(processing_time_s, 4),
            "time_to_first_token_s": round((first_token_at or draft.started_at) - draft.started_at, 4),
            "continue_score": availability.continue_score(state, request.persona),
            "social_energy": round(state.social_energy, 2),
            "available_time_s": round(state.available_time_s, 2),
            "interaction_fatigue": round(state.interaction_fatigue, 2),
            "context": _used(draft.prompt),
        }


def _used(prompt: BuiltPrompt | None) -> dict[str, Any] | None:
    """What of the conversation the model was given, as it is stored with the answer."""
    if prompt is None:
        return None
    return {
        "turns": prompt.turns_used,
        "summary": prompt.has_summary,
        "estimated_tokens": prompt.estimated_tokens,
    }
