"""Everybody hears what anybody publishes: how long until an event is there?"""

from loadgen.requests import publish, subscribe
from loadgen.scenario import NO_ERRORS, Scenario, Stage, Threshold

SCENARIO = Scenario(
    name="broadcast",
    summary="500 subscribers, 5 events of 500 bytes a second: 2,500 receipts a second",
    stages=(Stage(seconds=30, connections=500, rate=5),),
    set_up=subscribe,
    request=publish,
    arrivals="constant",
    rate_by_connection=False,
    thresholds=(NO_ERRORS, Threshold("broadcast.p99_ms", at_most=1000)),
)
