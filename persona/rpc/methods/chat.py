"""`persona.chat`, `persona.chat_stream` and `stream.cancel`: a turn, and its progress on the wire.

A stream's terminal event is the request's one answer: `stream_complete` or `stream_cancelled` as
its result, `stream_error` as its error. So there is exactly one, whatever happens.
"""

from collections.abc import Callable
from typing import Any

from persona.errors import InvalidParams, NotFound, PersonaError, RequestCancelled, ShuttingDown
from persona.llm.backend import GenerateOptions
from persona.model import Persona
from persona.rpc import params as p
from persona.rpc import results as r
from persona.rpc.dispatch import Call, Caller, method
from persona.rpc.methods.persona import resolve_persona
from persona.rpc.stream import Pace, Stream, persona_state
from persona.service.chat import Chat, TurnAnswer, TurnRequest
from persona.service.conversations import Conversations
from persona.service.personas import Personas

Now = Callable[[], float]


class ChatMethods:
    """Talking to a persona."""

    def __init__(
        self, personas: Personas, conversations: Conversations, chat: Chat, pace: Pace, now: Now
    ) -> None:
        self._personas = personas
        self._conversations = conversations
        self._chat = chat
        self._pace = pace
        self._now = now

    @method("persona.chat", params=p.ChatOrStreamParams, result=r.ChatAnswer, bound="model", ordered=True)
    async def chat(self, call: Call, params: p.ChatOrStreamParams) -> r.ChatAnswer:
        """Say something and get the whole answer; with `stream`, its progress as notifications."""
        request = await self._turn_request(call, params)
        if not params.stream:
            return _chat_answer(request.persona, await self._chat.turn(request, call.request, _Silent()))
        stream = Stream(call, params, request.persona, self._now, self._pace, as_notifications=True)
        try:
            answer = await self._chat.turn(request, call.request, stream)
        except PersonaError as exc:
            stream.failed(exc)
            raise
        stream.finished(answer)
        return _chat_answer(request.persona, answer)

    @method(
        "persona.chat_stream",
        params=p.ChatParams,
        result=r.StreamEvent,
        bound="model",
        streams=True,
        ordered=True,
    )
    async def chat_stream(self, call: Call, params: p.ChatParams) -> dict[str, Any]:
        """Say something and get the answer as it is made, in events under the request's id."""
        request = await self._turn_request(call, params)
        stream = Stream(call, params, request.persona, self._now, self._pace, as_notifications=False)
        try:
            answer = await self._chat.turn(request, call.request, stream)
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

    @method("stream.cancel", params=p.CancelParams, result=r.StreamCancelled, while_draining=True)
    def cancel(self, caller: Caller, params: p.CancelParams) -> r.StreamCancelled:
        """Stop a running request of this session; what was said so far is kept and marked. `cancelled`
        is false where it came too late."""
        if (params.stream_id is None) == (params.request_id is None):
            raise InvalidParams("give either stream_id or request_id", field="stream_id")
        running = caller.session.find(request_id=params.request_id, stream_id=params.stream_id)
        # One in a batch has an id too, and might name its own.
        if running is None or running.method == "stream.cancel":
            raise NotFound("no such request is running on this session")
        return r.StreamCancelled(cancelled=running.cancel("client"), stream_id=running.stream_id)

    async def _turn_request(self, call: Call, params: p.ChatParams) -> TurnRequest:
        session = call.session
        with call.request.interruptible():
            if params.conversation_id is not None:
                persona = await self._of_conversation(call, params, params.conversation_id)
                conversation_id = params.conversation_id
            else:
                persona = resolve_persona(self._personas, session, params.persona_id)
                conversation_id = await self._conversations.current(session, persona)
        options = params.options
        return TurnRequest(
            persona=persona,
            conversation_id=conversation_id,
            user=session.identity.user,
            party=session.fairness_key,
            line=params.message,
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

    async def _of_conversation(self, call: Call, params: p.ChatParams, conversation_id: str) -> Persona:
        """The conversation's persona; the session goes on in that conversation."""
        conversation = await self._conversations.open(call.session, conversation_id)
        persona = resolve_persona(self._personas, call.session, conversation.persona_id)
        if params.persona_id is not None and self._personas.find(params.persona_id) is not persona:
            raise InvalidParams("the conversation is with another persona", field="persona_id")
        call.session.conversations[persona.id] = conversation_id
        return persona


class _Silent:
    """Nobody watches the turn."""

    def started(self) -> None: ...

    def queued(self, position: int) -> None: ...

    def delta(self, text: str) -> None: ...


def _chat_answer(persona: Persona, answer: TurnAnswer) -> r.ChatAnswer:
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
        finish_reason=answer.finish_reason,
        model=answer.model,
        time_to_first_token=answer.time_to_first_token_s,
    )
