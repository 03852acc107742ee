"""`session.*` and `events.*`: the client's own state and subscriptions."""

from persona.rpc import params as p
from persona.rpc import results as r
from persona.rpc.dispatch import Call, Caller, method
from persona.service.hub import Hub
from persona.service.personas import Personas


class SessionMethods:
    """What a client can know and change of its own session."""

    def __init__(self, personas: Personas, hub: Hub, limits: dict[str, float], server: r.ServerInfo) -> None:
        self._personas = personas
        self._hub = hub
        self._limits = limits
        self._server = server

    @method("session.info", params=p.NoParams, result=r.SessionInfo)
    def info(self, caller: Caller, _params: p.NoParams) -> r.SessionInfo:
        """Who the server takes the client for, and the limits it must stay under."""
        session = caller.session
        current = self._personas.get(session.current_persona_id or "")
        return r.SessionInfo(
            session_id=session.id,
            user=session.identity.user,
            role=session.identity.role,
            current_persona=None if current is None else current.name,
            conversation_id=None if current is None else session.conversations.get(current.id),
            limits=self._limits,
            server=self._server,
        )

    @method("session.clear", params=p.NoParams, result=r.SessionCleared, ordered=True)
    async def clear(self, call: Call, _params: p.NoParams) -> r.SessionCleared:
        """Forget the current persona and its context window; stored turns stay."""
        call.session.clear()
        return r.SessionCleared(cleared=True)

    @method("events.subscribe", params=p.TopicParams, result=r.Topics)
    def subscribe(self, caller: Caller, params: p.TopicParams) -> r.Topics:
        """Get the events of these topics, too."""
        self._hub.subscribe(caller, params.topics)
        return r.Topics(topics=self._hub.topics_of(caller))

    @method("events.unsubscribe", params=p.TopicParams, result=r.Topics)
    def unsubscribe(self, caller: Caller, params: p.TopicParams) -> r.Topics:
        """Get the events of these topics no longer."""
        self._hub.unsubscribe(caller, params.topics)
        return r.Topics(topics=self._hub.topics_of(caller))
