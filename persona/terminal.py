"""The terminal chat: `persona chat`, and the client's side of `persona demo`."""

import sys
from collections.abc import Awaitable, Callable
from contextlib import suppress
from typing import TextIO

import trio

from persona.client import (
    ChatStream,
    Client,
    ClientError,
    ConnectFailed,
    ConnectionLost,
    InvalidMessage,
    MessageTooLarge,
    RemoteError,
    UnexpectedAnswer,
    open_client,
)
from persona.client.errors import one_line
from persona.console import Console, Interrupts, LineTooLong, printable, sendable
from persona.rpc.results import TurnView

PROMPT = "you> "
HELP = """\
/list          who there is
/switch NAME   talk to somebody else
/history       what was said so far
/regenerate    another answer to the last line
/edit TEXT     say the last line differently
/previous      back to the answer before this one, where there are several
/next          on to the answer after this one
/new           begin a new conversation
/delete        delete this conversation and begin a new one
/help          this list
/quit          leave; so do Ctrl-D, and Ctrl-C at the prompt
Ctrl-C stops an answer. Everything else is said to the persona, each line for itself.
"""
NO_MODEL = "(no language model here: the scripted stand-in answers)"
BOLD, DIM = 1, 2
ENDS_WELL = ("stop", "length")

_Action = Callable[[str], Awaitable[None]]


async def chat(
    url: str,
    persona: str,
    say: str | None = None,
    *,
    token: str | None = None,
    conversation_id: str | None = None,
    stdin: TextIO | None = None,
    stdout: TextIO | None = None,
    stderr: TextIO | None = None,
    interrupts: Interrupts | None = None,
) -> int:
    """Talk with `persona` on the server at `url`; returns the exit code, 0 or 1.

    With `say`, one line is said and the bare answer written; without, lines are read until the
    end of input. The streams default to the process's own; without `interrupts` SIGINT is
    handled, which takes the main thread.

    1 means: no connection, connection lost, output closed, no such conversation, or, with `say`, no answer.
    """
    console = Console(stdin or sys.stdin, stdout or sys.stdout, stderr or sys.stderr)
    persona = sendable(persona)
    say = None if say is None else sendable(say)
    conversation_id = None if conversation_id is None else sendable(conversation_id)
    status = 1
    with console.restored():
        async with trio.open_nursery() as nursery:
            if interrupts is None:
                interrupts = Interrupts()
                await nursery.start(interrupts.watch)
            # The outermost block: Ctrl-C while connecting, say.
            with interrupts.stoppable():
                status = await _connect_and_chat(
                    url, persona, say, token, conversation_id, console, interrupts
                )
            nursery.cancel_scope.cancel()
    return status


async def _connect_and_chat(
    url: str,
    persona: str,
    say: str | None,
    token: str | None,
    conversation_id: str | None,
    console: Console,
    interrupts: Interrupts,
) -> int:
    try:
        async with open_client(url, token=token) as client:
            talk = _Talk(client, console, interrupts, persona, conversation_id)
            return await talk.interactive() if say is None else await talk.say_once(say)
    except (ConnectFailed, ConnectionLost) as exc:
        await console.complain(_printable_line(exc))
    except OSError:
        pass  # Output is closed. Whoever read our output has enough; a word about it would only be noise.
    return 1


