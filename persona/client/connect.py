"""Opening and closing: from a URL or a stream to a `Client`, and back to nothing.

    the caller's task: the body of `async with`
    `- socket task                nothing that goes wrong in here leaves it as an exception
       |- trio-websocket's reader
       `- Link.read, Link.write, Link.keep_alive

The stream belongs to the socket task: it is closed when that ends, before the block is left.
"""

import re
import socket
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import attrs
import trio
from trio_websocket import ConnectionRejected, WebSocketConnection, wrap_client_stream

from persona.client.calls import Client
from persona.client.errors import ConnectFailed, one_line
from persona.client.link import Link

CONNECT_TIMEOUT_S = 10.0
"""Resolving, connecting and the handshake, together: long for a network, short for a person."""
CLOSE_TIMEOUT_S = 2.0
"""How long leaving waits to send what is queued and to say goodbye; then the stream is cut."""
MAX_ANSWER_BYTES = 16 * 1024 * 1024
"""The longest history there can be is 200 turns of 32,000 characters; an answer larger than this
ends the connection. trio-websocket counts characters."""
RECEIVE_BUFFER_BYTES = 65536
"""trio-websocket's own 4 KiB means many more system calls for a history."""
MESSAGE_QUEUE_SIZE = 64
"""Messages between trio-websocket's reader and ours. While it is full no pong is read, so it is
drained at once, whatever the user does."""
SUBPROTOCOL = "mcp"


@attrs.frozen(kw_only=True)
class _Handshake:
    host: str
    """Value of the `Host` header."""
    resource: str
    token: str | None = attrs.field(repr=False)
    target: str
    """What error messages call it."""
    deadline: float


@attrs.define
class _Reader:
    """trio-websocket's reader task, seen from outside."""

    ended: trio.Event = attrs.field(factory=trio.Event)
    error: Exception | None = None


@asynccontextmanager
async def open_client(url: str, *, token: str | None = None) -> AsyncIterator[Client]:
    """Connect to `ws://` or `wss://`; `token` is sent as `Authorization: Bearer`.

    Raises `ConnectFailed` when no connection comes about within 10 s. Leaving the block closes
    the connection within 2 s; cancelling the block cuts it at once. What the block raises comes
    out as it is, never in a group.
    """
    _check_token(token)
    deadline = trio.current_time() + CONNECT_TIMEOUT_S
    handshake, stream = await _connect(url, token, deadline)
    async with _open_over(stream, handshake) as client:
        yield client


@asynccontextmanager
async def wrap_client(
    stream: trio.abc.Stream, *, host: str = "localhost", resource: str = "/mcp", token: str | None = None
) -> AsyncIterator[Client]:
    """As `open_client`, over a stream that is connected already; the stream gets closed."""
    _check_token(token)
    deadline = trio.current_time() + CONNECT_TIMEOUT_S
    handshake = _Handshake(host=host, resource=resource, token=token, target=host, deadline=deadline)
    async with _open_over(stream, handshake) as client:
        yield client


def _check_token(token: str | None) -> None:
    # The library below would refuse it too, with the token in its error.
    if token is not None and not re.fullmatch(r"[\x21-\x7e]+", token):
        what = "holds characters that a header cannot carry" if token else "is empty"
        raise ConnectFailed(f"cannot connect: the token {what}")


async def _connect(url: str, token: str | None, deadline: float) -> tuple[_Handshake, trio.abc.Stream]:
    try:
        parts = urlsplit(url)
        is_tls, host = parts.scheme == "wss", parts.hostname
        port = parts.port or (443 if is_tls else 80)
    except ValueError as exc:
        raise ConnectFailed(f"cannot connect to {one_line(url)}: {exc}") from None
    if parts.scheme not in ("ws", "wss") or not host:
        raise ConnectFailed(f"cannot connect to {one_line(url)}: not a ws:// or wss:// URL")
    if not re.fullmatch(r"[\x21-\x7e]*", parts.path + parts.query):
        raise ConnectFailed(f"cannot connect to {one_line(url)}: the path must be percent-encoded")
    name = f"[{host}]" if ":" in host else host
    handshake = _Handshake(
        host=name if parts.port is None else f"{name}:{port}",
        resource=(parts.path or "/") + (f"?{parts.query}" if parts.query else ""),
        token=token,
        target=f"{parts.scheme}://{name}:{port}",
        deadline=deadline,
    )
    with trio.CancelScope(deadline=deadline):
        return handshake, await _open_stream(host, port, is_tls, handshake.target)
    raise ConnectFailed(f"cannot connect to {handshake.target}: no answer within {CONNECT_TIMEOUT_S:g} s")


async def _open_stream(host: str, port: int, is_tls: bool, target: str) -> trio.abc.Stream:
    try:
        if not is_tls:
            return await trio.open_tcp_stream(host, port)
        stream = await trio.open_ssl_over_tcp_stream(host, port, https_compatible=True)
        try:
            await stream.do_handshake()
        except BaseException:
            with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                await trio.aclose_forcefully(stream)
            raise
    except (OSError, trio.BrokenResourceError, UnicodeError) as exc:
        raise ConnectFailed(f"cannot connect to {target}: {_reason(exc)}") from exc
    return stream


