"""A dispatcher with one session at it, and methods that show how they were run."""

import json
from typing import Any

import attrs
import trio
from msgspec import Struct

from persona.config import LimitSettings
from persona.errors import Conflict
from persona.metrics import Metrics
from persona.rpc import jsonrpc
from persona.rpc.dispatch import Call, Caller, Dispatcher, Registry, Work, method
from persona.service.sessions import Identity, Session, Sessions
from persona.service.subscriber import Frame


class Nothing(Struct, forbid_unknown_fields=True):
    pass


class Seconds(Struct, forbid_unknown_fields=True):
    seconds: float = 0.0


class Text(Struct, forbid_unknown_fields=True):
    text: str


class Methods:
    def __init__(self) -> None:
        self.ran: list[str] = []

    @method("t.sleep", params=Seconds, result=Nothing)
    async def sleep(self, _call: Call, params: Seconds) -> dict[str, float]:
        """Sleep, and say how long.

        This is not part of the summary.
        """
        await trio.sleep(params.seconds)
        self.ran.append(f"slept {params.seconds:g}")
        return {"slept": params.seconds}

    @method("t.model", params=Seconds, result=Nothing, bound="model", streams=True)
    async def model(self, call: Call, params: Seconds) -> str:
        """Takes a while, in a stretch of its own."""
        with call.request.interruptible():
            await trio.sleep(params.seconds)
        return "done"

    @method("t.admin", params=Nothing, result=Nothing, admin=True)
    async def admin(self, _call: Call, _params: Nothing) -> str:
        """For admins."""
        return "yes"

    @method("t.conflict", params=Nothing, result=Nothing)
    async def conflict(self, _call: Call, _params: Nothing) -> None:
        """Fails as it should."""
        raise Conflict("as it should")

    @method("t.bug", params=Nothing, result=Nothing)
    async def bug(self, _call: Call, _params: Nothing) -> None:
        """Fails as it should not."""
        raise KeyError("secret")

    @method("t.now", params=Nothing, result=Nothing)
    def now(self, _caller: Caller, _params: Nothing) -> str:
        """Has nothing to wait for."""
        self.ran.append("now")
        return "now"

    @method("t.echo", params=Text, result=Nothing, while_draining=True)
    def echo(self, _caller: Caller, params: Text) -> str:
        """Says it again, also while the server drains."""
        return params.text

    @method("t.broken", params=Nothing, result=Nothing)
    def broken(self, _caller: Caller, _params: Nothing) -> None:
        """Fails at once, as it should not."""
        raise KeyError("secret")

    @method("t.emit", params=Nothing, result=Nothing)
    async def emit(self, call: Call, _params: Nothing) -> str:
        """Says something ahead of its answer."""
        call.subscriber.offer(b"ahead")
        return "answer"


class Step(Struct, forbid_unknown_fields=True):
    word: str
    before_s: float = 0.0
    after_s: float = 0.0


class OrderedMethods(Methods):
    """Their effect depends on their order; `ran` keeps it."""

    @method("o.change", params=Step, result=Nothing, ordered=True)
    async def change(self, _call: Call, params: Step) -> None:
        """Has its place when it is done."""
        await trio.sleep(params.before_s)
        self.ran.append(params.word)

    @method("o.turn", params=Step, result=Nothing, bound="model", ordered=True)
    async def turn(self, call: Call, params: Step) -> None:
        """Has its place long before it is done."""
        with call.request.interruptible():
            await trio.sleep(params.before_s)
            self.ran.append(params.word)
            call.request.place()
            await trio.sleep(params.after_s)

    @method("o.conflict", params=Step, result=Nothing, ordered=True)
    async def ordered_conflict(self, _call: Call, params: Step) -> None:
        """Fails after a while."""
        await trio.sleep(params.before_s)
        raise Conflict("as it should")

    @method("o.free", params=Step, result=Nothing)
    async def free(self, _call: Call, params: Step) -> None:
        """Has no place in the order."""
        await trio.lowlevel.checkpoint()
        self.ran.append(params.word)


class Outbox:
    def __init__(self) -> None:
        self.got: list[bytes] = []

    def offer(self, message: Frame) -> bool:
        self.got.append(message)
        return True


@attrs.define
class Desk:
    """A dispatcher with one session at it."""

    dispatcher: Dispatcher
    session: Session
    methods: Methods
    metrics: Metrics
    outbox: Outbox = attrs.field(factory=Outbox)

    def offer(self, frame: Frame) -> bool:
        return self.outbox.offer(frame)

    def accept(self, frame: Any) -> Work | bytes | None:
        return self.dispatcher.accept(self, jsonrpc.decode(json.dumps(frame)))

    async def run(self, work: Work) -> bytes | None:
        return await self.dispatcher.run(self, work)

    async def ask(self, frame: Any) -> Any:
        work = self.accept(frame)
        if isinstance(work, Work):
            work = await self.run(work)
        return None if work is None else json.loads(work)


def desk(*, role: Any = "admin", methods: Methods | None = None, **limits: Any) -> Desk:
    methods, metrics = methods or Methods(), Metrics()
    dispatcher = Dispatcher(Registry([methods]), LimitSettings(**limits), metrics)
    return Desk(dispatcher, Sessions().open(Identity(role=role)), methods, metrics)


def call(name: str, id: Any = 1, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "id": id, "method": name, "params": params}


def notify(name: str, **params: Any) -> dict[str, Any]:
    return {"jsonrpc": "2.0", "method": name, "params": params}


def reason(reply: Any) -> str:
    return reply["error"]["data"]["reason"]


class Line:
    """A desk whose frames are accepted in the order of `send`, and answered when they are."""

    def __init__(self, nursery: trio.Nursery, **limits: Any) -> None:
        self.desk = desk(methods=OrderedMethods(), **limits)
        self.answered: dict[Any, tuple[float, str]] = {}
        self._nursery = nursery

    def send(self, frame: Any) -> None:
        work = self.desk.accept(frame)
        assert isinstance(work, Work)
        self._nursery.start_soon(self._run, work)

    async def _run(self, work: Work) -> None:
        answer = await self.desk.run(work)
        for reply in [] if answer is None else _listed(json.loads(answer)):
            self.answered[reply["id"]] = (trio.current_time(), reason(reply) if "error" in reply else "ok")


def _listed(answer: Any) -> list[Any]:
    return answer if isinstance(answer, list) else [answer]
