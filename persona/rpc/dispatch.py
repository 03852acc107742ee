"""Calls -> answers: the registry of methods, admission of requests, deadlines, error -> code.

`accept` is what the reader does: synchronous, it refuses at once what cannot run, and answers at
once what has nothing to wait for. `run` is what a worker does. Each accepted request gives exactly
one answer, each notification none; this module is where an error becomes a reply.
"""

import inspect
import time
from collections.abc import Callable, Iterable
from typing import Any, Literal, ParamSpec, Protocol, TypeVar

import attrs
import structlog
import trio
from msgspec import Struct

from persona.config import LimitSettings
from persona.errors import (
    InvalidRequest,
    MethodNotFound,
    Overloaded,
    PersonaError,
    ShuttingDown,
    Unauthorized,
)
from persona.log import internal_error
from persona.metrics import Metrics
from persona.rpc import jsonrpc
from persona.rpc.requestlog import RequestLog, shown
from persona.rpc.validation import convert_params
from persona.service.sessions import RunningRequest, Session
from persona.service.subscriber import Subscriber

Bound = Literal["handlers", "model"]
"""What bounds a method: the handler pool, or what bounds the waiting for the model: its slots and
queue, or the one question of its watch. A chat may wait for the model for minutes; if it held a place
in the handler pool meanwhile, a hundred chats would lock everybody else out."""
POOL_PATIENCE_S = 0.25
"""How long a request waits for a place in the handler pool before it is refused. Hundreds of clients
that connect at one moment and do something short are no overload, and told to come back in a second
they would all come back at one moment."""


@attrs.frozen(kw_only=True)
class MethodSpec:
    """What is published of a method, and how it runs."""

    name: str
    params: type[Struct]
    result: type[Any]
    summary: str
    admin: bool = False
    bound: Bound = "handlers"
    streams: bool = False
    """Answers with several frames under its own id, which a batch has no place for."""
    ordered: bool = False
    """Takes its place in the order in which it was sent among the session's other ordered calls:
    a chat that follows a switch is said to the new persona, and two lines are said in turn."""
    inline: bool = False
    """Never waits, so the reader answers it itself. It is not in flight and holds no place, so that
    a client whose places are all taken by streams can still ping, and stop one of them."""
    while_draining: bool = False
    """Is taken while the server waits for running requests to finish."""


class Caller(Subscriber, Protocol):
    """Who asks, and takes frames ahead of the answer."""

    @property
    def session(self) -> Session:
        """Who it is."""
        ...


@attrs.define(eq=False, kw_only=True)
class Call:
    """What a handler knows of what it was asked; `subscriber` takes frames to be sent ahead of the answer."""

    session: Session
    request: RunningRequest
    subscriber: Subscriber


Handler = Callable[[Any, Any], Any]
"""A coroutine function of a `Call` and its params; or a plain one of the `Caller`, where there is nothing to
wait for, and so nothing to cancel: `MethodSpec.inline`."""
_P = ParamSpec("_P")
_R = TypeVar("_R")


def method(
    name: str,
    *,
    params: type[Struct],
    result: type,
    admin: bool = False,
    bound: Bound = "handlers",
    streams: bool = False,
    ordered: bool = False,
    while_draining: bool = False,
) -> Callable[[Callable[_P, _R]], Callable[_P, _R]]:
    """Mark a handler; its docstring's first paragraph is the published summary."""

    def mark(handler: Callable[_P, _R]) -> Callable[_P, _R]:
        inline = not inspect.iscoroutinefunction(handler)
        if inline and (streams or ordered or bound != "handlers"):
            raise ValueError(f"{name} is a plain function and answered at once: it has no order and no bound")
        summary = " ".join((handler.__doc__ or "").split("\n\n")[0].split())
        spec = MethodSpec(
            name=name,
            params=params,
            result=result,
            summary=summary,
            admin=admin,
            bound=bound,
            streams=streams,
            ordered=ordered,
            inline=inline,
            while_draining=while_draining,
        )
        handler.__rpc__ = spec  # type: ignore[attr-defined]
        return handler

    return mark


class Registry:
    """The callable methods by name."""

    def __init__(self, namespaces: Iterable[object]) -> None:
        self._methods: dict[str, tuple[MethodSpec, Handler]] = {}
        for namespace in namespaces:
            for attribute in vars(type(namespace)).values():
                spec = getattr(attribute, "__rpc__", None)
                if spec is not None:
                    self.add(spec, attribute.__get__(namespace))

    def add(self, spec: MethodSpec, handler: Handler) -> None:
        """Register one method; a name can be registered once."""
        if spec.name in self._methods:
            raise ValueError(f"method {spec.name} is registered twice")
        self._methods[spec.name] = (spec, handler)

    def find(self, name: str) -> tuple[MethodSpec, Handler] | None:
        """The method of that name."""
        return self._methods.get(name)

    def specs(self) -> list[MethodSpec]:
        """Every method, by name."""
        return [self._methods[name][0] for name in sorted(self._methods)]


