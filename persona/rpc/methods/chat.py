"""`persona.chat`, `persona.chat_stream` and `stream.cancel`: a turn, and how to stop one."""

from typing import Any

from persona.errors import InvalidParams, NotFound
from persona.rpc import params as p
from persona.rpc import results as r
from persona.rpc.dispatch import Call, Caller, method
from persona.rpc.turns import TurnCalls


class ChatMethods:
    """Talking to a persona."""

    def __init__(self, turns: TurnCalls) -> None:
        self._turns = turns

    @method("persona.chat", params=p.ChatOrStreamParams, result=r.ChatAnswer, bound="model", ordered=True)
    async def chat(self, call: Call, params: p.ChatOrStreamParams) -> r.ChatAnswer:
        """Say something and get the whole answer; with `stream`, its progress as notifications."""
        return await self._turns.answer(call, params, line=params.message, stream=params.stream)

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
        return await self._turns.events(call, params, line=params.message)

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
