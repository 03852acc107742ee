"""Some subscribers stop reading in the middle of it. The others must not notice."""

from loadgen.requests import publish, subscribe
from loadgen.scenario import Scenario, Stage, Threshold
from loadgen.script import Call, Rest, Script, StopReading, User

SLOW_SHARE = 0.1
EVENT_BYTES = 8000


def listener(user: User) -> Script:
    """One in ten goes deaf for longer than the server bears."""
    if user.random.random() < SLOW_SHARE:
        yield StopReading(3600)
    yield Rest()


def large_event(user: User, n: int) -> Call:
    """Events that fill the buffers of who does not read."""
    call = publish(user, n, size_bytes=EVENT_BYTES)
    # Who is cut misses events: that is what `dropped` says, and what is asked for here.
    return Call(call.method, call.params, lambda result: result["delivered"] > 0)


SCENARIO = Scenario(
    name="slow-readers",
    summary="one subscriber in ten stops reading; the others get every event in time",
    stages=(Stage(seconds=30, connections=100, rate=50),),
    set_up=subscribe,
    user=listener,
    request=large_event,
    arrivals="constant",
    rate_by_connection=False,
    # A deaf user's own requests are not answered, and in the end it is cut, or does not hear the goodbye.
    expected=frozenset(
        {
            *("unanswered", "timeout", "reset", "connection_lost", "closed_1013"),
            *("server_does_not_read", "goodbye_timeout"),
        }
    ),
    server={"limits.max_pending_bytes": 262_144, "limits.write_deadline_s": 5},
    thresholds=(Threshold("errors", at_most=0), Threshold("broadcast.p99_ms", at_most=1000)),
)
