"""`persona tasks`: the tree of tasks of a running server, asked for over the wire."""

import json

from persona.client import ClientError, open_client
from persona.errors import StartupError


async def read_tasks(url: str, *, token: str | None, siblings: int, as_json: bool) -> str:
    """The tree as text, or as JSON; it ends with a line's end.

    Raises `StartupError` with the reason when the server cannot be reached, or does not tell.
    """
    try:
        async with open_client(url, token=token) as client:
            answer = await client.tasks(siblings=siblings)
    except ClientError as exc:
        raise StartupError(f"{url}: {exc}") from None
    if as_json:
        return json.dumps(answer.tree, indent=2) + "\n"
    return "".join(f"{_printable(line)}\n" for line in (*answer.text.splitlines(), f"{answer.tasks} tasks"))


def _printable(line: str) -> str:
    # It comes from a server that may be anybody's.
    return "".join(c if c.isprintable() else "?" for c in line)
