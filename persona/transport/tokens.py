"""Tokens that change while the server runs: the settings file is read anew when it has changed.

So a token is revoked by taking it out of the file, and whoever is connected with it is sent away. It is
polled, not watched: editors and orchestrators replace files, and links to files, in more ways than there
are notifications for.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import attrs
import structlog
import trio

from persona.config import AuthToken
from persona.errors import SettingsError

log = structlog.get_logger()

Read = TypeVar("Read")

POLL_INTERVAL_S = 1.0
"""A revoked token is to be of no use within 5 s. A change is seen by one poll, found to be at rest by the
next, and then there are three seconds left to read it and to say goodbye."""


@attrs.frozen(kw_only=True)
class TokenSource:
    """Where tokens come from. Both functions may block."""

    fingerprint: Callable[[], object]
    """Something that is another when the tokens may be others; `None` where they cannot be read again."""
    load: Callable[[], Sequence[AuthToken]]
    """The tokens. Raises `SettingsError`, whose text shows no secret."""


class TokenWatch:
    """`run` is the service; `apply` is told of the tokens, at first and whenever they may have changed.
    Those that cannot be read again stay as they are."""

    def __init__(self, source: TokenSource, apply: Callable[[Sequence[AuthToken]], None]) -> None:
        self._source = source
        self._apply = apply
        self._seen: object = None
        self._read: object = None

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look once a second until cancelled."""
        self._seen = self._read = await _in_thread(self._source.fingerprint)
        await self._load()
        task_status.started()
        while True:
            await trio.sleep(POLL_INTERVAL_S)
            await self.look()

    async def look(self) -> None:
        """Look once. A file that is being written is left alone until the next look."""
        seen = await _in_thread(self._source.fingerprint)
        is_at_rest, self._seen = seen == self._seen, seen
        if is_at_rest and seen != self._read:
            self._read = seen
            await self._load()

    async def _load(self) -> None:
        if self._read is None:
            log.info("tokens_not_watched", problem="the settings file is a pipe or the like, to be read once")
            return
        try:
            tokens = await _in_thread(self._source.load)
        except SettingsError as exc:
            # Nobody is let in, or sent away, for a slip of the pen.
            log.error("tokens_not_read", problem=str(exc))
        else:
            self._apply(tokens)


async def _in_thread(read: Callable[[], Read]) -> Read:
    # A file system that hangs must not hold up a stop, and what was read then is of no use to anybody.
    return await trio.to_thread.run_sync(read, abandon_on_cancel=True)
