"""Calls that take a turn, whichever method asked for it: params -> request -> answer or events.

A stream's terminal event is the request's one answer: `stream_complete` or `stream_cancelled` as
its result, `stream_error` as its error. So there is exactly one, whatever happens.
"""

from collections.abc import Callable
from typing import Any

from persona.errors import InvalidParams, NotFound, PersonaError, RequestCancelled, ShuttingDown
from persona.llm.backend import GenerateOptions
from persona.log import internal_error
from persona.model import Persona
from persona.rpc import params as p
from persona.rpc import results as r
from persona.rpc.dispatch import Call
from persona.rpc.methods.persona import resolve_persona
from persona.rpc.stream import Pace, Stream, persona_state, used_context
from persona.service.chat import Chat
from persona.service.conversations import Conversations
from persona.service.personas import Personas
from persona.service.sessions import Session
from persona.service.turn import TurnAnswer, TurnRequest

Now = Callable[[], float]
TurnParams = p.ChatParams | p.EditParams | p.RegenerateParams


class TurnCalls:
    """Takes turns for callers. A method says what it wants of the conversation: a `line`, a turn it is
    `instead_of`, or both; see `TurnRequest`."""

    def __init__(
        self, personas: Personas, conversations: Conversations, chat: Chat, pace: Pace, now: Now
    ) -> None:
        self._personas = personas
        self._conversations = conversations
        self._chat = chat
        self._pace = pace
        self._now = now

    async def answer(
        self,
        call: Call,
        params: TurnParams,
        *,
        line: str | None,
        instead_of: int | None = None,
        stream: bool,
    ) -> r.ChatAnswer:
        """The whole answer; with `stream`, the turn's progress as notifications before it."""
        request = await self._request(call, params, line, instead_of)
        if not stream:
            answer = await self._take(call, request, _Silent())
            return _chat_answer(request.persona, answer, params)
        events = self._stream(call, params, request.persona, as_notifications=True)
        try:
            answer = await self._take(call, request, events)
        except PersonaError as exc:
            events.failed(exc)
            raise
        events.finished(answer)
        return _chat_answer(request.persona, answer, params)

    async def events(
        self, call: Call, params: TurnParams, *, line: str | None, instead_of: int | None = None
    ) -> dict[str, Any]:
        """The event that ends the stream; those before it are sent under the request's id."""
        request = await self._request(call, params, line, instead_of)
        stream = self._stream(call, params, request.persona, as_notifications=False)
        try:
            answer = await self._take(call, request, stream)
        except (RequestCancelled, ShuttingDown) as exc:
            if not stream.is_open:
                raise
            return stream.cancelled(exc)
        except PersonaError as exc:
            if stream.is_open:
                stream.release()
                exc.details = {**(exc.details or {}), **stream.error_ids()}
            raise
        return stream.complete(answer)

    def _stream(self, call: Call, params: TurnParams, persona: Persona, *, as_notifications: bool) -> Stream:
        return Stream(call, params, persona, self._now, self._pace, as_notifications=as_notifications)

    async def _take(self, call: Call, request: TurnRequest, observer: "Stream | _Silent") -> TurnAnswer:
        try:
            return await self._chat.turn(request, call.request, observer)
        except NotFound as exc:
            if exc.field == "conversation_id":
                # Taken up again in the instant in which it was deleted: the next line begins another.
                call.session.forget_conversation(request.conversation_id)
            raise
        except PersonaError:
            raise
        except Exception as exc:  # the boundary of a turn: a bug, too, ends its stream, and once
            raise internal_error(exc, where=call.request.method) from exc

    async def _request(
        self, call: Call, params: TurnParams, line: str | None, instead_of: int | None
    ) -> TurnRequest:
        session = call.session
        with call.request.interruptible():
            if params.conversation_id is not None:
                persona = await self._of_conversation(session, params, params.conversation_id)
                conversation_id = params.conversation_id
            else:
                persona = resolve_persona(self._personas, session, params.persona_id)
                if isinstance(params, p.ChatParams):
                    conversation_id = await self._conversations.current(session, persona)
                else:
                    conversation_id = await current_conversation(self._conversations, session, persona)
        options = params.options
        return TurnRequest(
            persona=persona,
            conversation_id=conversation_id,
            user=session.identity.user,
            party=session.fairness_key,
            line=line,
            instead_of=instead_of,
            client_msg_id=params.client_msg_id,
            options=GenerateOptions(
                max_tokens=params.token_budget,
                temperature=options.temperature,
                top_p=options.top_p,
                stop=tuple(options.stop),
                seed=options.seed,
                model=options.model,
            ),
        )

    async def _of_conversation(self, session: Session, params: TurnParams, conversation_id: str) -> Persona:
        """The conversation's persona; the session goes on in that conversation."""
        conversation = await self._conversations.open(session, conversation_id)
        persona = resolve_persona(self._personas, session, conversation.persona_id)
        if params.persona_id is not None and self._personas.find(params.persona_id) is not persona:
            raise InvalidParams("the conversation is with another persona", field="persona_id")
        session.conversations[persona.id] = conversation_id
        return persona


async def current_conversation(conversations: Conversations, session: Session, persona: Persona) -> str:
    """The session's conversation with `persona`. Raises `NotFound` where there is none: unlike a chat,
    what wants something of an older turn begins no conversation."""
    found = await conversations.find_current(session, persona)
    if found is None:
        raise NotFound("there is no conversation with this persona yet", field="conversation_id")
    return found


class _Silent:
    """Nobody watches the turn."""

    def started(self, line: str) -> None: ...

    def queued(self, position: int) -> None: ...

    def delta(self, text: str) -> None: ...


def _chat_answer(persona: Persona, answer: TurnAnswer, params: TurnParams) -> r.ChatAnswer:
    return r.ChatAnswer(
        response=answer.text,
        response_type=answer.response_type,
        continue_score=answer.continue_score,
        tokens_used=answer.tokens_used,
        processing_time=answer.processing_time_s,
        persona_state=persona_state(answer),
        persona_id=persona.id,
        persona_name=persona.name,
        conversation_id=answer.conversation_id,
        turn_id=answer.turn_id,
        parent_id=answer.parent_id,
        finish_reason=answer.finish_reason,
        model=answer.model,
        time_to_first_token=answer.time_to_first_token_s,
        context=used_context(answer) if params.include_context else None,
    )
