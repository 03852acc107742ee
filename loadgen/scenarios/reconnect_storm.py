"""Everybody is cut off at once and comes back at once, again and again."""

from loadgen.requests import ping
from loadgen.scenario import NO_ERRORS, Scenario, Stage, Threshold
from loadgen.script import Pause, Reconnect, Script, User

EVERY_S = 5.0


def cut_off(user: User) -> Script:
    """Ask, wait for the next storm, come back without delay."""
    n = 0
    while True:
        yield ping(user, n)
        yield Pause(EVERY_S)
        yield Reconnect(abruptly=True)
        n += 1


SCENARIO = Scenario(
    name="reconnect-storm",
    summary="500 clients are cut off together and come back together, every 5 s",
    stages=(Stage(seconds=30, connections=500),),
    user=cut_off,
    connecting=10_000,
    server={"limits.max_connections": 2000, "limits.max_handshakes": 2000},
    thresholds=(NO_ERRORS, Threshold("handshake.p99_ms", at_most=5000)),
)
