"""One simulated user at work: its connection, its requests on the way, and its script."""

import time
from collections.abc import Callable, Generator
from functools import partial
from typing import Literal, Protocol

import attrs
import orjson

from loadgen.exchange import Exchange
from loadgen.link import Link, Lost, Refused, Target
from loadgen.loop import Loop
from loadgen.recorder import Recorder
from loadgen.scenario import ScenarioError, mistake
from loadgen.script import (
    Answer,
    Call,
    Command,
    Pause,
    Reconnect,
    Rest,
    Script,
    StopReading,
    Stream,
    Together,
    User,
)
from loadgen.wire import WrongFrame

HANDSHAKE_TIMEOUT_S = 10.0
GOODBYE_TIMEOUT_S = 10.0

State = Literal["away", "connecting", "setting_up", "ready", "leaving", "gone"]


class Host(Protocol):
    """Who runs members, and hears what becomes of them."""

    @property
    def has_started(self) -> bool:
        """Whether the clock runs; before that nobody begins."""
        ...

    @property
    def is_finishing(self) -> bool:
        """Whether nothing new is begun."""
        ...

    @property
    def holds(self) -> bool:
        """Whether who is done stays all the same, since events may still be on their way."""
        ...

    def settled(self, member: "Member") -> None:
        """The handshake ended, well or not."""
        ...

    def ready(self, member: "Member") -> None:
        """Requests may be sent on it."""
        ...

    def gone(self, member: "Member") -> None:
        """Nothing more will come of it."""
        ...


@attrs.frozen(kw_only=True)
class Surroundings:
    """What members share."""

    loop: Loop
    target: Target
    recorder: Recorder
    host: Host
    timeout_s: float
    reconnect_s: float | None = None
    token: str | None = None
    user: Callable[[User], Script] | None = None
    set_up: Callable[[User], Script] | None = None


