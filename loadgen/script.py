"""What a simulated user does: commands that a scenario's scripts yield, and the answers they get back.

A script is a generator, so a scenario reads from top to bottom, and thousands of them cost no tasks:

    def chatter(user: User) -> Script:
        yield Call("persona.switch", {"persona_id": "Aria"})
        while True:
            answer = yield Stream({"message": "What is new?"})
            if answer.error == "overloaded":
                yield Pause(answer.retry_after_s or 1.0)
            yield Pause(user.random.expovariate(1 / 5))

A script that returns leaves: its connection is closed.
"""

from collections.abc import Callable, Generator
from random import Random
from typing import Any

import attrs


def anything(_result: Any) -> bool:
    """The check of a call whose result may be any."""
    return True


@attrs.frozen
class Call:
    """A request and its response. `check` says whether a result is right; one that is not fails the run."""

    method: str
    params: dict[str, Any] = attrs.field(factory=dict)
    check: Callable[[Any], bool] = anything
    timeout_s: float | None = None
    """After this long it is an error; `None` is the plan's."""
    label: str = ""
    """Under which name its latency is shown; the method's where empty."""

    @property
    def name(self) -> str:
        """What its latency is shown under."""
        return self.label or self.method


@attrs.frozen
class Stream:
    """`persona.chat_stream`, from the line to the stream's last event. Chunks are checked against the whole.

    `cancel_after` cancels it once so many chunks have come. That is answered with `cancelled` as the error
    of the answer, and counted apart: it is what was asked for.
    """

    params: dict[str, Any]
    cancel_after: int | None = None
    timeout_s: float | None = None
    label: str = ""

    @property
    def name(self) -> str:
        """What its latency is shown under."""
        return self.label or "persona.chat_stream"


@attrs.frozen
class Together:
    """Several requests sent at once. The script goes on when all are answered; the answer's `result` is the
    list of theirs, in the same order."""

    commands: tuple[Call | Stream, ...] = attrs.field(
        validator=[
            attrs.validators.min_len(1),
            attrs.validators.deep_iterable(attrs.validators.instance_of((Call, Stream))),
        ]
    )


@attrs.frozen
class Pause:
    """Think, for so long."""

    seconds: float = attrs.field(validator=attrs.validators.ge(0))


@attrs.frozen
class Rest:
    """Stay connected and do nothing, until the end or until the number of connections goes down."""


@attrs.frozen
class Reconnect:
    """Drop the connection, without a close frame where `abruptly`, and open a new one after `after_s`.

    Figures of the new connection count like any other's.
    """

    abruptly: bool = True
    after_s: float = attrs.field(default=0.0, validator=attrs.validators.ge(0))


@attrs.frozen
class StopReading:
    """Read nothing for so long, so that the kernel's buffers fill, and the server's after them."""

    seconds: float = attrs.field(validator=attrs.validators.ge(0))


Command = Call | Stream | Together | Pause | Rest | Reconnect | StopReading


@attrs.frozen
class Answer:
    """What came of a `Call` or a `Stream`; other commands are answered with an empty one."""

    result: Any = None
    error: str | None = None
    """The kind of the error, as the report counts it: the server's reason, or `timeout`."""
    retry_after_s: float | None = None
    latency_s: float = 0.0


Script = Generator[Command, Answer, None]


@attrs.define(eq=False)
class User:
    """One simulated user, as its script sees it."""

    index: int
    """From 0, through all workers."""
    random: Random
    """Its own, seeded: the same plan makes the same pauses."""
    nonce: str
    """Differs from run to run and from user to user; payloads that hold it cannot be taken for another's."""