@attrs.frozen(eq=False)
class Accepted:
    """One call that may run."""

    message: jsonrpc.Request | jsonrpc.Notification
    request: RunningRequest


@attrs.frozen(eq=False)
class Work:
    """One frame's calls, in order, with the refusals among them already encoded."""

    entries: tuple[Accepted | bytes, ...]
    is_batch: bool


class Dispatcher:
    """Runs calls against the registry. One per server. `requestlog` says what `logs_requests` and
    `slow_request_s` do."""

    def __init__(
        self,
        registry: Registry,
        limits: LimitSettings,
        metrics: Metrics,
        *,
        logs_requests: bool = False,
        slow_request_s: float = 0.0,
    ) -> None:
        self._request_log = RequestLog(
            metrics,
            waits_for_model=self._waits_for_model,
            logs_all=logs_requests,
            slow_after_s=slow_request_s,
        )
        self._registry = registry
        self._limits = limits
        self._metrics = metrics
        self._pool = trio.CapacityLimiter(limits.handler_pool_size)
        metrics.handlers.set_function(lambda: self.running)
        self.draining = False

    @property
    def running(self) -> int:
        """Handlers that hold a place in the handler pool."""
        return self._pool.borrowed_tokens

    def accept(self, caller: Caller, message: jsonrpc.Message) -> Work | bytes | None:
        """Admit a decoded frame.

        `Work` for a worker, an encoded answer to be sent at once, or `None` when there is
        nothing to do and nothing to say.
        """
        match message:
            case jsonrpc.Request() | jsonrpc.Notification():
                found = self._registry.find(message.method)
                if found is not None and found[0].inline:
                    return self._answer(caller, message, found)
            case jsonrpc.Dropped():
                self._metrics.dropped_responses.inc(message.count)
                return None
            case jsonrpc.Invalid():
                return self._refuse(message.id, message.error)
        session = caller.session
        if session.frames_in_flight >= self._limits.max_in_flight:
            error = Overloaded("too many requests are in flight on this connection", retry_after_s=1.0)
            return self.refuse(message, error)
        if isinstance(message, jsonrpc.Batch):
            self._metrics.dropped_responses.inc(message.dropped)
        # A batch is one message: it is counted once, and its entries run one after another.
        is_batch = isinstance(message, jsonrpc.Batch)
        candidates = message.entries if isinstance(message, jsonrpc.Batch) else (message,)
        entries = tuple(self._accept_one(session, candidate) for candidate in candidates)
        if not is_batch and isinstance(entries[0], bytes):
            return entries[0]
        session.frames_in_flight += 1
        return Work(entries, is_batch=is_batch)

    def _accept_one(
        self, session: Session, message: jsonrpc.Request | jsonrpc.Notification | jsonrpc.Invalid
    ) -> Accepted | bytes:
        if isinstance(message, jsonrpc.Invalid):
            return self._refuse(message.id, message.error)
        request = RunningRequest(id=message.id, method=message.method, accepted_at=trio.current_time())
        try:
            found = self._registry.find(message.method)
            session.begin(request, ordered=found is not None and found[0].ordered)
        except InvalidRequest as exc:
            return self._refuse(message.id, exc)
        return Accepted(message, request)

    def refuse(self, message: jsonrpc.Message, error: PersonaError) -> bytes | None:
        """`error` as the answer to a whole frame; `None` where it holds nothing to be answered."""
        match message:
            case jsonrpc.Request() | jsonrpc.Invalid():
                return self._refuse(message.id, error)
            case jsonrpc.Batch():
                answerable = [e for e in message.entries if not isinstance(e, jsonrpc.Notification)]
                refusals = [self._refuse(entry.id, error) for entry in answerable]
                return jsonrpc.encode_batch(refusals) if refusals else None
        self._metrics.errors.labels(error.reason).inc()
        return None

    def _refuse(self, request_id: jsonrpc.Id, error: PersonaError) -> bytes:
        self._metrics.errors.labels(error.reason).inc()
        return jsonrpc.encode_error(request_id, error)

    def forget(self, session: Session, work: Work) -> None:
        """Free the ids of `work`: it is answered, or will never run."""
        session.frames_in_flight -= 1
        for entry in work.entries:
            if isinstance(entry, Accepted):
                session.end(entry.request)

    async def run(self, caller: Caller, work: Work) -> bytes | None:
        """Do one frame's work and give the frame to answer with, if any. Cancelling is safe."""
        replies: list[bytes] = []
        size_bytes = 0
        try:
            for entry in work.entries:
                if work.is_batch:
                    # Fifty calls that wait for nothing would hold up everybody else.
                    await trio.lowlevel.checkpoint()
                if isinstance(entry, bytes):
                    reply: bytes | None = entry
                elif size_bytes > self._limits.max_pending_bytes:
                    reply = self.refuse(
                        entry.message, Overloaded("the batch asks for too much", retry_after_s=1.0)
                    )
                else:
                    reply = await self._run_one(caller, entry, in_batch=work.is_batch)
                if reply is not None:
                    replies.append(reply)
                    size_bytes += len(reply)
        finally:
            self.forget(caller.session, work)
        if not replies:
            return None
        return jsonrpc.encode_batch(replies) if work.is_batch else replies[0]

    def _answer(
        self,
        caller: Caller,
        message: jsonrpc.Request | jsonrpc.Notification,
        found: tuple[MethodSpec, Handler],
    ) -> bytes | None:
        """Run an inline call."""
        started = time.perf_counter()
        request_id = message.id
        spec, handler = found
        try:
            caller.session.check_id(request_id)
            self._check(caller.session, spec, in_batch=False)
            params, _ = convert_params(message.params, spec.params)  # what never waits needs no deadline
            result = handler(caller, params)
            outcome, reply = "ok", b"" if request_id is None else jsonrpc.encode_result(request_id, result)
        except Exception as exc:  # noqa: BLE001 - see `_failed`
            outcome, reply = self._failed(request_id, message.method, exc)
        self._count(message.method, outcome, started, request_id)
        return None if request_id is None else reply

    async def _run_one(self, caller: Caller, accepted: Accepted, *, in_batch: bool) -> bytes | None:
        message, request = accepted.message, accepted.request
        started = time.perf_counter()
        # Method names come from clients; only known ones may become a label.
        label = "unknown"
        bound = structlog.contextvars.bind_contextvars(request=shown(request.id))
        try:
            spec, handler = self._find(message.method)
            label = spec.name
            self._check(caller.session, spec, in_batch=in_batch)
            params, timeout_s = convert_params(message.params, spec.params)
            if spec.inline:
                result = handler(caller, params)
            else:
                call = Call(session=caller.session, request=request, subscriber=caller)
                result = await self._call(spec, handler, call, params, timeout_s)
            outcome, reply = "ok", b"" if request.id is None else jsonrpc.encode_result(request.id, result)
        except Exception as exc:  # noqa: BLE001 - see `_failed`
            outcome, reply = self._failed(request.id, label, exc)
        finally:
            # Not only when the frame is done: the next one may be in the same batch.
            request.place()
            structlog.contextvars.reset_contextvars(**bound)
        self._count(label, outcome, started, request.id)
        return None if request.id is None else reply

    def _failed(self, request_id: jsonrpc.Id, label: str, exc: Exception) -> tuple[str, bytes]:
        """The outcome and the reply: a bug in one request must not end the connection."""
        error = exc if isinstance(exc, PersonaError) else internal_error(exc, where=label)
        return error.reason, self._refuse(request_id, error)

    def _count(self, label: str, outcome: str, started: float, request_id: jsonrpc.Id) -> None:
        seconds = time.perf_counter() - started
        self._metrics.messages.count_answer(label, outcome, seconds)
        if seconds > self._request_log.noted_after_s:
            self._request_log.note(label, outcome, seconds, request_id)

    def _waits_for_model(self, name: str) -> bool:
        found = self._registry.find(name)
        return found is not None and found[0].bound == "model"

    def _find(self, name: str) -> tuple[MethodSpec, Handler]:
        found = self._registry.find(name)
        if found is not None:
            return found
        if self.draining:
            raise _draining()
        raise MethodNotFound("no such method; rpc.discover lists them")

    def _check(self, session: Session, spec: MethodSpec, *, in_batch: bool) -> None:
        """Raise what forbids this client to call it now."""
        if self.draining and not spec.while_draining:
            raise _draining()
        if spec.admin and session.identity.role != "admin":
            raise Unauthorized(f"{spec.name} needs the admin role")
        if spec.streams and in_batch:
            raise InvalidRequest(f"{spec.name} answers with several frames and cannot be part of a batch")

    async def _call(
        self, spec: MethodSpec, handler: Handler, call: Call, params: Any, timeout_s: float
    ) -> Any:
        request = call.request
        limits = self._limits
        for_model = spec.bound == "model"
        limit_s = limits.chat_timeout_s if for_model else limits.request_timeout_s
        request.deadline = trio.current_time() + min(limit_s, timeout_s)
        await request.wait_for_place()
        if for_model:
            # The turn itself decides which of its stretches may be cut; see `service.chat`.
            return await handler(call, params)
        try:
            self._pool.acquire_on_behalf_of_nowait(request)
        except trio.WouldBlock:
            await self._wait_for_pool(request)
        try:
            with request.interruptible():
                return await handler(call, params)
        finally:
            self._pool.release_on_behalf_of(request)

    async def _wait_for_pool(self, request: RunningRequest) -> None:
        with request.interruptible(), trio.move_on_after(POOL_PATIENCE_S) as patience:
            await self._pool.acquire_on_behalf_of(request)
        if patience.cancelled_caught:
            raise Overloaded("too many requests are running", retry_after_s=1.0)


def _draining() -> ShuttingDown:
    return ShuttingDown("the server shuts down", retry_after_s=5.0)
