"""Conversations in which nothing was said do not stay for ever.

Each `persona.switch` of a client without a token starts one, and its id is a promise: it must be good after
a crash, so it is on disk. Most of those clients say something; a program that only looks around leaves a row
each time. One that is still empty after `EMPTY_FOR_S` is removed unless a session that lives is in it. Who
comes back later with its id is told `not_found`, as for any id that is not known, and starts anew.
"""

from collections.abc import Callable
from functools import partial

import trio

from persona.metrics import Metrics
from persona.service.background import Background, Importance
from persona.service.sessions import Sessions
from persona.storage.pool import Database
from persona.storage.retention import remove_empty_conversations

EMPTY_FOR_S = 24 * 3600.0
"""A client that reconnects does so within minutes; a day also keeps the id of a game that was paused at
night. Ten thousand a day, of some 300 bytes each, are 3 MB."""
INTERVAL_S = 3600.0
"""Between two looks. The first is at the start, for servers that never run for an hour."""
BATCH = 200
"""Conversations removed in one write: a few milliseconds, in which others wait."""


class Retention:
    """`run` is the service; it leaves the work to the background's workers."""

    def __init__(
        self,
        database: Database,
        *,
        sessions: Sessions,
        background: Background,
        metrics: Metrics,
        now: Callable[[], float],
    ) -> None:
        self._database = database
        self._sessions = sessions
        self._background = background
        self._metrics = metrics
        self._now = now

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """See to it from time to time, until cancelled."""
        task_status.started()
        while True:
            self._background.submit("remove_empty", self.remove_empty, Importance.LOW)
            await trio.sleep(INTERVAL_S)

    async def remove_empty(self) -> None:
        """Remove what nobody can want any more. Raises `PersonaError` when the database cannot. Cancelling
        is safe."""
        before = self._now() - EMPTY_FOR_S
        while True:
            in_use = {one for session in self._sessions for one in session.conversations.values()}
            removed = await self._database.write(
                partial(remove_empty_conversations, before=before, in_use=in_use, limit=BATCH)
            )
            self._metrics.empty_conversations_removed.inc(len(removed))
            # One that a session took up at that very moment must not stay its conversation.
            for session in self._sessions:
                for conversation_id in removed:
                    session.forget_conversation(conversation_id)
            if len(removed) < BATCH:
                return
