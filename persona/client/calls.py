"""The server's methods as typed calls."""

from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar

import msgspec
import trio

from persona.client.errors import ConnectionLost, UnexpectedAnswer
from persona.client.link import Answer, Link, ServerNotification, limit_bytes
from persona.client.stream import ChatStream
from persona.rpc import figures as f
from persona.rpc import results as r

_T = TypeVar("_T")


class Client:
    """A connection to a server. Get one from `open_client`.

    Safe to use from many tasks at once; cancelling any call is safe. Every call raises
    `RemoteError` for the server's error reply, `ConnectionLost` when the connection ends first,
    `MessageTooLarge` and `InvalidMessage` when the server would not take it, and `UnexpectedAnswer`
    when the answer does not fit the protocol. Fields that this version does not know are ignored. No
    call has a timeout: set one with `trio.fail_after`.
    """

    def __init__(self, link: Link) -> None:
        self._link = link

    async def call(self, method: str, params: Mapping[str, Any] | None = None) -> Any:
        """Call any method and return its `result` as it came.

        A cancelled call is forgotten: the server may go on with it, its answer is dropped.
        """
        return await self._call(method, params)

    async def notify(self, method: str, params: Mapping[str, Any] | None = None) -> None:
        """Send a notification: it is never answered, even when it fails."""
        await self._link.notify(method, dict(params or {}))

    def events(self) -> trio.MemoryReceiveChannel[ServerNotification]:
        """The server's notifications (`event`, `stream.event`), ending with the connection.

        There is one channel a client. It keeps 1024; when nobody reads, the oldest is dropped
        and counted in `events_dropped`.
        """
        return self._link.notifications

    @property
    def events_dropped(self) -> int:
        """Notifications dropped because nobody read `events` in time."""
        return self._link.notifications_dropped

    async def wait_closed(self) -> ConnectionLost:
        """Wait until the connection has ended, for whatever reason, and return the reason."""
        await self._link.ended.wait()
        return self._link.connection_lost()

    # Personas

    async def list_personas(self) -> r.PersonaList:
        """Who there is, and who is available."""
        return await self._typed("persona.list", {}, r.PersonaList)

    async def get_persona(self, persona: str) -> r.PersonaDetail:
        """The whole persona, by id or name."""
        return await self._typed("persona.get", {"persona_id": persona}, r.PersonaDetail)

    async def create_persona(self, **fields: Any) -> r.PersonaCreated:
        """A new persona; `name` and `description` are needed."""
        return await self._typed("persona.create", fields, r.PersonaCreated)

    async def switch(self, persona: str) -> r.PersonaSwitched:
        """Talk to this persona from now on. An id, or a name in any case."""
        return await self._typed("persona.switch", {"persona_id": persona}, r.PersonaSwitched)

    async def persona_status(self, persona: str | None = None) -> r.PersonaStatus:
        """How a persona feels; the current one if none is named."""
        return await self._typed("persona.status", {"persona_id": persona}, r.PersonaStatus)

    # Chatting

    async def chat(
        self,
        message: str,
        *,
        persona_id: str | None = None,
        conversation_id: str | None = None,
        token_budget: int = 500,
        client_msg_id: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> r.ChatAnswer:
        """Say something and get the whole answer. Cancelling stops the generation on the server.

        `client_msg_id` makes it safe to send the same line again after `ConnectionLost`, to the same
        `conversation_id`.
        """
        params = {
            "message": message,
            "persona_id": persona_id,
            "conversation_id": conversation_id,
            "token_budget": token_budget,
            "client_msg_id": client_msg_id,
            "options": options,
        }
        return await self._typed("persona.chat", params, r.ChatAnswer, stop_when_cancelled=True)

    def chat_stream(
        self,
        message: str,
        *,
        persona_id: str | None = None,
        conversation_id: str | None = None,
        token_budget: int = 500,
        client_msg_id: str | None = None,
        options: Mapping[str, Any] | None = None,
        on_queued: Callable[[int], Awaitable[None]] | None = None,
    ) -> ChatStream:
        """Say something and get the answer as it is made: iterate over the deltas.

        Use it as `async with client.chat_stream(...) as stream` so that leaving early stops the
        generation. `on_queued` is awaited in the consumer's task with the place in the model's
        queue, each time it changes.
        """
        params = {
            "message": message,
            "persona_id": persona_id,
            "conversation_id": conversation_id,
            "token_budget": token_budget,
            "client_msg_id": client_msg_id,
            "options": options,
        }
        return ChatStream(self._link, "persona.chat_stream", _given(params), on_queued)

    async def regenerate(
        self,
        turn_id: int | None = None,
        *,
        persona_id: str | None = None,
        conversation_id: str | None = None,
        token_budget: int = 500,
        client_msg_id: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> r.ChatAnswer:
        """Get another answer beside the one that `turn_id` names (or to the line it names), by default
        beside the last one. Else as `chat`."""
        params = {
            "turn_id": turn_id,
            "persona_id": persona_id,
            "conversation_id": conversation_id,
            "token_budget": token_budget,
            "client_msg_id": client_msg_id,
            "options": options,
        }
        return await self._typed("conversation.regenerate", params, r.ChatAnswer, stop_when_cancelled=True)

    def regenerate_stream(
        self,
        turn_id: int | None = None,
        *,
        persona_id: str | None = None,
        conversation_id: str | None = None,
        token_budget: int = 500,
        client_msg_id: str | None = None,
        options: Mapping[str, Any] | None = None,
        on_queued: Callable[[int], Awaitable[None]] | None = None,
    ) -> ChatStream:
        """As `regenerate`, as it is made; see `chat_stream`."""
        params = {
            "turn_id": turn_id,
            "persona_id": persona_id,
            "conversation_id": conversation_id,
            "token_budget": token_budget,
            "client_msg_id": client_msg_id,
            "options": options,
        }
        return ChatStream(self._link, "conversation.regenerate_stream", _given(params), on_queued)

    async def edit(
        self,
        turn_id: int,
        message: str,
        *,
        persona_id: str | None = None,
        conversation_id: str | None = None,
        token_budget: int = 500,
        client_msg_id: str | None = None,
        options: Mapping[str, Any] | None = None,
    ) -> r.ChatAnswer:
        """Say the line `turn_id` differently and get an answer; what was said stays on a branch beside.
        Else as `chat`."""
        params = {
            "turn_id": turn_id,
            "message": message,
            "persona_id": persona_id,
            "conversation_id": conversation_id,
            "token_budget": token_budget,
            "client_msg_id": client_msg_id,
            "options": options,
        }
        return await self._typed("conversation.edit", params, r.ChatAnswer, stop_when_cancelled=True)

    def edit_stream(
        self,
        turn_id: int,
        message: str,
        *,
        persona_id: str | None = None,
        conversation_id: str | None = None,
        token_budget: int = 500,
        client_msg_id: str | None = None,
        options: Mapping[str, Any] | None = None,
        on_queued: Callable[[int], Awaitable[None]] | None = None,
    ) -> ChatStream:
        """As `edit`, with the answer as it is made; see `chat_stream`."""
        params = {
            "turn_id": turn_id,
            "message": message,
            "persona_id": persona_id,
            "conversation_id": conversation_id,
            "token_budget": token_budget,
            "client_msg_id": client_msg_id,
            "options": options,
        }
        return ChatStream(self._link, "conversation.edit_stream", _given(params), on_queued)

    # Conversations and the session

    async def history(
        self,
        *,
        conversation_id: str | None = None,
        persona_id: str | None = None,
        limit: int | None = None,
        before: int | None = None,
    ) -> r.History:
        """The newest turns of a conversation's current branch, oldest first; by default of the current
        conversation."""
        params = {
            "conversation_id": conversation_id,
            "persona_id": persona_id,
            "limit": limit,
            "before": before,
        }
        return await self._typed("conversation.history", params, r.History)

    async def conversations(
        self, *, persona_id: str | None = None, limit: int | None = None, before: str | None = None
    ) -> r.ConversationList:
        """The conversations there are, newest first."""
        params = {"persona_id": persona_id, "limit": limit, "before": before}
        return await self._typed("conversation.list", params, r.ConversationList)

    async def select_branch(
        self, turn_id: int, *, conversation_id: str | None = None, persona_id: str | None = None
    ) -> r.BranchSelected:
        """Make the branch through that turn the current one, down to the newest turn below it."""
        params = {"turn_id": turn_id, "conversation_id": conversation_id, "persona_id": persona_id}
        return await self._typed("conversation.select", params, r.BranchSelected)

    async def delete_conversation(
        self, conversation_id: str, *, turn_id: int | None = None
    ) -> r.ConversationDeleted:
        """Delete a conversation with all its branches; with `turn_id`, only that turn and all that follows
        it."""
        params = {"conversation_id": conversation_id, "turn_id": turn_id}
        return await self._typed("conversation.delete", params, r.ConversationDeleted)

    async def session_info(self) -> r.SessionInfo:
        """Who the server takes this client for, and its limits.

        From then on `MessageTooLarge` goes by the announced limit instead of the protocol's 64 KiB.
        """
        info = await self._typed("session.info", {}, r.SessionInfo)
        self._link.max_message_bytes = limit_bytes(info.limits)
        return info

    async def clear_session(self) -> r.SessionCleared:
        """Forget the current persona and its context window; stored turns stay."""
        return await self._typed("session.clear", {}, r.SessionCleared)

    async def subscribe(self, topics: Iterable[str]) -> r.Topics:
        """Get the events of these topics, too, through `events`."""
        return await self._typed("events.subscribe", {"topics": list(topics)}, r.Topics)

    async def unsubscribe(self, topics: Iterable[str]) -> r.Topics:
        """Get the events of these topics no longer."""
        return await self._typed("events.unsubscribe", {"topics": list(topics)}, r.Topics)

    # The server

    async def ping(self, payload: Any = None) -> r.Pong:
        """Ask whether anybody is there; `payload` comes back as sent."""
        return await self._typed("system.ping", {"payload": payload}, r.Pong)

    async def status(self) -> r.SystemStatus:
        """How the server is."""
        return await self._typed("system.status", {}, r.SystemStatus)

    async def metrics(self, *, window_s: float = 60.0) -> f.SystemMetrics:
        """The server's figures of the last `window_s` seconds, at most 300."""
        return await self._typed("system.metrics", {"window_s": window_s}, f.SystemMetrics)

    async def tasks(self, *, siblings: int = 3) -> f.SystemTasks:
        """The server's tree of tasks, with so many of a kind in each nursery; for admins."""
        return await self._typed("system.tasks", {"siblings": siblings}, f.SystemTasks)

    async def models(self) -> r.Models:
        """The models there are."""
        return await self._typed("system.models", {}, r.Models)

    async def discover(self) -> r.OpenRPCDocument:
        """The server's description of its methods."""
        return await self._typed("rpc.discover", {}, r.OpenRPCDocument)

    async def _typed(
        self,
        method: str,
        params: Mapping[str, Any],
        result_type: type[_T],
        *,
        stop_when_cancelled: bool = False,
    ) -> _T:
        result = await self._call(method, _given(params or {}), stop_when_cancelled=stop_when_cancelled)
        try:
            return msgspec.convert(result, result_type)
        except msgspec.ValidationError as exc:
            raise UnexpectedAnswer(f"{method} was answered unexpectedly: {exc}") from exc

    async def _call(
        self, method: str, params: Mapping[str, Any] | None, *, stop_when_cancelled: bool = False
    ) -> Any:
        answer = Answer()
        request_id = await self._link.request(answer, method, dict(params or {}))
        try:
            return await answer.wait()
        except trio.Cancelled:
            if self._link.forget(request_id) and stop_when_cancelled:
                self._link.ask_to_cancel(request_id)
            raise


def _given(params: Mapping[str, Any]) -> dict[str, Any]:
    """Without what was left out."""
    return {name: value for name, value in params.items() if value is not None}