def _reason(error: BaseException) -> str:
    """In words, what made connecting fail; trio reports the attempts at each address as the cause."""
    while isinstance(error.__cause__, BaseException):
        error = error.__cause__
        while isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    if isinstance(error, socket.gaierror | ssl.SSLError | OSError) and error.strerror:
        return one_line(error.strerror)
    return one_line(str(error)) or type(error).__name__


@asynccontextmanager
async def _open_over(stream: trio.abc.Stream, handshake: _Handshake) -> AsyncIterator[Client]:
    failure: BaseException | None = None
    try:
        async with trio.open_nursery() as nursery:
            try:
                link: Link = await nursery.start(_run_socket, stream, handshake)
                try:
                    yield Client(link)
                except BaseException as exc:
                    failure = exc
                    raise
                finally:
                    # A cancellation reaches the socket task, too, and cuts the connection: then
                    # there is nothing to wait for here.
                    with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                        await link.finish()
            except BaseException as exc:
                failure = failure or exc
                raise
            finally:
                nursery.cancel_scope.cancel()
    except BaseExceptionGroup as group:
        # The nursery's wrapping is our affair, not the caller's. But a group stays that holds a bug of
        # ours: one without a failure of the body, or with more than the body's cancellation.
        _, others = group.split(trio.Cancelled)
        if failure is None or (isinstance(failure, trio.Cancelled) and others is not None):
            raise
    if failure is not None:
        raise failure


async def _run_socket(
    stream: trio.abc.Stream, handshake: _Handshake, *, task_status: trio.TaskStatus[Link]
) -> None:
    """Own the stream, from the handshake until it is closed."""
    link: Link | None = None
    reader = _Reader()
    try:
        async with trio.open_nursery() as nursery:
            websocket = await _shake_hands(nursery, stream, handshake, reader)
            if websocket is not None:
                link = Link(websocket)
                task_status.started(link)
                await _serve(link, reader)
            nursery.cancel_scope.cancel()
    finally:
        if link is not None:
            link.end_as_closed()
        with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
            await trio.aclose_forcefully(stream)
    if link is None:
        # Only here: raised in the nursery it would come out in a group.
        raise _handshake_failure(handshake, reader)


async def _shake_hands(
    nursery: trio.Nursery, stream: trio.abc.Stream, handshake: _Handshake, reader: _Reader
) -> WebSocketConnection | None:
    """The open WebSocket, or `None` where the server, or time, did not allow it."""
    headers = [] if handshake.token is None else [(b"Authorization", f"Bearer {handshake.token}".encode())]
    with trio.CancelScope(deadline=handshake.deadline) as scope:
        reader_nursery, adopted = await nursery.start(_host_reader, reader, scope)
        adopted.set()
        return await wrap_client_stream(
            reader_nursery,
            stream,  # type: ignore[arg-type]  # annotated too narrowly: any stream will do
            handshake.host,
            handshake.resource,
            subprotocols=[SUBPROTOCOL],
            extra_headers=headers,
            message_queue_size=MESSAGE_QUEUE_SIZE,
            max_message_size=MAX_ANSWER_BYTES,
            receive_buffer_size=RECEIVE_BUFFER_BYTES,
        )
    return None


async def _host_reader(
    reader: _Reader,
    handshake_scope: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[tuple[trio.Nursery, trio.Event]],
) -> None:
    """Hold trio-websocket's reader in a nursery where nothing else stays, so that its end shows.

    `wrap_client_stream` waits for ever when the server hangs up during the handshake; and the
    reader raises, besides a refused handshake, `LocalProtocolError` for a ping that arrives
    while we close.
    """
    adopted = trio.Event()
    try:
        async with trio.open_nursery() as nursery:
            task_status.started((nursery, adopted))
            # Set just before the reader is spawned, with no checkpoint in between.
            await adopted.wait()
    except* Exception as group:  # noqa: BLE001 - a library's boundary: whatever it dies of ends this client
        reader.error = group.exceptions[0]
    reader.ended.set()
    handshake_scope.cancel()


async def _serve(link: Link, reader: _Reader) -> None:
    """Run an open link until it ends, from whichever side."""

    async def keep_alive() -> None:
        await link.keep_alive()
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.write)
        nursery.start_soon(keep_alive)
        await link.read()
        if link.closing:
            # Reading stops when our goodbye is sent; stay for the server's.
            await reader.ended.wait()
        nursery.cancel_scope.cancel()


def _handshake_failure(handshake: _Handshake, reader: _Reader) -> ConnectFailed:
    prefix = f"cannot connect to {handshake.target}:"
    error = reader.error
    if isinstance(error, ConnectionRejected):
        headers = {name.lower(): value for name, value in error.headers}
        body = one_line((error.body or b"").decode(errors="replace"), max_chars=200)
        return ConnectFailed(
            f"{prefix} HTTP {error.status_code}" + (f": {body}" if body else ""),
            status=error.status_code,
            retry_after_s=_seconds(headers.get(b"retry-after", b"")),
        )
    if error is not None:
        return ConnectFailed(f"{prefix} {one_line(str(error)) or type(error).__name__}")
    if reader.ended.is_set():
        return ConnectFailed(f"{prefix} the server hung up during the handshake")
    return ConnectFailed(f"{prefix} no answer within {CONNECT_TIMEOUT_S:g} s")


def _seconds(retry_after: bytes) -> float | None:
    """The header's value; its other form, a date, is not read."""
    return float(retry_after) if retry_after.isdigit() else None
