"""Where the performance guide starts from: what this server would be had nobody looked at its speed.

On aiohttp, one handler object that all connections share and that serves one request after the other, `json`
from the standard library, one SQLite connection in its default journal mode with a commit for each write, a
dict of connections, and broadcasts that encode and send for one client after the other. No connection limit,
although the guide names one of about 50: aiohttp has none, and what bounds it is the one handler. The model
takes PERSONA_LLM_SCRIPTED_FIRST_TOKEN_S, as the scripted one of ours does.
"""

import asyncio
import json
import os
import sqlite3
import sys
import tempfile
import uuid
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from aiohttp import WSMsgType, web

from loadgen.peers.answer import announce

ANSWER = "I have heard you, and I shall think about it on the road."


def now() -> str:
    """Of the clock on the wall."""
    return datetime.now(UTC).isoformat()


class Handlers:
    """Shared by all connections: `handle` takes one request at a time."""

    def __init__(self, database: sqlite3.Connection, model_s: float) -> None:
        self.connections: dict[str, web.WebSocketResponse] = {}
        self._database = database
        self._model_s = model_s
        self._topics: dict[str, set[str]] = {}
        self._lock = asyncio.Lock()

    async def handle(self, connection_id: str, text: str) -> str:
        """The answer to one frame."""
        async with self._lock:
            request = json.loads(text)
            result = await self._call(connection_id, request["method"], request.get("params") or {})
            return json.dumps({"jsonrpc": "2.0", "id": request["id"], **result})

    async def _call(self, connection_id: str, method: str, params: dict[str, Any]) -> dict[str, Any]:
        if method == "system.ping":
            return {"result": {"pong": True, "payload": params.get("payload"), "time": now()}}
        if method == "persona.chat":
            return {"result": await self._chat(params)}
        if method == "events.subscribe":
            self._topics[connection_id] = set(params["topics"])
            return {"result": {"topics": params["topics"]}}
        if method == "system.broadcast":
            return {"result": await self._broadcast(params)}
        return {"error": {"code": -32601, "message": "no such method"}}

    async def _chat(self, params: dict[str, Any]) -> dict[str, Any]:
        await asyncio.sleep(self._model_s)
        for role, content in (("user", params["message"]), ("assistant", ANSWER)):
            self._database.execute(
                "INSERT INTO turns (persona, role, content, created_at) VALUES (?, ?, ?, ?)",
                (params["persona_id"], role, content, now()),
            )
            self._database.commit()
        return {"response": ANSWER, "persona_name": params["persona_id"]}

    async def _broadcast(self, params: dict[str, Any]) -> dict[str, Any]:
        delivered = 0
        for connection_id, topics in list(self._topics.items()):
            ws = self.connections.get(connection_id)
            if ws is not None and params["topic"] in topics:
                await ws.send_str(json.dumps({"jsonrpc": "2.0", "method": "event", "params": params}))
                delivered += 1
        return {"delivered": delivered, "dropped": 0}


async def main(port: int) -> None:
    """Serve until killed."""
    with tempfile.TemporaryDirectory() as folder:
        database = sqlite3.connect(Path(folder) / "before.db")
        database.execute(
            "CREATE TABLE turns "
            "(id INTEGER PRIMARY KEY, persona TEXT, role TEXT, content TEXT, created_at TEXT)"
        )
        handlers = Handlers(database, float(os.environ.get("PERSONA_LLM_SCRIPTED_FIRST_TOKEN_S", "0.05")))

        async def serve(request: web.Request) -> web.WebSocketResponse:
            ws = web.WebSocketResponse()
            await ws.prepare(request)
            connection_id = str(uuid.uuid4())
            handlers.connections[connection_id] = ws
            try:
                async for message in ws:
                    if message.type is WSMsgType.TEXT:
                        await ws.send_str(await handlers.handle(connection_id, message.data))
            finally:
                del handlers.connections[connection_id]
            return ws

        app = web.Application()
        app.router.add_get("/mcp", serve)
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", port, backlog=1024).start()
        announce(runner.addresses[0][1])
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
