"""A client's identity, its current persona, and the requests it has running.

A session is what a request belongs to; a connection only attaches to one. Nothing here knows
sockets, so a session can later outlive the connection it came in on.
"""

import itertools
import math
from collections.abc import Iterator
from types import TracebackType
from typing import Literal

import attrs
import trio

from persona.errors import (
    DeadlineExceeded,
    InvalidRequest,
    NotFound,
    PersonaError,
    RequestCancelled,
    ShuttingDown,
)

CancelReason = Literal["client", "shutdown", "deleted"]
RequestId = str | int


@attrs.frozen(kw_only=True)
class Identity:
    """Who a client is. `user` names the token's owner; clients without one are `anonymous`,
    and each of their sessions is its own party when the model's slots are shared out."""

    user: str = "anonymous"
    role: Literal["user", "admin"] = "user"
    authenticated: bool = False
    token_hash: str | None = attrs.field(default=None, repr=False)
    """Of the token it came with: shows, when tokens change, whether that one still counts."""


@attrs.define(eq=False)
class Place:
    """A request's place in the order in which its session was asked.

    Each knows the place before it, and not the request: a chain of those would keep every one of
    them in memory.
    """

    previous: "Place | None"
    taken: trio.Event = attrs.field(factory=trio.Event)
    """Set when its request has its place in what it changes, at the latest when it ends."""

    def ahead(self) -> "Place | None":
        """The nearest place before this one that is not taken; those that are, are forgotten."""
        while self.previous is not None and self.previous.taken.is_set():
            # It may have ended while it waited itself: then we wait for those it waited for.
            self.previous = self.previous.previous
        return self.previous


@attrs.define(eq=False, kw_only=True)
class RunningRequest:
    """One accepted request until its answer is given.

    `deadline` is on trio's clock. A stretch of work wrapped in `interruptible()` ends early
    when the deadline passes or `cancel` is called; work outside it (saving what was said) runs
    to its end.
    """

    id: RequestId | None
    method: str
    accepted_at: float = 0.0
    """On trio's clock, as is `deadline`."""
    deadline: float = math.inf
    stream_id: str | None = None
    order: Place | None = None
    """For a request that must keep its order among others."""
    _cancel_reason: CancelReason | None = None
    _scope: trio.CancelScope | None = None
    _is_settled: bool = False

    def cancel(self, reason: CancelReason) -> bool:
        """Cut the interruptible stretch that runs now, and any later one. The first reason stays.
        `False` when it is too late: the request is settled."""
        if self._is_settled:
            return False
        if self._cancel_reason is None:
            self._cancel_reason = reason
        if self._scope is not None:
            self._scope.cancel()
        return True

    def settle(self) -> None:
        """No interruptible stretch follows: what is being answered is decided."""
        self._is_settled = True

    async def wait_for_place(self) -> None:
        """Wait until the ordered requests before this one have their places. Raises as
        `interruptible`."""
        while self.order is not None and (ahead := self.order.ahead()) is not None:
            with self.interruptible():
                await ahead.taken.wait()

    def place(self) -> None:
        """Let the next ordered request begin."""
        if self.order is not None:
            self.order.taken.set()
            self.order.ahead()

    def interruptible(self) -> "_Stretch":
        """Run the body under the request's deadline and cancellation.

        Raises `RequestCancelled`, `ShuttingDown`, `NotFound` or `DeadlineExceeded` when the body was
        cut.
        May be entered several times, one after the other.
        """
        return _Stretch(self)

    def begin_stretch(self) -> trio.CancelScope:
        """What cuts it, which the caller enters."""
        scope = self._scope = trio.CancelScope(deadline=self.deadline)
        if self._cancel_reason is not None:
            scope.cancel()
        return scope

    def end_stretch(self) -> None:
        """The caller has left it."""
        self._scope = None

    def interruption(self) -> PersonaError:
        if self._cancel_reason == "client":
            return RequestCancelled("cancelled by the client")
        if self._cancel_reason == "shutdown":
            return ShuttingDown("the server shuts down", retry_after_s=5.0)
        if self._cancel_reason == "deleted":
            return NotFound("the conversation, or this branch of it, was deleted meanwhile")
        return DeadlineExceeded("the request's time is up")


