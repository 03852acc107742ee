"""Which conversation a session is in, and who may read it."""

import itertools
import uuid
from collections.abc import Callable

from persona.errors import NotFound
from persona.model import Conversation, Persona, Turn
from persona.service.sessions import Session
from persona.storage import store
from persona.storage.pool import Database

MAX_PAGE_BYTES = 512 * 1024
"""Text in one answer; half of what may wait for a client that reads slowly (`max_pending_bytes`)."""


class Conversations:
    """Starts, resumes and reads conversations.

    A conversation belongs to a user. A named user's last conversation with a persona is taken
    up again. Clients without a token are all `anonymous`, so they share nothing by default: each
    session starts its own, and goes on with an older one only by naming its unguessable id.
    """

    def __init__(self, database: Database, *, now: Callable[[], float]) -> None:
        self._database = database
        self._now = now

    async def find_current(self, session: Session, persona: Persona) -> str | None:
        """The id of the session's conversation with `persona`, resumed if need be; `None` when there
        is none."""
        known = session.conversations.get(persona.id)
        if known is not None or not (session.identity.authenticated and session.resumes):
            return known
        user = session.identity.user
        latest = await self._database.read(lambda conn: store.latest_conversation(conn, user, persona.id))
        if latest is None or not session.resumes:  # cleared while we looked
            return session.conversations.get(persona.id)
        return session.conversations.setdefault(persona.id, latest.id)

    async def current(self, session: Session, persona: Persona) -> str:
        """As `find_current`; where there is none, one is started."""
        found = await self.find_current(session, persona)
        if found is not None:
            return found
        now = self._now()
        started = Conversation(
            id=uuid.uuid4().hex,
            persona_id=persona.id,
            user=session.identity.user,
            created_at=now,
            updated_at=now,
        )
        await self._database.write(lambda conn: store.create_conversation(conn, started))
        # Reading a history may have found one meanwhile.
        return session.conversations.setdefault(persona.id, started.id)

    async def open(self, session: Session, conversation_id: str) -> Conversation:
        """The conversation of that id. Raises `NotFound` when there is none or it is not the
        session's to read; the two are not told apart."""
        found = await self._database.read(lambda conn: store.get_conversation(conn, conversation_id))
        identity = session.identity
        reads_all = identity.authenticated and identity.role == "admin"
        if found is None or (found.user != identity.user and not reads_all):
            raise NotFound("no such conversation", field="conversation_id")
        return found

    async def history(
        self, conversation_id: str, *, limit: int, before: int | None
    ) -> tuple[list[Turn], bool]:
        """The newest turns before turn id `before`, oldest first, and whether there are older ones:
        at most `limit`, and fewer where they are long (`MAX_PAGE_BYTES`)."""
        turns, has_more = await self._database.read(
            lambda conn: store.recent_turns(conn, conversation_id, limit, before)
        )
        sizes = itertools.accumulate(len(turn.content.encode()) for turn in reversed(turns))
        count = max(1, sum(size <= MAX_PAGE_BYTES for size in sizes))
        return turns[-count:], has_more or count < len(turns)

    async def list(
        self, session: Session, *, persona_id: str | None, limit: int, before: str | None
    ) -> tuple[list[Conversation], str | None]:
        """The session's conversations, newest first, and the cursor of the next page."""
        ids = None if session.identity.authenticated else sorted(session.conversations.values())
        return await self._database.read(
            lambda conn: store.list_conversations(
                conn,
                user=session.identity.user,
                persona_id=persona_id,
                ids=ids,
                limit=limit,
                before=before,
            )
        )

    async def count(self, *, since: float | None = None) -> int:
        """How many conversations there are, or had a turn since `since`."""
        return await self._database.read(lambda conn: store.count_conversations(conn, since))

    async def statistics(self, persona: Persona) -> tuple[int, int, float | None]:
        """Turns, conversations and the time of the last turn of a persona."""
        return await self._database.read(lambda conn: store.persona_turn_stats(conn, persona.id))
