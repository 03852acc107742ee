"""Python's collector of cyclic garbage, set for a server that makes ten thousand objects a moment.

Nearly all of them are freed by their reference counts. The collector still walks the young ones for every 700
that are made, and all there are for every 70,000, which holds up the loop for tens of milliseconds: with 200
streams under way that was most of the 95th percentile of the time to a first token.
"""

import gc

THRESHOLDS = (20_000, 20, 50)
"""For `gc.set_threshold`. What may lie around meanwhile is a few megabytes: cycles come from exceptions with
their tracebacks, and few of the objects are in any."""


def make_rare() -> None:
    """Collect seldom, and never what is there by now: modules, classes and functions stay anyway. For a
    process that is the server's own."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
