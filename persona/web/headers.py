"""What every answer says to browsers, and which requests get none of ours.

The pages show what a model and other people wrote, so nothing may run that is not a file of this server:
no inline script or style, no other origin, no frame around them.
"""

from collections.abc import Callable
from http import HTTPStatus

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import PlainTextResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from persona.hosts import OwnNames, split_url
from persona.metrics import Metrics

FIXED = {
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
    # For browsers that do not know `frame-ancestors`.
    "X-Frame-Options": "DENY",
}


def content_security_policy(websocket: str = "") -> str:
    """The policy of a page that talks to the WebSocket URL `websocket`, if it talks to any.

    The path is left out: a policy names it exactly, and browsers differ in how they compare it.
    """
    scheme, rest = websocket.partition("://")[::2]
    origin = f" {scheme}://{rest.partition('/')[0]}" if rest else ""
    return (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        f"connect-src 'self'{origin}; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
        "require-trusted-types-for 'script'"
    )


def host_name(scope: Scope) -> str | None:
    """The name by which the client addressed the server, without a port; none where it said none, or two."""
    hosts = Headers(scope=scope).getlist("host")
    name = split_url(f"//{hosts[0]}")[1] if len(hosts) == 1 else ""
    return name or None


class Guard:
    """Lets in what names this server, and puts the headers on whatever is answered."""

    def __init__(
        self, app: ASGIApp, own_names: OwnNames, websocket_url: Callable[[str], str], metrics: Metrics
    ) -> None:
        self._app = app
        self._own_names = own_names
        self._websocket_url = websocket_url
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        if scope["type"] == "websocket":
            # That has a port of its own. To close before accepting is to answer 403.
            self._metrics.http_refused.labels("websocket").inc()
            await send({"type": "websocket.close"})
            return
        name = host_name(scope)
        hosts = Headers(scope=scope).getlist("host")
        app, policy = self._app, content_security_policy()
        if name is None or hosts[0] not in self._own_names:
            self._metrics.http_refused.labels("host").inc()
            app = PlainTextResponse("This Host is not served here.\n", HTTPStatus.MISDIRECTED_REQUEST)
        else:
            policy = content_security_policy(self._websocket_url(name))

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers.update(FIXED)
                headers["Content-Security-Policy"] = policy
                headers.setdefault("Cache-Control", "no-store")
            await send(message)

        await app(scope, receive, send_guarded)
