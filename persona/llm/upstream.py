"""One model server over HTTP: requests, lines of the answer, and what its failures mean.

Everything that goes wrong leaves here as `LLMUnavailable` with a sentence for people. None of
them holds the API key, a password of the base URL, or more of the server's own words than a
short printable excerpt.
"""

import base64
import email.utils
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from typing import Any, TypeVar

import httpx2
import msgspec
import trio

from persona.errors import LLMUnavailable, SettingsError
from persona.llm.framing import LineSplitter

T = TypeVar("T")

CONNECT_TIMEOUT_S = 5.0
"""Only the connecting has a deadline here; the time of an answer is the caller's."""
MAX_BODY_BYTES = 1024 * 1024
"""Of a body that is read whole: the list of models."""
MAX_ERROR_BODY_BYTES = 4096
ERROR_BODY_TIMEOUT_S = 1.0
"""The status already says that it failed; its explanation is worth waiting for only so long."""
MAX_EXCERPT_CHARS = 200
MAX_RETRY_AFTER_S = 3600.0
BUSY = frozenset({httpx2.codes.TOO_MANY_REQUESTS, httpx2.codes.SERVICE_UNAVAILABLE})
PASSING = BUSY | {httpx2.codes.BAD_GATEWAY, httpx2.codes.GATEWAY_TIMEOUT}
"""What says nothing against the request: the server, or a proxy's way to it, is not there just now."""
CLOSE_TIMEOUT_S = 1.0
"""A bound on what takes no time: nothing of the closing waits for the server."""
END_OF_BODY_TIMEOUT_S = 0.1
"""After the last line of an answer: how long its HTTP end may take for the connection to be kept."""


def new_client() -> httpx2.AsyncClient:
    """The HTTP client backends share. Close it with `async with`."""
    return httpx2.AsyncClient(
        # Proxies from the environment would catch requests to a model on loopback.
        trust_env=False,
        timeout=httpx2.Timeout(None, connect=CONNECT_TIMEOUT_S),
        # More than `llm.max_concurrency` may be set to, so that nobody queues here, unseen by the
        # scheduler. Idle connections go after 2 s, before the 5 s that uvicorn, llama.cpp and
        # others wait: one that they close just as the next request leaves would fail it.
        limits=httpx2.Limits(max_connections=1024, max_keepalive_connections=16, keepalive_expiry=2.0),
        # A few bytes a token gain nothing from compression, and it delays them.
        headers={"Accept-Encoding": "identity"},
    )


