"""The services over a database in memory, with a model and a disk that the test plays."""

import sqlite3
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from typing import Any, TypeVar

import attrs
import trio

from persona.llm.backend import Completed, Delta, Event, GenerateOptions, Message
from persona.metrics import Metrics
from persona.model import Persona, Turn
from persona.service.background import Background
from persona.service.chat import Chat
from persona.service.context import ContextBudget
from persona.service.conversations import Conversations
from persona.service.personas import Personas
from persona.service.scheduler import Scheduler
from persona.service.sessions import Identity, RunningRequest, Session, Sessions
from persona.service.summaries import Summaries
from persona.service.turn import TurnAnswer, TurnRequest
from persona.storage import turns
from persona.storage.pool import Database, open_database
from persona.testing import EPOCH

T = TypeVar("T")

Step = str | float | Exception | Completed
"""What the model does next: says this, waits so many seconds, fails, or ends with these figures."""


def now() -> float:
    """Wall-clock time, on trio's clock."""
    return EPOCH + trio.current_time()


class PlayedModel:
    """Follows `script`; one that runs out ends with `stop`. `asked` keeps every prompt."""

    provider = "played"
    model = "played:1"

    def __init__(self) -> None:
        self.script: tuple[Step, ...] = (1.0, "Well", 1.0, " met", 1.0, ".")
        self.asked: list[tuple[Message, ...]] = []
        self.options: list[GenerateOptions] = []
        self.running = 0
        self.names: tuple[str, ...] | Exception = ("played:1", "played:2")
        self.answers_after_s = 0.0

    @asynccontextmanager
    async def generate(
        self, messages: tuple[Message, ...], options: GenerateOptions
    ) -> AsyncIterator[AsyncIterator[Event]]:
        self.asked.append(messages)
        self.options.append(options)
        self.running += 1
        try:
            async with aclosing(self._events(self.script)) as events:
                yield events
        finally:
            self.running -= 1

    async def _events(self, script: tuple[Step, ...]) -> AsyncGenerator[Event, None]:
        for step in script:
            if isinstance(step, float):
                await trio.sleep(step)
                continue
            await trio.lowlevel.checkpoint()
            if isinstance(step, Exception):
                raise step
            yield step if isinstance(step, Completed) else Delta(step)
            if isinstance(step, Completed):
                return
        yield Completed(finish_reason="stop", model=self.model)

    async def context_tokens(self, _model: str) -> int | None:
        return None

    async def models(self) -> tuple[str, ...]:
        await trio.sleep(self.answers_after_s)
        if isinstance(self.names, Exception):
            raise self.names
        return self.names


class Disk:
    """A database whose writes the test can hold up, for `write_s` before and `answers_after_s` after
    they are made, or let fail. Seconds; `math.inf` is stuck."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.write_s = 0.0
        self.answers_after_s = 0.0
        self.read_s = 0.0
        self.failure: Exception | None = None

    async def write(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        if self.write_s:
            await trio.sleep(self.write_s)
        if self.failure is not None:
            raise self.failure
        written = await self._database.write(fn)
        if self.answers_after_s:
            await trio.sleep(self.answers_after_s)
        return written

    async def read(self, fn: Callable[[sqlite3.Connection], T]) -> T:
        if self.read_s:
            await trio.sleep(self.read_s)
        return await self._database.read(fn)


@attrs.define(eq=False)
class Watcher:
    """Keeps what a turn's observer is told."""

    told: list[Any] = attrs.field(factory=list)

    def started(self, line: str) -> None:
        self.told.append("started")

    def queued(self, position: int) -> None:
        self.told.append(position)

    def delta(self, text: str) -> None:
        self.told.append(text)

    @property
    def heard(self) -> str:
        return "".join(word for word in self.told[1:] if isinstance(word, str))