class Member:
    """`connect` begins it, `finish` ends it; in between the loop calls it."""

    def __init__(self, user: User, around: Surroundings) -> None:
        self.user = user
        self.state: State = "away"
        self._around = around
        self._link: Link | None = None
        self._exchange = Exchange(around.recorder)
        self._script: Script | None = None
        self._user_script: Script | None = None
        self._finishing = False
        self._says_goodbye_since = 0.0
        self._writes = False
        self._reads = True

    @property
    def waiting(self) -> int:
        """Requests without an answer."""
        return len(self._exchange)

    @property
    def is_open(self) -> bool:
        """Whether there is a connection."""
        return self._link is not None and self._link.state == "open"

    def connect(self) -> None:
        """Begin to connect."""
        self.state = "connecting"
        try:
            link = self._link = Link(self._around.target, token=self._around.token)
        except Refused as exc:
            self._refused(exc)
            return
        self._writes = self._reads = True
        self._around.loop.add(link.fd, partial(self._on_ready, link), write=True)

    def begin(self) -> None:
        """The clock runs: who is ready plays its script."""
        if self.state == "ready" and self._user_script is None and self._around.user is not None:
            self._user_script = self._play(self._around.user)
            self._run(self._user_script)

    def ask(self, command: Call | Stream, scheduled_at: float) -> None:
        """Send a request that was due at `scheduled_at`, whatever else is on its way."""
        self._send(command, scheduled_at, None)

    def finish(self) -> None:
        """Begin nothing new; leave once what is on its way is answered."""
        self._finishing = True
        if self.state in ("connecting", "away"):
            self._drop()
            self._end()
        else:
            self._leave_if_done()

    def look(self, now: float) -> float:
        """Give up what took too long; how long the oldest request has waited, in seconds."""
        if self.state == "connecting" and self._link is not None:
            if now - self._link.started_at > HANDSHAKE_TIMEOUT_S:
                self._refused(Refused("handshake_timeout"))
            return 0.0
        if self.state == "leaving" and now - self._says_goodbye_since > GOODBYE_TIMEOUT_S:
            self._around.recorder.failed("goodbye_timeout", now)
            self._drop()
            self._end()
        oldest_s = 0.0
        for pending in self._exchange.waiting():
            if now >= pending.deadline:
                self._exchange.expire(pending)
            elif not pending.is_quiet:
                oldest_s = max(oldest_s, now - pending.scheduled_at)
        self._leave_if_done()
        return oldest_s

    def give_up(self) -> None:
        """What is on its way is not waited for any longer."""
        for pending in self._exchange.waiting():
            self._exchange.expire(pending)
        self._leave_if_done()

    def abandon(self) -> None:
        """Close the connection, whatever is on its way."""
        self._drop()
        self._end()

    # What the socket brings.

    def _on_ready(self, link: Link, mask: int) -> None:
        if link is not self._link:
            return
        was_open = link.state == "open"
        try:
            messages = link.handle(mask)
            if link.state == "open" and not was_open:
                self._opened(link)
            now = time.perf_counter()
            for message in messages:
                reply = self._exchange.take(message, now)
                if reply and link is self._link:
                    link.send(reply)
            if link.close_code is not None:
                raise Lost(f"closed_{link.close_code}")
        except Refused as exc:
            self._refused(exc)
        except Lost as exc:
            self._lost(exc.kind)
        except WrongFrame as exc:
            self._around.recorder.wrong("a wrong frame", exc, time.perf_counter())
            self._lost("wrong_frame")
        else:
            self._adjust()
            self._leave_if_done()

    def _opened(self, link: Link) -> None:
        self._around.recorder.opened(link.started_at, link.connected_at, link.opened_at)
        self._around.host.settled(self)
        if self._around.set_up is None:
            self._now_ready()
        else:
            self.state = "setting_up"
            self._run(self._play(self._around.set_up))

    def _now_ready(self) -> None:
        self.state = "ready"
        self._around.host.ready(self)
        if self._user_script is not None:
            # It reconnected on purpose, and goes on.
            self._script = self._user_script
            self._resume(self._user_script, Answer())
        elif self._around.host.has_started:
            self.begin()

    # What the script wants.

    def _play(self, play: Callable[[User], Script]) -> Script:
        try:
            script = play(self.user)
        except Exception as exc:
            raise mistake(f"the script of user {self.user.index}", exc) from exc
        if not isinstance(script, Generator):
            raise ScenarioError(f"{play!r} is no script: it gave {script!r}, which yields nothing")
        return script

    def _run(self, script: Script) -> None:
        self._script = script
        self._step(script, None)

    def _resume(self, script: Script, answer: Answer) -> None:
        if script is not self._script:
            return
        if self._finishing:
            self._script = None
            return
        self._step(script, answer)

    def _step(self, script: Script, answer: Answer | None) -> None:
        try:
            # `send(None)` is what starts a generator; it is the only time that it gets one.
            command = script.send(answer)  # type: ignore[arg-type]
        except StopIteration:
            self._script = None
            if self.state == "setting_up":
                self._now_ready()
            else:
                self._finishing = True
                self._leave_if_done()
        except ScenarioError:
            raise
        except Exception as exc:
            raise mistake(f"the script of user {self.user.index}", exc) from exc
        else:
            self._obey(script, command)

    def _obey(self, script: Script, command: Command) -> None:
        now = time.perf_counter()
        resume = partial(self._resume, script, Answer())
        if isinstance(command, Call | Stream):
            self._send(command, now, partial(self._resume, script))
        elif isinstance(command, Together):
            self._send_together(command, now, partial(self._resume, script))
        elif isinstance(command, Pause):
            self._around.loop.at(now + command.seconds, resume)
        elif isinstance(command, Reconnect):
            self._drop(abruptly=command.abruptly)
            self.state = "away"
            self._exchange.lose("unanswered")
            self._around.loop.at(now + command.after_s, self._come_back)
        elif isinstance(command, StopReading):
            self._reads = False
            self._adjust(force=True)
            self._around.loop.at(now + command.seconds, partial(self._read_on, resume))
        elif not isinstance(command, Rest):
            raise ScenarioError(f"the script of user {self.user.index} yielded {command!r}: no command")

    def _send_together(self, together: Together, now: float, reply: Callable[[Answer], None]) -> None:
        answers: dict[int, Answer] = {}

        def answered(place: int, answer: Answer) -> None:
            answers[place] = answer
            if len(answers) == len(together.commands):
                reply(Answer(result=[answers[n] for n in range(len(answers))]))

        for place, command in enumerate(together.commands):
            if self._link is not None:
                self._send(command, now, partial(answered, place))

    def _read_on(self, resume: Callable[[], None]) -> None:
        self._reads = True
        if self.is_open:
            self._adjust(force=True)
        resume()

    def _come_back(self) -> None:
        if self.state == "away" and not self._finishing and not self._around.host.is_finishing:
            self.connect()

    def _send(
        self, command: Call | Stream, scheduled_at: float, reply: Callable[[Answer], None] | None
    ) -> None:
        link = self._link
        assert link is not None
        try:
            _, frame = self._exchange.ask(
                command,
                scheduled_at=scheduled_at,
                timeout_s=self._around.timeout_s,
                reply=reply,
                is_quiet=self.state == "setting_up",
            )
            link.send(frame)
        except orjson.JSONEncodeError as exc:
            raise ScenarioError(f"{command.name} cannot be sent: {exc}") from None
        except Lost as exc:
            self._lost(exc.kind)
        else:
            self._adjust()

    # How it ends.

    def _adjust(self, *, force: bool = False) -> None:
        """Wait for room in the socket only while something waits to be sent."""
        link = self._link
        if link is not None and link.state != "closed" and (force or link.wants_write != self._writes):
            self._writes = link.wants_write
            self._around.loop.change(link.fd, read=self._reads, write=self._writes)

    def _leave_if_done(self) -> None:
        is_done = self._finishing and not self.waiting and self.state in ("ready", "setting_up")
        if is_done and not self._around.host.holds:
            self._say_goodbye()

    def _say_goodbye(self) -> None:
        if self.state == "leaving" or self._link is None:
            return
        self.state = "leaving"
        self._script = None
        self._says_goodbye_since = time.perf_counter()
        self._reads = True
        try:
            self._link.say_goodbye()
            self._adjust(force=True)
        except Lost as exc:
            self._lost(exc.kind)

    def _refused(self, exc: Refused) -> None:
        self._around.recorder.failed(exc.kind, time.perf_counter())
        self._drop()
        self._around.host.settled(self)
        self._try_again(exc.retry_after_s)

    def _lost(self, kind: str) -> None:
        was_leaving = self.state == "leaving"
        self._drop()
        # The script must not go on by the answers that it will never get.
        self._script = self._user_script = None
        if was_leaving:
            if not kind.startswith("closed_") and kind != "connection_lost":
                self._around.recorder.failed(kind, time.perf_counter())
            self._end()
            return
        self._around.recorder.failed(kind, time.perf_counter())
        self._exchange.lose("unanswered")
        self._try_again(None)

    def _try_again(self, retry_after_s: float | None) -> None:
        wait_s = self._around.reconnect_s
        if wait_s is None or self._finishing or self._around.host.is_finishing:
            self._end()
            return
        self.state = "away"
        # Not all at once, as real clients would not.
        wait_s = max(wait_s, retry_after_s or 0.0) * self.user.random.uniform(0.5, 1.5)
        self._around.loop.at(time.perf_counter() + wait_s, self._come_back)

    def _drop(self, *, abruptly: bool = False) -> None:
        if self._link is not None:
            if self.is_open and not (self.state == "leaving" and self._around.host.is_finishing):
                self._around.recorder.events.departed += 1
            self._around.loop.remove(self._link.fd)
            self._link.close(abruptly=abruptly)
            self._link = None

    def _end(self) -> None:
        if self.state != "gone":
            self.state = "gone"
            self._script = None
            self._around.host.gone(self)
