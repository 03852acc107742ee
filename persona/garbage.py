"""Python's collector of cyclic garbage, set for a server that makes ten thousand objects a moment.

Nearly all of them are freed by their reference counts. The collector still walks the young ones for every 700
that are made, and all there are for every 70,000, which holds up the loop for tens of milliseconds: with 200
streams under way that was most of the 95th percentile of the time to a first token.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

THRESHOLDS = (20_000, 20, 50)
"""For `gc.set_threshold`. What may lie around meanwhile is a few megabytes: cycles come from exceptions with
their tracebacks, and few of the objects are in any."""


@contextmanager
def rarely_collected() -> Iterator[None]:
    """Meanwhile, collect seldom, and never what is there by now: modules, classes and functions stay anyway.
    It holds for the whole process, so this is for one that is the server's own."""
    before = gc.get_threshold()
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
    try:
        yield
    finally:
        gc.set_threshold(*before)
        gc.unfreeze()