class Upstream:
    """A model server's address and credentials. Safe to use from many tasks at once.

    `label` names it in messages ("Ollama"); `base_url` may have a path, and a user and password;
    `api_key` is sent as a bearer token. Raises `SettingsError` for values no request can be made of.
    """

    def __init__(self, client: httpx2.AsyncClient, *, label: str, base_url: str, api_key: str = "") -> None:
        url = _parse_base_url(base_url)
        self._client = client
        self._headers = _credentials(url, api_key)
        self._secrets = tuple(secret for secret in (api_key.strip(), url.password) if secret)
        # httpx2 logs the URL of each request, so what is secret in it must be out of it.
        self._base = str(url.copy_with(username=None, password=None)).rstrip("/")
        self.name = f"{label} at {url.scheme}://{url.netloc.decode('ascii')}"

    def __repr__(self) -> str:
        return f"<Upstream {self.name}>"

    @asynccontextmanager
    async def request(
        self, method: str, path: str, *, body: Mapping[str, Any] | None = None, model: str = ""
    ) -> AsyncIterator["Body"]:
        """Send a request and give the body of its 200 answer.

        Raises `LLMUnavailable` for every other outcome; `model` is named when it is not found.
        Leaving the block closes the connection, or gives it back if the body was read to its
        end. Cancelling is safe.
        """
        response = await self._send(method, path, body)
        # Raw, since httpx2's decoders leave generators behind when they fail (see _hang_up).
        chunks = response.aiter_raw()
        try:
            answer = Body(self, chunks, media_type=response.headers.get("Content-Type", ""))
            if response.status_code != httpx2.codes.OK:
                raise await self._refusal(response, answer, model)
            if response.headers.get("Content-Encoding", "identity").lower() != "identity":
                raise self.failure("compressed its answer unasked")
            yield answer
        finally:
            with trio.move_on_after(CLOSE_TIMEOUT_S, shield=True):
                await _hang_up(response, chunks)

    async def get(self, path: str, shape: type[T]) -> T:
        """The JSON at `path`. Raises `LLMUnavailable`."""
        async with self.request("GET", path) as body:
            return self.decode(await body.read(MAX_BODY_BYTES), msgspec.json.Decoder(shape))

    def decode(self, text: bytes | str, decoder: msgspec.json.Decoder[T]) -> T:
        """Raises `LLMUnavailable` for what is not JSON of the decoder's type."""
        try:
            return decoder.decode(text)
        except (msgspec.DecodeError, UnicodeError, RecursionError) as exc:
            raise LLMUnavailable(f"{self.name} sent something that is no valid answer.") from exc

    def excerpt(self, text: str) -> str:
        """Foreign words made fit to show: no secrets, no control characters, not long."""
        for secret in self._secrets:
            text = text.replace(secret, "***")
        text = " ".join("".join(char if char.isprintable() else " " for char in text).split())
        return text if len(text) <= MAX_EXCERPT_CHARS else text[: MAX_EXCERPT_CHARS - 1] + "…"

    def failure(
        self,
        what: str,
        detail: object = None,
        *,
        is_transient: bool = False,
        retry_after_s: float | None = None,
    ) -> LLMUnavailable:
        """The error "<name> <what>: <detail>", `detail` being an error of the server's: text, or
        JSON in one of the usual shapes."""
        text = self.excerpt(_error_text(detail))
        end = "" if what.endswith("?") else "."
        make = LLMUnavailable.transient if is_transient else LLMUnavailable
        return make(
            f"{self.name} {what}: {text}" if text else f"{self.name} {what}{end}", retry_after_s=retry_after_s
        )

    async def _send(self, method: str, path: str, body: Mapping[str, Any] | None) -> httpx2.Response:
        if self._client.is_closed:
            raise self.failure("cannot be asked any more: this server is stopping")
        headers = dict(self._headers)
        content = None
        try:
            if body is not None:
                headers["Content-Type"] = "application/json"
                content = msgspec.json.encode(body)
            request = self._client.build_request(method, self._base + path, content=content, headers=headers)
            return await self._client.send(request, stream=True, follow_redirects=False)
        except httpx2.ConnectTimeout as exc:
            what = f"did not accept a connection within {CONNECT_TIMEOUT_S:g} s"
            raise self.failure(what, is_transient=True) from exc
        except httpx2.ConnectError as exc:
            raise self.failure("cannot be reached: is it running?", is_transient=True) from exc
        except (httpx2.HTTPError, UnicodeError) as exc:
            # UnicodeError: a host name that no DNS could hold, or text that is no Unicode.
            what = f"gave no answer ({type(exc).__name__})"
            raise self.failure(what, is_transient=isinstance(exc, httpx2.TransportError)) from exc

    async def _refusal(self, response: httpx2.Response, body: "Body", model: str) -> LLMUnavailable:
        status = response.status_code
        if status == httpx2.codes.NOT_FOUND and model:
            what = f"has no model {self.excerpt(model)!r}"
        elif status in (httpx2.codes.UNAUTHORIZED, httpx2.codes.FORBIDDEN):
            what = "refused the credentials"
        elif status in BUSY:
            what = "is busy"
        else:
            what = "refused the request" if status < httpx2.codes.INTERNAL_SERVER_ERROR else "failed"
        text = b""
        with suppress(LLMUnavailable), trio.move_on_after(ERROR_BODY_TIMEOUT_S):
            text = await body.read(MAX_ERROR_BODY_BYTES, cut=True)
        return self.failure(
            f"{what} (HTTP {status})",
            text.decode(errors="replace"),
            is_transient=status in PASSING,
            retry_after_s=_retry_after_s(response.headers.get("Retry-After")),
        )


