"""One process's load: members come and go with the stages, requests arrive, each second is noted.

The clock starts when the first stage's connections have all opened or failed. After the last stage nothing
new is begun; what is on its way is waited for, and an answer that comes late still counts, however late.
"""

import itertools
import resource
import time
import uuid
from collections import OrderedDict, deque
from collections.abc import Callable, Mapping
from functools import partial
from random import Random

import attrs

from loadgen.link import Target
from loadgen.loop import Loop
from loadgen.member import Member, Surroundings
from loadgen.recorder import Events, Recorder, Second
from loadgen.scenario import Scenario, ScenarioError, Stage, mistake
from loadgen.script import Call, Pause, Script, Stream, User
from loadgen.selfwatch import SelfWatch

LOOK_INTERVAL_S = 0.25
"""How often timeouts are looked for. A timer for each request would keep thousands of answered ones alive."""
SECOND_S = 1.0
CONNECTING_S = 120.0
"""How long the first stage's connections may take; what is not there by then is late, and the run begins."""
GRACE_S = 30.0
QUIET_S = 2.0
"""In the end, so long without an event means that none comes any more."""
CHECK_INTERVAL_S = 0.02
ERROR_PAUSE_S = 0.1
"""A closed loop's pause after an error that names no time to come back."""
WATCHER_RECONNECT_S = 1.0
MAX_WAITING = 100_000
"""Requests on the way at once. One more that arrives is an error, `not_sent`: the server is so far behind
that the generator's memory would be what ends the run."""


@attrs.frozen(kw_only=True)
class Share:
    """Which part of the users this process plays: every `of`-th from `index` on."""

    index: int = 0
    of: int = 1

    def connections(self, total: int) -> int:
        """How many of so many."""
        return len(range(self.index, total, self.of))


def _wake() -> None:
    """A timer that only ends a wait."""


def _nothing() -> Mapping[str, float]:
    return {}


@attrs.frozen(kw_only=True)
class Hooks:
    """What a run tells, and asks, as it goes."""

    on_second: Callable[[Second], None] = lambda _: None
    sample_server: Callable[[], Mapping[str, float]] = _nothing
    watch_script: Callable[[User], Script] | None = None
    """What a connection of its own does beside the load, to watch the server."""
    before_start: Callable[[], None] = lambda: None
    """Called once, with the first stage's connections open; may block."""


