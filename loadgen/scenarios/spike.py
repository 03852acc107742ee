"""Ten times the load from one second to the next, and back: does it come back?"""

from loadgen.requests import ping
from loadgen.scenario import NO_ERRORS, Scenario, Stage, Threshold

SCENARIO = Scenario(
    name="spike",
    summary="from 50 connections and 100/s to 500 and 1,000/s at once, and back",
    stages=(
        Stage(seconds=10, connections=50, rate=100, name="before"),
        Stage(seconds=10, connections=500, rate=1000, name="spike"),
        Stage(seconds=10, connections=50, rate=100, name="after"),
    ),
    request=ping,
    connecting=10_000,
    thresholds=(
        NO_ERRORS,
        Threshold("stage3.response.p99_ms", at_most=250),
        Threshold("stage3.response.p50_ms", relative_to="stage1.response.p50_ms", at_most=3),
    ),
)
