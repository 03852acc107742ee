"""More and more connections, each asking once a second: where does it bend?"""

from loadgen.requests import ping
from loadgen.scenario import NO_ERRORS, Scenario, Stage, Threshold

STEPS = (10, 50, 100, 500, 1000, 2000)

SCENARIO = Scenario(
    name="ramp",
    summary="10 to 2,000 connections in stages, each asking once a second",
    stages=tuple(Stage(seconds=10, connections=n, rate=float(n)) for n in STEPS),
    request=ping,
    thresholds=(NO_ERRORS, Threshold("response.p99_ms", at_most=1000)),
)
