"""What is served over HTTP: two pages and their files, probes for whoever runs the server, and metrics.

It knows no services: `app` hands it functions to ask. Nothing here takes more than a moment or changes
anything, so there is nothing to log in for, and only GET and HEAD.
"""

import hashlib
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from importlib import resources

import attrs
import orjson
import structlog
import trio
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import choose_encoder
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp

from persona import __version__
from persona.config import ServerSettings
from persona.errors import PersonaError
from persona.hosts import OwnNames, in_url
from persona.metrics import Metrics
from persona.web.headers import Guard, host_name

log = structlog.get_logger()

DATABASE_TIMEOUT_S = 2.0
"""How long `/readyz` waits for the database. Probes commonly give up after a few seconds, and it should be
ours to say why; a commit takes milliseconds."""
MEDIA_TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
ANY_ADDRESS = ("0.0.0.0", "::")  # noqa: S104 - compared with, not bound to


@attrs.frozen(kw_only=True)
class Site:
    """What the HTTP side is told by the rest of the server."""

    server: ServerSettings
    """With the port that is really bound."""
    websocket_path: str
    registry: CollectorRegistry
    refusal: Callable[[], str | None]
    """Why a client that came now would be refused; none when it would not be."""
    asks_for_token: Callable[[], bool]
    ask_database: Callable[[], Awaitable[None]]
    """Returns once the database has answered. Raises `PersonaError` when it cannot."""

    def websocket_url(self, page_host: str) -> str:
        """Where a page that was asked for by the name `page_host` finds the WebSocket."""
        server = self.server
        if server.public_url:
            return server.public_url
        same = server.host in (*ANY_ADDRESS, server.http_host)
        return f"ws://{in_url(page_host if same else server.host)}:{server.port}{self.websocket_path}"


@attrs.frozen
class StaticFile:
    """A file of the pages, read at the start: nothing a client says ever becomes a path."""

    content: bytes
    media_type: str
    etag: str

    def response(self, request: Request) -> Response:
        """The file, or 304 for a browser that has it. It asks each time: after an update of the server old
        scripts would speak to it."""
        headers = {"ETag": self.etag, "Cache-Control": "no-cache"}
        if self.etag in request.headers.get("if-none-match", ""):
            return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
        return Response(self.content, headers=headers, media_type=self.media_type)


def read_static() -> dict[str, StaticFile]:
    """The files of the pages, by name."""
    files = {}
    for entry in (resources.files("persona.web") / "static").iterdir():
        media_type = MEDIA_TYPES.get(entry.name.rpartition(".")[2])
        if media_type is not None:
            content = entry.read_bytes()
            files[entry.name] = StaticFile(
                content, media_type, f'"{hashlib.sha256(content).hexdigest()[:16]}"'
            )
    return files


class Pages:
    """The routes."""

    def __init__(self, site: Site, metrics: Metrics) -> None:
        self._site = site
        self._metrics = metrics
        self._files = read_static()

    def routes(self) -> list[Route]:
        """All there is."""
        return [
            Route(path, self._counted(path, handler), methods=["GET"])
            for path, handler in (
                ("/", self.chat),
                ("/dashboard", self.dashboard),
                ("/static/{name}", self.static),
                ("/config.json", self.config),
                ("/livez", self.livez),
                ("/readyz", self.readyz),
                ("/metrics", self.metrics),
            )
        ]

    def _counted(
        self, path: str, handler: Callable[[Request], Awaitable[Response]]
    ) -> Callable[[Request], Awaitable[Response]]:
        async def counted(request: Request) -> Response:
            return self._count(path, await handler(request))

        return counted

    def _count(self, path: str, response: Response) -> Response:
        # By route, not by what was asked for: a label must not be a stranger's to choose.
        self._metrics.http_requests.labels(path, str(response.status_code)).inc()
        return response

    async def refused(self, request: Request, exc: Exception) -> Response:
        """No such page, or a method that no page takes."""
        assert isinstance(exc, HTTPException)
        return self._count(
            "other", PlainTextResponse(f"{exc.detail}\n", exc.status_code, headers=exc.headers)
        )

    async def crashed(self, request: Request, exc: Exception) -> Response:
        """A bug. This is the boundary of a request: hypercorn would swallow what comes out of it."""
        log.error("http_request_crashed", exc_info=exc)
        text = "Internal error\n"
        return self._count("other", PlainTextResponse(text, HTTPStatus.INTERNAL_SERVER_ERROR))

    async def chat(self, request: Request) -> Response:
        """The page to chat on."""
        return self._files["chat.html"].response(request)

    async def dashboard(self, request: Request) -> Response:
        """The page for the operator."""
        return self._files["dashboard.html"].response(request)

    async def static(self, request: Request) -> Response:
        """What the pages are made of."""
        file = self._files.get(request.path_params["name"])
        if file is None:
            return PlainTextResponse("There is no such file.\n", HTTPStatus.NOT_FOUND)
        return file.response(request)

    async def config(self, request: Request) -> Response:
        """What the pages must know before they can connect."""
        return _json(
            {
                "url": self._site.websocket_url(host_name(request.scope) or ""),
                "token_required": self._site.asks_for_token(),
                "version": __version__,
            }
        )

    async def livez(self, request: Request) -> Response:
        """The process answers; if it does not, only a restart helps."""
        return _json({"alive": True})

    async def readyz(self, request: Request) -> Response:
        """Whether a new client would be let in and served."""
        reason = self._site.refusal() or await self._database_fault()
        if reason is None:
            return _json({"ready": True})
        return _json({"ready": False, "reason": reason}, HTTPStatus.SERVICE_UNAVAILABLE)

    async def _database_fault(self) -> str | None:
        try:
            with trio.fail_after(DATABASE_TIMEOUT_S):
                await self._site.ask_database()
        except (PersonaError, trio.TooSlowError):
            return "database"
        return None

    async def metrics(self, request: Request) -> Response:
        """Everything that is counted, as Prometheus wants it."""
        encode, content_type = choose_encoder(request.headers.get("accept", ""))
        return Response(encode(self._site.registry), headers={"Content-Type": content_type})


def make_app(site: Site, metrics: Metrics) -> ASGIApp:
    """The whole HTTP side as an ASGI app."""
    pages = Pages(site, metrics)
    app = Starlette(
        routes=pages.routes(), exception_handlers={HTTPException: pages.refused, Exception: pages.crashed}
    )
    # Path and port are one each; `/livez/` is a mistake, and to redirect it would hide that.
    app.router.redirect_slashes = False
    own_names = OwnNames(site.server.allowed_hosts, site.server.http_host)
    return Guard(app, own_names, site.websocket_url, metrics)


def _json(value: dict[str, object], status: HTTPStatus = HTTPStatus.OK) -> Response:
    return Response(orjson.dumps(value) + b"\n", status, media_type="application/json")