class Body:
    """The body of an answer, read once: as lines, or whole. For one task.

    Everything raises `LLMUnavailable` when the connection breaks; cancelling is safe, and
    nothing can be read afterwards.
    """

    def __init__(self, upstream: Upstream, chunks: AsyncGenerator[bytes, None], *, media_type: str) -> None:
        self.media_type = media_type.partition(";")[0].strip().lower()
        self._upstream = upstream
        self._chunks = chunks
        self._splitter = LineSplitter()
        self._lines: deque[str] = deque()
        self._ended = False

    async def next_line(self) -> str | None:
        """The next line, or `None` at the end. Raises also for an overlong line and invalid UTF-8."""
        while not self._lines and not self._ended:
            chunk = await self._next_chunk()
            if chunk is not None:
                self._lines.extend(self._splitter.feed(chunk))
                continue
            self._ended = True
            last = self._splitter.finish()
            if last is not None:
                self._lines.append(last)
        return self._lines.popleft() if self._lines else None

    async def read(self, max_bytes: int, *, cut: bool = False) -> bytes:
        """All of it. What is longer than `max_bytes` is an error, or is left off with `cut`."""
        data = bytearray()
        while (chunk := await self._next_chunk()) is not None:
            data += chunk
            if len(data) > max_bytes:
                if not cut:
                    raise self._upstream.failure(f"sent more than {max_bytes} bytes")
                break
        return bytes(data[:max_bytes])

    async def skip_end(self) -> None:
        """Read the end that follows the last line, so that the connection can be used again; one
        that does not come at once is not waited for."""
        with suppress(LLMUnavailable), trio.move_on_after(END_OF_BODY_TIMEOUT_S):
            await self._next_chunk()

    async def _next_chunk(self) -> bytes | None:
        try:
            return await anext(self._chunks, None)
        except (httpx2.HTTPError, httpx2.StreamError) as exc:
            raise self._upstream.failure("broke off its answer", is_transient=True) from exc


async def _hang_up(response: httpx2.Response, chunks: AsyncGenerator[bytes, None]) -> None:
    """Close `response`, then run `chunks` to its end.

    Closing `chunks` alone leaves a generator deep inside httpx2's chain suspended, to be finished
    by the garbage collector at a time of its own. Reading on from a closed connection ends each
    of them, at once: what was received is little, and the next read fails.
    """
    await response.aclose()
    async with aclosing(chunks):
        with suppress(httpx2.HTTPError, httpx2.StreamError):
            async for _ in chunks:
                pass


def _parse_base_url(base_url: str) -> httpx2.URL:
    try:
        url = httpx2.URL(base_url.strip())
    except httpx2.InvalidURL:
        url = httpx2.URL()
    if url.scheme not in ("http", "https") or not url.host or url.query or url.fragment:
        # An address with an @ may hold a password.
        shown = "the one given" if "@" in base_url else repr(base_url)
        raise SettingsError(f"llm.base_url must be an address like http://127.0.0.1:11434, not {shown}")
    return url


def _credentials(url: httpx2.URL, api_key: str) -> dict[str, str]:
    api_key = api_key.strip()
    if api_key:
        # Checked here, since the HTTP library would show the whole value in its own error.
        if not (api_key.isascii() and api_key.isprintable()):
            raise SettingsError("llm.api_key has characters that cannot be sent in an HTTP header")
        return {"Authorization": f"Bearer {api_key}"}
    if url.username or url.password:
        pair = f"{url.username}:{url.password}".encode()
        return {"Authorization": "Basic " + base64.b64encode(pair).decode("ascii")}
    return {}


def _error_text(error: object) -> str:
    """What an error of a server's says: plain text, JSON text, or JSON already decoded."""
    if isinstance(error, str):
        try:
            decoded = msgspec.json.decode(error)
        except (msgspec.DecodeError, UnicodeError, RecursionError):
            # A page of HTML is for browsers; nothing of it helps here.
            return "" if error.lstrip().startswith("<") else error
        if not isinstance(decoded, dict):
            return error
        error = decoded
    for _ in range(3):  # {"error": {"message": ...}} and its kin
        if not isinstance(error, dict):
            break
        error = next((error[key] for key in ("error", "message", "detail") if error.get(key)), None)
    return error if isinstance(error, str) else ""


def _retry_after_s(value: str | None) -> float | None:
    """A Retry-After header, in seconds or as a date, as seconds from now; `None` if unusable."""
    if value is None:
        return None
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (ValueError, OverflowError, OSError):
            return None
    return min(max(seconds, 0.0), MAX_RETRY_AFTER_S) if math.isfinite(seconds) else None
