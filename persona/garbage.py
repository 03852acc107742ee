"""Python's collector of cyclic garbage, set for a server that makes many objects and few cycles.

By default the collector walks the young objects again and again, and now and then all there are, while the
event loop waits. Made rare, the 95th percentile of the time to a first token, with 200 streams under way,
fell by a tenth to two fifths, and an idle connection took a hundredth more memory: see docs/performance.md.
"""

import gc
from collections.abc import Iterator
from contextlib import contextmanager

THRESHOLDS = (20_000, 20, 50)
"""For `gc.set_threshold`. From 5,000 to 50,000 for the first, one could not be told from the other."""


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
