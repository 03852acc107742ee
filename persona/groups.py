"""Exception groups at the edge of a context manager."""

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def ungrouped() -> Iterator[None]:
    """Let an exception that is alone in its group out of it.

    For a context manager that keeps one nursery: what the body raised comes out as it would
    without it, and a group of the body's own stays one. Two exceptions at once stay together.
    """
    try:
        yield
    except BaseExceptionGroup as group:
        if len(group.exceptions) > 1:
            raise
        alone = group.exceptions[0]
        context = alone.__context__
        try:
            raise alone  # noqa: ASYNC123 - cause and traceback stay, and so does the context, below
        finally:
            # Raising gives it the group as its context; it had its own, or none.
            alone.__context__ = context
            del alone, context
