"""Which conversation a session is in, who may read it, and which of its branches is current."""

import itertools
import uuid
from collections.abc import Callable

import attrs

from persona.errors import NotFound
from persona.model import Conversation, Persona
from persona.service.sessions import Session
from persona.storage import store, turns
from persona.storage.pool import Database, write_shielded
from persona.storage.turns import Page

MAX_PAGE_BYTES = 512 * 1024
"""Text in one answer; half of what may wait for a client that reads slowly (`max_pending_bytes`)."""


OnDeleted = Callable[[str, frozenset[int] | None], None]
"""Told the conversation that is gone, or of which these turns are."""


class Conversations:
    """Starts, resumes, reads and deletes conversations. `on_deleted` is told after the fact is on disk.

    A conversation belongs to a user. A named user's last conversation with a persona is taken
    up again. Clients without a token are all `anonymous`, so they share nothing by default: each
    session starts its own, and goes on with an older one only by naming its unguessable id.
    """

    def __init__(self, database: Database, *, now: Callable[[], float], on_deleted: OnDeleted) -> None:
        self._database = database
        self._now = now
        self._on_deleted = on_deleted

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

    async def history(self, conversation_id: str, *, limit: int, before: int | None) -> Page:
        """The newest turns of the current branch, or those before turn `before` on its branch: at most
        `limit`, and fewer where they are long (`MAX_PAGE_BYTES`). Raises `NotFound` when the conversation
        or that turn is gone."""
        page = await self._database.read(
            lambda conn: turns.recent_turns(conn, conversation_id, limit, before)
        )
        sizes = itertools.accumulate(len(turn.content.encode()) for turn, _ in reversed(page.turns))
        count = max(1, sum(size <= MAX_PAGE_BYTES for size in sizes))
        return attrs.evolve(
            page, turns=page.turns[-count:], has_more=page.has_more or count < len(page.turns)
        )

    async def select(self, conversation_id: str, turn_id: int) -> int:
        """Make the branch through that turn the current one, down to the newest leaf below it; its leaf.
        Raises `NotFound` when the conversation has no such turn."""
        return await self._database.write(lambda conn: turns.select_branch(conn, conversation_id, turn_id))

    async def delete(self, conversation_id: str) -> int:
        """Remove a conversation with all its branches; how many turns it had. Turns under way in it end.
        Raises `NotFound` when it is gone already."""
        # Shielded, as in `delete_branch`: those who are told must be told of whatever is on disk.
        turn_count = await write_shielded(
            self._database, lambda conn: store.delete_conversation(conn, conversation_id)
        )
        if turn_count is None:
            raise NotFound("no such conversation", field="conversation_id")
        self._on_deleted(conversation_id, None)
        return turn_count

    async def delete_branch(self, conversation_id: str, turn_id: int) -> tuple[int, int | None]:
        """Remove a turn and all that follows it; how many turns that were, and the current leaf then.
        Turns under way below it end. Raises `NotFound` when the conversation has no such turn."""
        deleted, leaf_id = await write_shielded(
            self._database, lambda conn: turns.delete_branch(conn, conversation_id, turn_id)
        )
        self._on_deleted(conversation_id, deleted)
        return len(deleted), leaf_id

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

    async def count(self, *, since: float) -> int:
        """How many conversations had a turn, or began, since `since`."""
        return await self._database.read(lambda conn: store.count_conversations(conn, since))

    async def statistics(self, persona: Persona) -> tuple[int, int, float | None]:
        """Turns, conversations and the time of the last turn of a persona."""
        return await self._database.read(lambda conn: store.persona_turn_stats(conn, persona.id))
