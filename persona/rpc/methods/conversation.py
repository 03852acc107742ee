"""`conversation.*`: what was said, and its branches."""

from typing import Any

from persona.errors import InvalidParams
from persona.model import Conversation, Siblings, Turn, isoformat
from persona.rpc import params as p
from persona.rpc import results as r
from persona.rpc.dispatch import Call, method
from persona.rpc.methods.persona import resolve_persona
from persona.rpc.turns import TurnCalls, current_conversation
from persona.service.conversations import Conversations
from persona.service.personas import Personas


class ConversationMethods:
    """Reading stored conversations, and branching off in them."""

    def __init__(self, personas: Personas, conversations: Conversations, turns: TurnCalls) -> None:
        self._personas = personas
        self._conversations = conversations
        self._turns = turns

    @method("conversation.history", params=p.HistoryParams, result=r.History)
    async def history(self, call: Call, params: p.HistoryParams) -> r.History:
        """The newest turns of a conversation's current branch, oldest first."""
        conversation_id = await self._conversation_id(call, params)
        if conversation_id is None:
            return r.History(
                conversation_id=None, turns=[], has_more=False, next_before=None, current_turn_id=None
            )
        page = await self._conversations.history(conversation_id, limit=params.limit, before=params.before)
        views = [_turn_view(turn, siblings) for turn, siblings in page.turns]
        return r.History(
            conversation_id=conversation_id,
            turns=views,
            has_more=page.has_more,
            next_before=views[0].id if page.has_more else None,
            current_turn_id=page.current_turn_id,
        )

    @method(
        "conversation.regenerate",
        params=p.RegenerateOrStreamParams,
        result=r.ChatAnswer,
        bound="model",
        ordered=True,
    )
    async def regenerate(self, call: Call, params: p.RegenerateOrStreamParams) -> r.ChatAnswer:
        """Get another answer to a line; the first one stays, as its sibling. `stream` as in
        `persona.chat`."""
        return await self._turns.answer(
            call, params, line=None, instead_of=params.turn_id, stream=params.stream
        )

    @method(
        "conversation.regenerate_stream",
        params=p.RegenerateParams,
        result=r.StreamEvent,
        bound="model",
        streams=True,
        ordered=True,
    )
    async def regenerate_stream(self, call: Call, params: p.RegenerateParams) -> dict[str, Any]:
        """As `conversation.regenerate`, in events under the request's id."""
        return await self._turns.events(call, params, line=None, instead_of=params.turn_id)

    @method(
        "conversation.edit", params=p.EditOrStreamParams, result=r.ChatAnswer, bound="model", ordered=True
    )
    async def edit(self, call: Call, params: p.EditOrStreamParams) -> r.ChatAnswer:
        """Say a line differently and get an answer; the line as it was and all that followed it stay, as
        a branch beside. `stream` as in `persona.chat`."""
        return await self._turns.answer(
            call, params, line=params.message, instead_of=params.turn_id, stream=params.stream
        )

    @method(
        "conversation.edit_stream",
        params=p.EditParams,
        result=r.StreamEvent,
        bound="model",
        streams=True,
        ordered=True,
    )
    async def edit_stream(self, call: Call, params: p.EditParams) -> dict[str, Any]:
        """As `conversation.edit`, in events under the request's id."""
        return await self._turns.events(call, params, line=params.message, instead_of=params.turn_id)

    @method("conversation.select", params=p.SelectParams, result=r.BranchSelected, ordered=True)
    async def select(self, call: Call, params: p.SelectParams) -> r.BranchSelected:
        """Make the branch through a turn the current one, down to the newest turn below it."""
        conversation_id = await self._conversation_id(call, params)
        if conversation_id is None:
            persona = resolve_persona(self._personas, call.session, params.persona_id)
            conversation_id = await current_conversation(self._conversations, call.session, persona)
        return r.BranchSelected(
            conversation_id=conversation_id,
            turn_id=params.turn_id,
            current_turn_id=await self._conversations.select(conversation_id, params.turn_id),
        )

    @method(
        "conversation.delete", params=p.DeleteConversationParams, result=r.ConversationDeleted, ordered=True
    )
    async def delete(self, call: Call, params: p.DeleteConversationParams) -> r.ConversationDeleted:
        """Delete a conversation with all its branches; with `turn_id`, only that turn and all that follows
        it."""
        conversation = await self._conversations.open(call.session, params.conversation_id)
        leaf_id = None
        if params.turn_id is None:
            count = await self._conversations.delete(conversation.id)
        else:
            count, leaf_id = await self._conversations.delete_branch(conversation.id, params.turn_id)
        return r.ConversationDeleted(
            conversation_id=conversation.id, deleted=True, turns_deleted=count, current_turn_id=leaf_id
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

    async def _conversation_id(self, call: Call, params: p.HistoryParams | p.SelectParams) -> str | None:
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


def _turn_view(turn: Turn, siblings: Siblings) -> r.TurnView:
    return r.TurnView(
        id=turn.id,
        role=turn.role,
        speaker_id=turn.speaker_id,
        content=turn.content,
        created_at=isoformat(turn.created_at),
        tokens_used=turn.tokens_used,
        finish_reason=turn.finish_reason,
        parent_id=turn.parent_id,
        sibling_index=siblings.index,
        sibling_count=siblings.count,
        previous_sibling_id=siblings.previous_id,
        next_sibling_id=siblings.next_id,
    )
