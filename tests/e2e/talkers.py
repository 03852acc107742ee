"""People who keep their own record of what was said, to hold it against the server's and the file's."""

import contextlib
import shutil
import sqlite3
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs

from persona.client import Client, ConnectionLost, open_client


@attrs.frozen
class Acknowledged:
    """A turn whose answer came."""

    client_msg_id: str
    line: str
    answer: str
    turn_id: int | None


@attrs.define
class Talker:
    """Somebody who keeps their own record of the conversation, whatever happens to the server."""

    name: str
    persona: str
    conversation_id: str = ""
    acknowledged: list[Acknowledged] = attrs.field(factory=list)
    pending: tuple[str, str] | None = None
    """`client_msg_id` and line of a turn whose answer never came."""
    _count: int = 0

    async def join(self, client: Client) -> None:
        if not self.conversation_id:
            self.conversation_id = (await client.switch(self.persona)).conversation_id

    async def say(self, client: Client) -> None:
        """One turn, by chat and by stream in turns; recorded once it is acknowledged."""
        if self.pending is None:
            self._count += 1
            self.pending = (
                f"{self.name}-{self._count}",
                f"Line {self._count} of {self.name}. Hello!",
            )
        client_msg_id, line = self.pending
        if self._count % 2:
            answer = await self._send(client, client_msg_id, line)
        else:
            answer = await self._stream(client, client_msg_id, line)
        self.acknowledged.append(answer)
        self.pending = None

    async def _send(self, client: Client, client_msg_id: str, line: str) -> Acknowledged:
        answer = await client.chat(line, conversation_id=self.conversation_id, client_msg_id=client_msg_id)
        return Acknowledged(client_msg_id, line, answer.response, answer.turn_id)

    async def _stream(self, client: Client, client_msg_id: str, line: str) -> Acknowledged:
        stream = client.chat_stream(line, conversation_id=self.conversation_id, client_msg_id=client_msg_id)
        async with stream:
            said = "".join([delta async for delta in stream])
        assert stream.result is not None
        assert stream.result.text == said
        return Acknowledged(client_msg_id, line, said, stream.result.turn_id)

    async def check(self, client: Client) -> None:
        """All that was acknowledged is there, once, and nothing but what was said."""
        if self.pending is not None:
            # Saved or not when the answer failed to come: sent again, it is there once in either case.
            await self.say(client)
        turns = await self.history(client)
        expected = [text for turn in self.acknowledged for text in (turn.line, turn.answer)]
        assert [turn.content for turn in turns] == expected
        answers = [turn.id for turn in turns if turn.role == "assistant"]
        assert answers == [turn.turn_id for turn in self.acknowledged]
        for turn in self.acknowledged[-3:]:
            assert await self._send(client, turn.client_msg_id, turn.line) == turn
            assert await self._stream(client, turn.client_msg_id, turn.line) == turn
        assert len(await self.history(client)) == len(turns)

    async def history(self, client: Client) -> list[Any]:
        """All turns of the conversation, oldest first."""
        turns: list[Any] = []
        before = None
        while True:
            page = await client.history(conversation_id=self.conversation_id, limit=200, before=before)
            turns = [*page.turns, *turns]
            if not page.has_more:
                return turns
            before = page.next_before


async def talk(talker: Talker, url: str, turns: int | None) -> None:
    """Check what is there, then say so many turns, or go on until the server is gone."""
    try:
        async with open_client(url) as client:
            await talker.join(client)
            await talker.check(client)
            while turns is None or turns > 0:
                await talker.say(client)
                turns = None if turns is None else turns - 1
    except ConnectionLost:
        assert turns is None


def check_file(folder: Path, talkers: Iterable[Talker] = ()) -> None:
    """What the killed server left is a whole database, and all that was acknowledged is in it, word for
    word; looked at in a copy, as recovery is its own job."""
    copy = folder / "copy"
    shutil.rmtree(copy, ignore_errors=True)
    copy.mkdir()
    for file in folder.glob("p.db*"):
        shutil.copy(file, copy / file.name)
    with contextlib.closing(sqlite3.connect(copy / "p.db")) as conn:
        assert conn.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert conn.execute("PRAGMA foreign_key_check").fetchall() == []
        for talker in talkers:
            rows = conn.execute(
                "SELECT answer.id, said.content, answer.content FROM turns AS answer"
                " JOIN turns AS said ON said.id = answer.parent_id"
                " WHERE answer.conversation_id = ? AND answer.role = 'assistant' ORDER BY answer.id",
                (talker.conversation_id,),
            ).fetchall()
            expected = [(turn.turn_id, turn.line, turn.answer) for turn in talker.acknowledged]
            assert rows[: len(expected)] == expected
            # One more may have been written without its answer getting out.
            assert len(rows) <= len(expected) + (talker.pending is not None)
    shutil.rmtree(copy)
