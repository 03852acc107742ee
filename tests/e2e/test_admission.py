"""Who is let in, asked over a real socket; and that no token is ever shown to anybody."""

import base64
import io
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import prometheus_client
import pytest
import structlog
import trio

from persona.config import AuthToken
from persona.log import PINNED, configure_logging
from persona.testing import settings_with
from persona.transport.admission import HELP, token_hash
from tests.e2e.abusers import CLOSE, TEXT
from tests.e2e.siege import ENGINES, besieged, knocking, status, until
from tests.transport.house import House

USERS, ADMINS, WRONG = "users-s3cret-0123", "admins-s3cret-4567", "wrong-s3cret-89ab"
SECRETS = (USERS, ADMINS, WRONG)
TOKENS = {
    "tokens": (
        AuthToken("ann", "user", token_hash(USERS)),
        AuthToken("root", "admin", token_hash(ADMINS)),
    )
}


def opening(target: str = "/mcp", **headers: str | None) -> bytes:
    """An opening request; a header that is `None` is left out."""
    merged: dict[str, str | None] = {
        "host": "localhost",
        "connection": "Upgrade",
        "upgrade": "websocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": base64.b64encode(bytes(16)).decode(),
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    lines = [f"{name}: {value}" for name, value in merged.items() if value is not None]
    return "\r\n".join([f"GET {target} HTTP/1.1", *lines, "", ""]).encode()


async def asked(port: int, head: bytes) -> tuple[str, dict[str, str], str]:
    """Status, headers and body of the answer to an opening request."""
    async with knocking(port) as bare:
        answer = await status(bare, head)
        lines, _, body = answer.decode().partition("\r\n\r\n")
        first, *rest = lines.split("\r\n")
        headers = {name.casefold(): value for name, _, value in (line.partition(": ") for line in rest)}
        if first.split()[1] != "101":
            with trio.fail_after(5):
                while len(body) < int(headers["content-length"]):
                    body += (await bare.stream.receive_some()).decode()
        return first.split()[1], headers, body


# Host, Origin, plain HTTP


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("headers", "expected", "reason"),
    [
        ({"origin": "https://evil.example"}, "403", "origin"),
        ({"origin": "null"}, "403", "origin"),
        ({"origin": "http://localhost:3000"}, "101", None),
        ({"origin": None}, "101", None),
        ({"host": "evil.example"}, "403", "host"),
        ({"host": "127.0.0.1:1"}, "101", None),
    ],
)
async def test_strangers_pages_and_names_are_refused(
    engine: str, headers: dict[str, str | None], expected: str, reason: str | None, tmp_path: Path
) -> None:
    async with besieged(tmp_path, engine) as siege:
        code, _, body = await asked(siege.port, opening(**headers))
        assert code == expected
        assert bool(body) == (reason is not None)
        assert siege.refused == ({} if reason is None else {reason: 1})


@pytest.mark.parametrize("engine", ENGINES)
async def test_the_lists_that_are_set_are_exact(engine: str, tmp_path: Path) -> None:
    server = {"allowed_origins": ("https://chat.example",), "allowed_hosts": ("chat.example",)}
    async with besieged(tmp_path, engine, server=server) as siege:
        for host, origin, expected in (
            ("chat.example", "https://chat.example", "101"),
            ("chat.example:443", None, "101"),
            ("localhost", "https://chat.example", "403"),
            ("chat.example", "http://chat.example", "403"),
            ("chat.example", "https://chat.example:444", "403"),
            ("chat.example", "https://chat.example.evil.example", "403"),
        ):
            assert (await asked(siege.port, opening(host=host, origin=origin)))[0] == expected


@pytest.mark.parametrize("engine", ENGINES)
async def test_plain_http_is_told_what_this_is(engine: str, tmp_path: Path) -> None:
    async with besieged(tmp_path, engine) as siege:
        plain = b"GET /mcp HTTP/1.1\r\nHost: localhost\r\n\r\n"
        code, headers, body = await asked(siege.port, plain)
        assert code == "426"
        assert headers["upgrade"] == "websocket"
        assert headers["connection"].casefold() == "close"
        assert headers["content-type"].startswith("text/plain")
        assert body == f"{HELP}\n"
        assert (await asked(siege.port, plain.replace(b"/mcp", b"/")))[0] == "404"
        assert siege.refused == {"not_websocket": 1, "path": 1}


