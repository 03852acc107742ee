"""A connection whose engine a test plays."""

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import trio

from persona.config import LimitSettings
from persona.metrics import Metrics
from persona.rpc.dispatch import Dispatcher, Registry
from persona.service.sessions import Identity, Sessions
from persona.transport.connection import Connection, Goodbye
from persona.transport.engine import PeerGone, nobody
from persona.transport.keepalive import Keepalive
from tests.rpc.desk import Methods


class Read(list[Any]):
    """Frames that came with one read."""


class PlayedEngine:
    """Frames the test puts in come out of `receive`; what is sent is kept. `stuck` blocks sends,
    `deaf` never answers pings."""

    sends_at_once = False
    has_unsent = False
    unsent_bytes = 0

    def __init__(self) -> None:
        self.on_unsent: Callable[[], None] = nobody
        self.put, self._frames = trio.open_memory_channel[Any](1000)
        self.sent: list[Any] = []
        self.pings = 0
        self.pong_after_s = 0.0
        self.most_pings_at_once = 0
        self._pings_at_once = 0
        self.aborted = False
        self.stuck = False
        self.send_fails: PeerGone | None = None
        self.deaf = False

    async def receive(self) -> list[str]:
        frame = await self._frames.receive()
        if isinstance(frame, Exception):
            raise frame
        frames = frame if isinstance(frame, Read) else [frame]
        return [each if isinstance(each, str) else json.dumps(each) for each in frames]

    async def send(self, messages: Sequence[bytes]) -> None:
        if self.stuck:
            self.unsent_bytes = sum(map(len, messages))
            try:
                await trio.sleep_forever()
            finally:
                self.unsent_bytes = 0
        await trio.lowlevel.checkpoint()
        if self.send_fails is not None:
            raise self.send_fails
        self.sent.extend(json.loads(message) for message in messages)

    def send_nowait(self, messages: Sequence[bytes]) -> bool:
        raise AssertionError("it was said that this cannot be done")

    async def ping(self) -> None:
        self.pings += 1
        self._pings_at_once += 1
        self.most_pings_at_once = max(self.most_pings_at_once, self._pings_at_once)
        try:
            await trio.sleep(math.inf if self.deaf else self.pong_after_s)
        finally:
            self._pings_at_once -= 1

    async def aclose(self, code: int, reason: str) -> None:
        raise AssertionError("the listener closes, not the connection")

    async def abort(self) -> None:
        self.aborted = True
        self.put.send_nowait(PeerGone(1006))
        await trio.lowlevel.checkpoint()


class QuickEngine(PlayedEngine):
    """Sends at once, as long as there is `room` for so many messages more."""

    sends_at_once = True

    def __init__(self) -> None:
        super().__init__()
        self.room = 1000
        self.writes: list[int] = []
        """Messages in each."""
        self._unsent: list[bytes] = []

    @property
    def has_unsent(self) -> bool:  # type: ignore[override]
        return bool(self._unsent)

    @property
    def unsent_bytes(self) -> int:  # type: ignore[override]
        return sum(map(len, self._unsent))

    def send_nowait(self, messages: Sequence[bytes]) -> bool:
        if self.send_fails is not None:
            raise self.send_fails
        self.writes.append(len(messages))
        waiting = [*self._unsent, *messages]
        taken, self._unsent = waiting[: self.room], waiting[self.room :]
        self.room -= len(taken)
        self.sent.extend(map(json.loads, taken))
        return not self._unsent

    async def send(self, messages: Sequence[bytes]) -> None:
        waiting, self._unsent = [*self._unsent, *messages], []
        await super().send(waiting)


@attrs.define
class Played:
    engine: PlayedEngine
    connection: Connection
    methods: Methods
    metrics: Metrics
    ping_interval_s: float
    goodbye: Goodbye | None = None

    async def run(self) -> None:
        keepalive = Keepalive(self.ping_interval_s)
        async with trio.open_nursery() as nursery:
            await nursery.start(keepalive.run)
            keepalive.add(self.connection)
            try:
                self.goodbye = await self.connection.run()
            finally:
                keepalive.remove(self.connection)
            nursery.cancel_scope.cancel()

    def say(self, *frames: Any) -> None:
        for frame in frames:
            self.engine.put.send_nowait(frame)

    def hang_up(self) -> None:
        self.say(PeerGone(1000))


def play(engine: PlayedEngine | None = None, **limits: Any) -> Played:
    settings = LimitSettings(**{"rate_limit_per_minute": 0, "ping_interval_s": 0, **limits})
    methods, metrics, engine = Methods(), Metrics(), engine or PlayedEngine()
    connection = Connection(
        engine,
        Sessions().open(Identity()),
        dispatcher=Dispatcher(Registry([methods]), settings, metrics),
        limits=settings,
        metrics=metrics,
    )
    return Played(engine, connection, methods, metrics, settings.ping_interval_s)