class _Stretch:
    """See `RunningRequest.interruptible`. No generator: a chat has five of these, and that would cost as much
    as the scope itself."""

    __slots__ = ("_request", "_scope")

    def __init__(self, request: RunningRequest) -> None:
        self._request = request

    def __enter__(self) -> None:
        self._scope = self._request.begin_stretch()
        self._scope.__enter__()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> bool:
        try:
            is_caught = self._scope.__exit__(kind, error, traceback)
        finally:
            self._request.end_stretch()
        if self._scope.cancelled_caught:
            raise self._request.interruption() from None
        return is_caught


@attrs.define(eq=False, kw_only=True)
class Session:
    """One client's state. Owned by its connection's tasks; nothing else writes it."""

    id: str
    identity: Identity
    current_persona_id: str | None = None
    conversations: dict[str, str] = attrs.field(factory=dict)
    """Persona id to the id of this session's conversation with it."""
    resumes: bool = True
    """Whether a named user's last conversation is taken up again; `session.clear` ends that."""
    frames_in_flight: int = 0
    """JSON-RPC frames accepted and not yet answered; a batch is one."""
    # A dict for a set, which takes three times as much when it is empty.
    _requests: dict[RunningRequest, None] = attrs.field(factory=dict)
    _by_id: dict[RequestId | None, RunningRequest] = attrs.field(factory=dict)
    _last_ordered: Place | None = None

    @property
    def fairness_key(self) -> str:
        """The party this session counts as when the model's slots are shared out."""
        return self.identity.user if self.identity.authenticated else self.id

    @property
    def in_flight(self) -> int:
        """Requests and notifications accepted and not yet done."""
        return len(self._requests)

    @property
    def requests(self) -> tuple[RunningRequest, ...]:
        """Those requests, in the order in which they came."""
        return tuple(self._requests)

    def begin(self, request: RunningRequest, *, ordered: bool = False) -> None:
        """Register `request`; an `ordered` one will wait for the ordered one registered before it.

        Raises `InvalidRequest` when its id is in flight already.
        """
        self.check_id(request.id)
        if request.id is not None:
            self._by_id[request.id] = request
        self._requests[request] = None
        if ordered:
            request.order = self._last_ordered = Place(self._last_ordered)

    def check_id(self, request_id: RequestId | None) -> None:
        """Raise `InvalidRequest` when the id is in flight already."""
        if request_id in self._by_id:
            raise InvalidRequest("a request with this id is still running")

    def end(self, request: RunningRequest) -> None:
        """Forget `request`; its id may be used again."""
        request.place()
        self._requests.pop(request, None)
        if request.id is not None:
            self._by_id.pop(request.id, None)

    def find(self, *, request_id: RequestId | None, stream_id: str | None) -> RunningRequest | None:
        """The running request with that id, or the one whose stream has that id."""
        if request_id is not None:
            return self._by_id.get(request_id)
        return next((r for r in self._requests if r.stream_id == stream_id), None)

    def cancel_all(self, reason: CancelReason) -> None:
        """Cancel whatever runs; each request still gives its one answer."""
        for request in tuple(self._requests):
            request.cancel(reason)

    def forget_conversation(self, conversation_id: str) -> None:
        """The conversation is gone: the next one with its persona is another."""
        for persona_id, known in tuple(self.conversations.items()):
            if known == conversation_id:
                del self.conversations[persona_id]

    def forget_persona(self, persona_id: str) -> None:
        """The persona is gone, and its conversations with it."""
        self.conversations.pop(persona_id, None)

    def clear(self) -> None:
        """Forget the current persona and every context window; stored turns stay."""
        self.current_persona_id = None
        self.conversations.clear()
        self.resumes = False


class Sessions:
    """The sessions there are."""

    def __init__(self) -> None:
        self._numbers = itertools.count(1)
        self._open: dict[str, Session] = {}

    def __iter__(self) -> Iterator[Session]:
        return iter(tuple(self._open.values()))

    def __len__(self) -> int:
        return len(self._open)

    def open(self, identity: Identity) -> Session:
        """A new session; ids are never reused."""
        session = Session(id=f"s{next(self._numbers)}", identity=identity)
        self._open[session.id] = session
        return session

    def close(self, session: Session) -> None:
        """Forget `session`."""
        self._open.pop(session.id, None)

    @property
    def in_flight(self) -> int:
        """Requests running in all sessions."""
        return sum(session.in_flight for session in self._open.values())