@attrs.define(kw_only=True)
class Stage:
    """Everything a turn needs, and Aria, who is the persona of every test."""

    database: Database
    disk: Disk
    model: PlayedModel
    metrics: Metrics
    personas: Personas
    conversations: Conversations
    scheduler: Scheduler
    background: Background
    chat: Chat
    changes: list[tuple[str, str]]
    """What `on_change` was told: what happened, and the persona's name."""
    deletions: list[tuple[str, frozenset[int] | None]]
    """What `on_deleted` was told."""
    sessions: Sessions = attrs.field(factory=Sessions)

    @property
    def aria(self) -> Persona:
        return self.personas.find("aria")

    def session(self, user: str | None = None, **identity: Any) -> Session:
        """A session of that user, or of a client without a token."""
        if user is None:
            return self.sessions.open(Identity(**identity))
        return self.sessions.open(Identity(user=user, authenticated=True, **identity))

    async def begin(self) -> str:
        """The id of a new conversation with Aria."""
        return await self.conversations.current(self.session(), self.aria)

    async def say(
        self,
        line: str | None,
        conversation_id: str,
        *,
        instead_of: int | None = None,
        running: RunningRequest | None = None,
        watcher: Watcher | None = None,
        party: str = "p",
        max_tokens: int = 100,
        client_msg_id: str | None = None,
        persona: Persona | None = None,
        **options: Any,
    ) -> TurnAnswer:
        """Take a turn with Aria."""
        request = TurnRequest(
            persona=persona or self.aria,
            conversation_id=conversation_id,
            user="anonymous",
            party=party,
            line=line,
            instead_of=instead_of,
            options=GenerateOptions(max_tokens=max_tokens, **options),
            client_msg_id=client_msg_id,
        )
        running = running or RunningRequest(id=1, method="m")
        return await self.chat.turn(request, running, watcher or Watcher())

    async def turns(self, conversation_id: str) -> list[Turn]:
        """The current branch of a conversation."""
        page = await self.database.read(lambda conn: turns.recent_turns(conn, conversation_id, 200))
        return [turn for turn, _ in page.turns]

    async def lines(self, conversation_id: str) -> list[str]:
        """What was said on the current branch."""
        return [turn.content for turn in await self.turns(conversation_id)]


@asynccontextmanager
async def open_stage(
    *,
    slots: int = 2,
    max_queue: int = 8,
    recovery_s: float = 300.0,
    context_tokens: int = 4096,
    first_token_timeout_s: float = 60.0,
    max_personas: int = 1000,
) -> AsyncIterator[Stage]:
    """The stage; background jobs wait in their queue until a test runs them."""
    async with open_database(":memory:", threads=False) as database:
        disk, model, metrics = Disk(database), PlayedModel(), Metrics()
        changes: list[tuple[str, str]] = []

        def on_change(what: str, persona: Persona) -> None:
            changes.append((what, persona.name))
            if what == "deleted":
                chat.end_turns_with(persona.id)

        personas = Personas(
            disk, recovery_s=recovery_s, max_personas=max_personas, now=now, on_change=on_change
        )
        await personas.load()
        scheduler = Scheduler(slots=slots, max_queue=max_queue, metrics=metrics)
        background = Background(queue_size=8, workers=1, metrics=metrics)
        budget = ContextBudget(model, configured_tokens=context_tokens)
        summaries = Summaries(
            database=disk,
            backend=model,
            scheduler=scheduler,
            background=background,
            budget=budget,
            first_token_timeout_s=first_token_timeout_s,
            now=now,
        )
        chat = Chat(
            database=disk,
            backend=model,
            personas=personas,
            scheduler=scheduler,
            budget=budget,
            summaries=summaries,
            metrics=metrics,
            first_token_timeout_s=first_token_timeout_s,
            now=now,
        )
        deletions: list[tuple[str, frozenset[int] | None]] = []

        def on_deleted(conversation_id: str, turn_ids: frozenset[int] | None) -> None:
            deletions.append((conversation_id, turn_ids))
            chat.end_turns(conversation_id, turn_ids)

        yield Stage(
            database=database,
            disk=disk,
            model=model,
            metrics=metrics,
            personas=personas,
            conversations=Conversations(disk, now=now, on_deleted=on_deleted),
            scheduler=scheduler,
            background=background,
            chat=chat,
            changes=changes,
            deletions=deletions,
        )