class Driver:
    """`run` drives a server through a scenario; `recorder` and `watch` hold what was seen."""

    def __init__(
        self,
        scenario: Scenario,
        target: Target,
        *,
        timeout_s: float = 60.0,
        share: Share | None = None,
        token: str | None = None,
        seed: int = 0,
        hooks: Hooks | None = None,
    ) -> None:
        self.watch = SelfWatch()
        self.recorder = Recorder(scenario, self.watch)
        self.has_started = False
        self.is_finishing = False
        self.holds = False
        self._scenario = scenario
        self._share = share or Share()
        self._hooks = hooks or Hooks()
        self._seed = seed
        self._nonce = uuid.uuid4().hex[:8]
        self._loop = Loop(self.watch)
        user = scenario.user
        if user is None and not scenario.is_open:
            user = self._one_after_the_other
        self._around = Surroundings(
            loop=self._loop,
            target=target,
            recorder=self.recorder,
            host=self,
            timeout_s=timeout_s,
            reconnect_s=scenario.reconnect_s,
            token=token,
            user=user,
            set_up=scenario.set_up,
        )
        self._members: list[Member] = []
        self._to_connect: deque[Member] = deque()
        self._ready: OrderedDict[Member, None] = OrderedDict()
        self._there: set[Member] = set()
        self._opening = False
        self._connecting: set[Member] = set()
        self._timeout_s = timeout_s
        self._started_at = self._second_began_at = 0.0
        self._arrived = self._waiting = 0
        self._oldest_s = 0.0
        self._arrival_random = Random(f"{seed}-{self._share.index}")

    def run(self) -> None:
        """From the first handshake to the last goodbye. Takes the scenario's length and at most one timeout
        and a few seconds more. Raises `ScenarioError` for what the scenario's own code does wrong, and
        nothing for what the server does."""
        raise_descriptor_limit()
        watcher = self._open_watcher()
        try:
            self._look()
            self._set_connections(self._scenario.stages[0].connections)
            self._until(self._is_settled, CONNECTING_S)
            self._hooks.before_start()
            self._start()
            self._until(lambda: self.is_finishing, self._scenario.seconds + GRACE_S)
            self._until(lambda: not any(member.waiting for member in self._there), self._timeout_s)
            self._until(self._has_all_events, self._timeout_s)
            self.holds = False
            for member in list(self._there):
                member.give_up()
            self._until(lambda: not self._there, GRACE_S)
        finally:
            for member in [*self._there, *([watcher] if watcher else [])]:
                member.abandon()
            self._loop.close()

    # What members tell.

    def settled(self, member: Member) -> None:
        """See `member.Host`."""
        self._connecting.discard(member)
        self._connect_next()

    def ready(self, member: Member) -> None:
        """See `member.Host`."""
        self._ready[member] = None

    def gone(self, member: Member) -> None:
        """See `member.Host`."""
        self._connecting.discard(member)
        self._there.discard(member)

    # Stages.

    def _start(self) -> None:
        now = self._started_at = self._second_began_at = time.perf_counter()
        self.recorder.start(now)
        self.watch.start(now)
        self.has_started = True
        for member in self._members:
            member.begin()
        begins = now
        for stage in self._scenario.stages:
            self._loop.at(begins, partial(self._begin, stage, begins))
            begins += stage.seconds
        self._loop.at(begins, self._finish)
        self._loop.at(now + SECOND_S, self._end_second)

    def _begin(self, stage: Stage, at: float) -> None:
        self._set_connections(stage.connections)
        self._arrive_after(at, stage, ends=at + stage.seconds)

    def _finish(self) -> None:
        self.is_finishing = True
        self.holds = self.recorder.events != Events()
        self._to_connect.clear()
        for member in list(self._there):
            member.finish()

    def _set_connections(self, total: int) -> None:
        wanted = self._share.connections(total)
        for member in self._members[wanted:]:
            member.finish()
        del self._members[wanted:]
        while len(self._members) < wanted:
            index = self._share.index + self._share.of * len(self._members)
            user = User(index, Random(f"{self._seed}-user-{index}"), f"{self._nonce}-{index}")
            member = Member(user, self._around)
            self._members.append(member)
            self._there.add(member)
            self._to_connect.append(member)
        self._connect_next()

    def _connect_next(self) -> None:
        # A connect that fails at once comes back here: the loop that is running goes on with the next.
        if self._opening:
            return
        self._opening = True
        while self._to_connect and len(self._connecting) < self._scenario.connecting:
            member = self._to_connect.popleft()
            if member.state == "away":
                self._connecting.add(member)
                member.connect()
        self._opening = False

    def _is_settled(self) -> bool:
        return not (
            self._to_connect
            or self._connecting
            or any(member.state == "setting_up" for member in self._members)
        )

    def _has_all_events(self) -> bool:
        """Whether what was published is there, or will never be."""
        events = self.recorder.events
        # What other processes' users published is not known here.
        is_whole = self._share.of == 1 and events.received >= events.promised
        return not self.holds or is_whole or time.perf_counter() - events.last_at > QUIET_S

    # Arrivals.

    def _arrive_after(self, at: float, stage: Stage, *, ends: float) -> None:
        """Plan the arrival that comes after the instant `at`, where the stage has any."""
        if not stage.rate:
            return
        # By connections, not by processes: one that plays none of so few users has nothing to send on.
        rate = stage.rate * self._share.connections(stage.connections) / max(1, stage.connections)
        if not rate:
            return
        gap_s = self._arrival_random.expovariate(rate) if self._scenario.arrivals == "poisson" else 1 / rate
        due = at + gap_s
        if due < ends:
            self._loop.at(due, partial(self._arrive, due, stage, ends))

    def _arrive(self, due: float, stage: Stage, ends: float) -> None:
        # The next one first: it comes when it comes, whatever becomes of this one.
        self._arrive_after(due, stage, ends=ends)
        member = self._next_ready()
        if member is None:
            self.recorder.failed("no_connection", due)
        elif self._waiting >= MAX_WAITING:
            self.recorder.failed("not_sent", due)
        else:
            self._waiting += 1
            member.ask(self._made(member.user, self._arrived), due)
        self._arrived += 1

    def _made(self, user: User, n: int) -> Call | Stream:
        """The scenario's request. Raises `ScenarioError`."""
        assert self._scenario.request is not None
        try:
            made = self._scenario.request(user, n)
        except Exception as exc:
            raise mistake("the scenario's `request`", exc) from exc
        if not isinstance(made, Call | Stream):
            raise ScenarioError(f"the scenario's `request` gave {made!r}, which is no `Call` and no `Stream`")
        return made

    def _next_ready(self) -> Member | None:
        """Each in turn."""
        while self._ready:
            member, _ = self._ready.popitem(last=False)
            if member.state == "ready":
                self._ready[member] = None
                return member
        return None

    def _one_after_the_other(self, user: User) -> Script:
        for n in itertools.count():
            answer = yield self._made(user, n)
            if answer.error is not None:
                # Refusals come fast, and a loop of them would take the processor from what is measured.
                yield Pause(answer.retry_after_s or ERROR_PAUSE_S)

    # The clock.

    def _look(self) -> None:
        now = time.perf_counter()
        self._oldest_s = max((member.look(now) for member in list(self._there)), default=0.0)
        self._waiting = sum(member.waiting for member in self._there)
        self._loop.at(now + LOOK_INTERVAL_S, self._look)

    def _end_second(self) -> None:
        now = time.perf_counter()
        busy, lag_ms = self.watch.end_second(now - self._second_began_at)
        self._second_began_at = now
        second = Second(
            at_s=round(now - self._started_at, 3),
            connections=sum(member.is_open for member in self._there),
            waiting=sum(member.waiting for member in self._there),
            oldest_ms=round(self._oldest_s * 1000, 1),
            busy=busy,
            lag_ms=lag_ms,
            server=dict(self._hooks.sample_server()),
        )
        self.recorder.end_second(second)
        self._hooks.on_second(second)
        if not self.is_finishing:
            due = self._started_at + SECOND_S * (len(self.recorder.seconds) + 1)
            self._loop.at(max(due, now), self._end_second)

    def _until(self, done: Callable[[], bool], within_s: float) -> None:
        """Turn until it is done, or that long. Not asked at each turn: it may look at everybody."""
        end = time.perf_counter() + within_s
        while not done() and (now := time.perf_counter()) < end:
            next_look = now + CHECK_INTERVAL_S
            self._loop.at(next_look, _wake)
            while time.perf_counter() < next_look:
                self._loop.turn()

    def _open_watcher(self) -> Member | None:
        if self._hooks.watch_script is None:
            return None
        # It has a recorder of its own: what watches is no part of what is measured.
        around = attrs.evolve(
            self._around,
            recorder=Recorder(self._scenario),
            host=_Bystander(),
            user=self._hooks.watch_script,
            set_up=None,
            reconnect_s=WATCHER_RECONNECT_S,
        )
        watcher = Member(User(-1, Random(self._seed), f"{self._nonce}-watch"), around)
        watcher.connect()
        return watcher


class _Bystander:
    """The host of a member that is nobody's."""

    has_started = True
    is_finishing = False
    holds = False

    def settled(self, member: Member) -> None: ...

    def ready(self, member: Member) -> None: ...

    def gone(self, member: Member) -> None: ...


def raise_descriptor_limit() -> int:
    """As many open sockets as this process may have; how many that are."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