class _Talk:
    """A user and a persona on an open connection."""

    def __init__(
        self,
        client: Client,
        console: Console,
        interrupts: Interrupts,
        persona: str,
        conversation_id: str | None,
    ) -> None:
        self._client = client
        self._console = console
        self._interrupts = interrupts
        self._persona = persona
        """As the server was asked for it, until it has told the name."""
        self._conversation_id = conversation_id
        self._resumable: str | None = None
        """The conversation something was said in last, to be gone on with another day."""

    async def say_once(self, text: str) -> int:
        """Say one line, print the answer and nothing else."""
        try:
            with self._interrupts.stoppable() as scope:
                await self._meet_server()
                if self._conversation_id is None:
                    await self._client.switch(self._persona)
                finish_reason = await self._answer(self._stream(text, bare=True), bare=True)
            if scope.cancelled_caught:
                await self._console.write("\n")
                return 1
        except (ConnectionLost, ConnectFailed):
            raise
        except ClientError as exc:
            await self._console.complain(_error_line(exc))
            return 1
        if finish_reason in ENDS_WELL:
            return 0
        await self._console.complain(f"! {_printable_line(finish_reason)}: the answer is not complete")
        return 1

    async def interactive(self) -> int:
        """Lines in, answers out, until the end of input."""
        if self._conversation_id is not None and not await self._is_there(self._conversation_id):
            return 1
        await self._guarded(self._greet, "")
        while (line := await self._next_line()) is not None and line != "/quit":
            if line:
                await self._guarded(self._obey if line.startswith("/") else self._say, line)
        if self._resumable is not None and self._console.is_interactive:
            hint = f"to go on another day: --conversation {self._resumable}"
            await self._show(self._console.styled(hint, DIM) + "\n")
        return 0

    async def _is_there(self, conversation_id: str) -> bool:
        """Whether there is such a conversation; when not, the user has been told. What else may be wrong
        shows when something is said."""
        try:
            with self._interrupts.stoppable():
                await self._client.history(conversation_id=conversation_id, limit=1)
        except (ConnectionLost, ConnectFailed):
            raise
        except ClientError as exc:
            if isinstance(exc, RemoteError) and exc.reason == "not_found":
                await self._console.complain(_error_line(exc))
                return False
        return True

    # Lines in

    async def _next_line(self) -> str | None:
        """The next line, `None` for the user's wish to leave. Raises `ConnectionLost`."""
        line: str | None = None
        lost: ConnectionLost | None = None
        too_long: LineTooLong | None = None

        async def notice_the_end() -> None:
            nonlocal lost
            lost = await self._client.wait_closed()
            nursery.cancel_scope.cancel()

        with self._interrupts.stoppable():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(notice_the_end)
                try:
                    line = await self._console.read_line(PROMPT)
                except LineTooLong as exc:
                    too_long = exc
                except OSError:
                    pass  # The terminal is gone: as the end of input.
                nursery.cancel_scope.cancel()
        if too_long is not None:
            await self._show(f"! message_too_large: {too_long}\n")
            return ""
        if line is not None:
            return line.strip()
        if self._console.is_interactive:
            await self._show("\n")
        if lost is not None:
            raise lost
        return None

    async def _guarded(self, action: _Action, line: str) -> None:
        """Do it; an error is one line, and Ctrl-C ends it, and the talk goes on."""
        try:
            with self._interrupts.stoppable() as scope:
                await action(line)
            if scope.cancelled_caught:
                await self._show(self._console.styled(" [stopped]", DIM) + "\n")
        except (ConnectionLost, ConnectFailed):
            raise
        except ClientError as exc:
            await self._show(f"{_error_line(exc)}\n")

    # What lines do

    async def _greet(self, _line: str) -> None:
        await self._meet_server()
        await self._list("")
        await self._show(self._console.styled("/help lists the commands", DIM) + "\n")
        await self._switch(self._persona)

    async def _obey(self, line: str) -> None:
        commands: dict[str, _Action] = {
            "/list": self._list,
            "/switch": self._switch,
            "/history": self._history,
            "/regenerate": self._regenerate,
            "/edit": self._edit,
            "/previous": self._previous,
            "/next": self._next,
            "/new": self._new,
            "/delete": self._delete,
            "/help": self._help,
        }
        name, _, argument = line.partition(" ")
        command = commands.get(name.lower())
        if command is None:
            await self._show(f"! unknown command {_printable_line(name)}; /help lists them\n")
        else:
            await command(argument.strip())

    async def _say(self, line: str) -> None:
        await self._hear(self._stream(line, bare=False))

    async def _hear(self, stream: ChatStream) -> None:
        finish_reason = await self._answer(stream, bare=False)
        if finish_reason != "stop":
            note = "cut off: the token budget is spent" if finish_reason == "length" else finish_reason
            await self._show(self._console.styled(f"[{_printable_line(note)}]", DIM) + "\n")

    async def _list(self, _argument: str) -> None:
        for person in (await self._client.list_personas()).personas:
            name = self._console.styled(_printable_line(person.name), BOLD)
            rests = "" if person.available else f" (rests for {person.cooldown_remaining:.0f} s)"
            await self._show(f"  {name}: {_printable_line(person.description)}{rests}\n")

    async def _switch(self, name: str) -> None:
        if not name:
            await self._show("! /switch needs a name; /list shows who there is\n")
            return
        switched = await self._client.switch(name)
        if name != self._persona:
            self._conversation_id = None
        self._persona = _printable_line(switched.name)
        await self._show(f"you talk to {self._console.styled(self._persona, BOLD)}\n")

    async def _new(self, _argument: str) -> None:
        await self._client.clear_session()
        self._conversation_id = None
        await self._switch(self._persona)

    async def _history(self, _argument: str) -> None:
        history = await self._client.history(conversation_id=self._conversation_id)
        if history.has_more:
            await self._show(self._console.styled("[there is more before this]", DIM) + "\n")
        for turn in history.turns:
            await self._show_turn(turn)

    async def _show_turn(self, turn: TurnView) -> None:
        speaker = self._console.styled("you" if turn.role == "user" else self._persona, BOLD)
        place = f" [{turn.sibling_index} of {turn.sibling_count}]" if turn.sibling_count > 1 else ""
        await self._show(f"{speaker}{self._console.styled(place, DIM)}: {printable(turn.content)}\n")

    async def _regenerate(self, _argument: str) -> None:
        await self._hear(
            self._client.regenerate_stream(
                conversation_id=self._conversation_id, on_queued=self._show_position
            )
        )

    async def _edit(self, text: str) -> None:
        if not text:
            await self._show("! /edit needs the line as it should have been\n")
            return
        line = await self._last("user")
        if line is None:
            await self._show("! nothing was said yet\n")
            return
        await self._hear(
            self._client.edit_stream(
                line.id, text, conversation_id=self._conversation_id, on_queued=self._show_position
            )
        )

    async def _previous(self, _argument: str) -> None:
        answer = await self._last("assistant")
        await self._turn_to(None if answer is None else answer.previous_sibling_id)

    async def _next(self, _argument: str) -> None:
        answer = await self._last("assistant")
        await self._turn_to(None if answer is None else answer.next_sibling_id)

    async def _turn_to(self, turn_id: int | None) -> None:
        if turn_id is None:
            await self._show("! there is no other answer there\n")
            return
        await self._client.select_branch(turn_id, conversation_id=self._conversation_id)
        answer = await self._last("assistant")
        if answer is not None:
            await self._show_turn(answer)

    async def _last(self, role: str) -> TurnView | None:
        """The last turn of that role."""
        history = await self._client.history(conversation_id=self._conversation_id, limit=2)
        return next((turn for turn in reversed(history.turns) if turn.role == role), None)

    async def _delete(self, argument: str) -> None:
        conversation_id = (await self._client.history(conversation_id=self._conversation_id)).conversation_id
        if conversation_id is not None:
            await self._client.delete_conversation(conversation_id)
            await self._show("deleted\n")
        self._resumable = None
        await self._new(argument)

    async def _help(self, _argument: str) -> None:
        await self._show(HELP)

    def _stream(self, text: str, *, bare: bool) -> ChatStream:
        return self._client.chat_stream(
            text,
            conversation_id=self._conversation_id,
            on_queued=None if bare else self._show_position,
        )

    async def _answer(self, stream: ChatStream, *, bare: bool) -> str:
        """Show the answer as it comes; returns how it ended."""
        has_begun = False
        error: ClientError | None = None
        try:
            async with stream:
                async for delta in stream:
                    if not has_begun and not bare:
                        await self._begin_answer()
                    has_begun = True
                    await self._show(printable(delta))
        except ClientError as exc:
            error = exc
        if not has_begun and not bare and error is None:
            await self._begin_answer()
        if has_begun or error is None:
            await self._show("\n")
        if error is not None:
            raise error
        if stream.result is None:
            return "unknown"
        self._resumable = _printable_line(stream.result.conversation_id)
        return stream.result.finish_reason

    async def _show_position(self, position: int) -> None:
        text = f"[waiting for the model: place {position}]"
        if self._console.has_colour:
            await self._show(f"\r{self._console.styled(text, DIM)}\x1b[K")
        else:
            await self._show(f"{text}\n")

    async def _begin_answer(self) -> None:
        over_position = "\r\x1b[K" if self._console.has_colour else ""
        await self._show(f"{over_position}{self._console.styled(self._persona, BOLD)}: ")

    async def _meet_server(self) -> None:
        """Learn the server's limits, and say it when no model stands behind it."""
        # A server that does not tell has the protocol's default.
        with suppress(RemoteError, UnexpectedAnswer):
            if (await self._client.session_info()).server.llm == "scripted":
                await self._console.complain(NO_MODEL)

    async def _show(self, text: str) -> None:
        await self._console.write(text)


def _printable_line(text: object) -> str:
    """`text` as one line that cannot drive the terminal."""
    return one_line(printable(str(text)))


def _error_line(error: ClientError) -> str:
    match error:
        case RemoteError(retry_after_s=float(seconds)):
            return f"! {_printable_line(error)} (try again in {seconds:g} s)"
        case RemoteError():
            return f"! {_printable_line(error)}"
        case InvalidMessage():
            return f"! invalid_message: {_printable_line(error)}"
        case MessageTooLarge():
            return f"! message_too_large: {_printable_line(error)}"
    return f"! unexpected_answer: {_printable_line(error)}"
