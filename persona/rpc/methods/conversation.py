"""`conversation.*`: what was said."""

from persona.errors import InvalidParams
from persona.model import Conversation, Turn, isoformat
from persona.rpc import params as p
from persona.rpc import results as r
from persona.rpc.dispatch import Call, method
from persona.rpc.methods.persona import resolve_persona
from persona.service.conversations import Conversations
from persona.service.personas import Personas


class ConversationMethods:
    """Reading stored conversations."""

    def __init__(self, personas: Personas, conversations: Conversations) -> None:
        self._personas = personas
        self._conversations = conversations

    @method("conversation.history", params=p.HistoryParams, result=r.History)
    async def history(self, call: Call, params: p.HistoryParams) -> r.History:
        """The newest turns of a conversation, oldest first."""
        conversation_id = await self._conversation_id(call, params)
        if conversation_id is None:
            return r.History(conversation_id=None, turns=[], has_more=False, next_before=None)
        turns, has_more = await self._conversations.history(
            conversation_id, limit=params.limit, before=params.before
        )
        return r.History(
            conversation_id=conversation_id,
            turns=[_turn_view(turn) for turn in turns],
            has_more=has_more,
            next_before=turns[0].id if has_more else None,
        )

    @method("conversation.list", params=p.ConversationListParams, result=r.ConversationList)
    async def list(self, call: Call, params: p.ConversationListParams) -> r.ConversationList:
        """The user's conversations, newest first; of a client without a token, this session's."""
        persona_id = None
        if params.persona_id is not None:
            persona_id = self._personas.find(params.persona_id).id
        conversations, next_before = await self._conversations.list(
            call.session, persona_id=persona_id, limit=params.limit, before=params.before
        )
        return r.ConversationList(
            conversations=[self._view(conversation) for conversation in conversations],
            has_more=next_before is not None,
            next_before=next_before,
        )

    async def _conversation_id(self, call: Call, params: p.HistoryParams) -> str | None:
        if params.conversation_id is not None:
            if params.persona_id is not None:
                raise InvalidParams("give conversation_id or persona_id, not both", field="persona_id")
            return (await self._conversations.open(call.session, params.conversation_id)).id
        persona = resolve_persona(self._personas, call.session, params.persona_id)
        return await self._conversations.find_current(call.session, persona)

    def _view(self, conversation: Conversation) -> r.ConversationView:
        persona = self._personas.get(conversation.persona_id)
        return r.ConversationView(
            id=conversation.id,
            persona_id=conversation.persona_id,
            persona_name="" if persona is None else persona.name,
            created_at=isoformat(conversation.created_at),
            updated_at=isoformat(conversation.updated_at),
            turn_count=conversation.turn_count,
        )


def _turn_view(turn: Turn) -> r.TurnView:
    return r.TurnView(
        id=turn.id,
        role=turn.role,
        speaker_id=turn.speaker_id,
        content=turn.content,
        created_at=isoformat(turn.created_at),
        tokens_used=turn.tokens_used,
        finish_reason=turn.finish_reason,
    )