# Tokens


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("headers", "user", "may_broadcast"),
    [
        ({"authorization": f"Bearer {USERS}"}, "ann", False),
        ({"authorization": f"bearer {ADMINS}"}, "root", True),
        ({"sec_websocket_protocol": f"mcp, persona.auth.{USERS}"}, "ann", False),
        ({"sec_websocket_protocol": f"persona.auth.{ADMINS}"}, "root", True),
    ],
)
async def test_a_token_says_who_it_is_and_what_that_one_may(
    engine: str, headers: dict[str, str], user: str, may_broadcast: bool, tmp_path: Path
) -> None:
    async with besieged(tmp_path, engine, auth=TOKENS) as siege, knocking(siege.port) as client:
        answer = (await status(client, opening(**headers))).decode()
        assert answer.startswith("HTTP/1.1 101")
        assert ("sec-websocket-protocol: mcp" in answer.casefold()) == ("mcp," in str(headers))
        assert not any(secret in answer for secret in SECRETS)
        await client.ask("session.info")
        assert (await client.answer())["result"]["user"] == user
        await client.ask("system.broadcast", {"type": "x", "data": None})
        reply = await client.answer()
        assert ("result" in reply) == may_broadcast
        if not may_broadcast:
            assert reply["error"]["data"]["reason"] == "unauthorized"


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(
    ("target", "headers"),
    [
        ("/mcp", {}),
        ("/mcp", {"authorization": f"Bearer {WRONG}"}),
        ("/mcp", {"authorization": f"Basic {USERS}"}),
        ("/mcp", {"authorization": USERS}),
        ("/mcp", {"sec_websocket_protocol": f"mcp, persona.auth.{WRONG}"}),
        ("/mcp", {"sec_websocket_protocol": f"mcp, {USERS}"}),
        # Addresses are kept in histories and the logs of proxies: not a place for a token.
        (f"/mcp?token={USERS}", {}),
        (f"/mcp?access_token={USERS}", {"cookie": f"token={USERS}"}),
    ],
)
async def test_without_a_good_token_in_its_place_nobody_is_let_in(
    engine: str, target: str, headers: dict[str, str], tmp_path: Path
) -> None:
    async with besieged(tmp_path, engine, auth=TOKENS) as siege:
        code, answered, body = await asked(siege.port, opening(target, **headers))
        assert code == "401"
        assert answered["www-authenticate"].startswith("Bearer")
        assert siege.refused == {"token": 1}
        assert not any(secret in body + str(answered) for secret in SECRETS)


# Where a token must never be seen


@pytest.fixture
def logged() -> Iterator[io.StringIO]:
    """Everything that is logged, from the lowest level on."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in PINNED}
    before = structlog.get_config()
    stream = io.StringIO()
    configure_logging("debug", "console", stream)
    yield stream
    structlog.configure(**before)
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, old in levels.items():
        logging.getLogger(name).setLevel(old)


PLACES: dict[str, dict[str, Any]] = {
    "authorization": {"authorization": "Bearer {}"},
    "basic": {"authorization": "Basic {}"},
    "protocol": {"sec_websocket_protocol": "mcp, persona.auth.{}"},
    "bare protocol": {"sec_websocket_protocol": "{}"},
    "query": {"target": "/mcp?token={}"},
    "path": {"target": "/{}"},
    "cookie": {"cookie": "token={}"},
    "origin": {"origin": "http://{}@evil.example"},
    "host": {"host": "{}.example"},
    "forwarded": {"x_forwarded_for": "{}"},
    "key": {"sec_websocket_key": "{}"},
    "header name": {"{}": "x"},
    "broken request": {"target": "/mcp {}"},
    "broken header": {"authorization": "Bearer {}\x00"},
    "long head": {"authorization": "Bearer {}", "x_long": "y" * 20_000},
}


@pytest.mark.parametrize("engine", ENGINES)
async def test_no_token_is_ever_shown(engine: str, tmp_path: Path, logged: io.StringIO) -> None:
    """Good and bad ones, in their place and in every other, in answers, logs and metrics."""
    answers = []
    async with besieged(tmp_path, engine, auth=TOKENS) as siege:
        for place, secret in ((place, secret) for place in PLACES.values() for secret in SECRETS):
            filled = {key.replace("{}", secret): value.replace("{}", secret) for key, value in place.items()}
            async with knocking(siege.port) as client:
                answers.append(await status(client, opening(**filled)))
                if answers[-1].startswith(b"HTTP/1.1 101"):
                    # Also where the client tells it itself.
                    for method, params in (
                        ("session.info", None),
                        ("system.ping", {secret: 1}),
                        ("session.info", {"token": secret}),
                        (secret, None),
                    ):
                        await client.ask(method, params)
                        answers.append(str(await client.answer()).encode())
                    await client.send(TEXT, secret.encode())
                    answers.append((await client.receive())[1])
                    await client.send(CLOSE, (1000).to_bytes(2, "big") + secret.encode())
                await client.fate(within_s=1)
        await siege.deserted()
        exposition = prometheus_client.generate_latest(siege.server.metrics.registry).decode()
        assert siege.closed == {"client": 4}
    assert {answer[9:12] for answer in answers if answer.startswith(b"HTTP")} == {
        *(b"101", b"400", b"401", b"403", b"404", b"431")
    }
    log = logged.getvalue()
    assert "connection_opened" in log
    for secret in SECRETS:
        told = [answer for answer in answers if secret.encode() in answer]
        # A parameter is named where it is wrong, and that is all that is told again.
        assert all(b"unknown" in answer for answer in told), told
        assert secret not in log
        assert token_hash(secret) not in log
        assert secret not in exposition
        assert token_hash(secret) not in exposition


@pytest.mark.parametrize("engine", ENGINES)
async def test_not_even_a_crash_shows_a_token(engine: str, logged: io.StringIO) -> None:
    """The traceback of a bug is logged; what the variables held is not."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    async with trio.open_nursery() as nursery:
        limits = {"close_timeout_s": 0.2}
        house = House(settings_with(auth=TOKENS, limits=limits, server={"engine": engine}), nursery)
        await nursery.start(house.listener.serve, [listener])
        async with knocking(listener.socket.getsockname()[1]) as client:
            head = opening(authorization=f"Bearer {USERS}")
            assert (await status(client, head)).startswith(b"HTTP/1.1 101")
            await client.send(TEXT, b'{"jsonrpc": "2.0", "method": "t.crash"}')
            assert await client.fate(within_s=6) == "1011"
        await until(lambda: house.value("connections_closed_total", cause="error"))
        await until(lambda: "ZeroDivisionError" in logged.getvalue())
        nursery.cancel_scope.cancel()
    assert "Traceback" in logged.getvalue()
    assert not any(secret in logged.getvalue() for secret in SECRETS)
