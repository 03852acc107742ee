"""Who may connect. Pure policy: a request's head and a peer's address in, a verdict out."""

import base64
import hashlib
import hmac
import ipaddress
from collections.abc import Sequence
from http import HTTPStatus

import attrs

from persona.config import AuthSettings, AuthToken, ServerSettings
from persona.errors import StartupError
from persona.hosts import IPAddress, OwnNames, is_loopback_name, parse_address, split_url
from persona.service.sessions import Identity
from persona.transport.handshake import Refused, RequestHead

PATH = "/mcp"
SUBPROTOCOL = "mcp"
TOKEN_SUBPROTOCOL_PREFIX = "persona.auth."  # noqa: S105 - a prefix, not a secret
HELP = f"This is a WebSocket server speaking JSON-RPC 2.0. Connect a WebSocket client to {PATH}."


@attrs.frozen(kw_only=True)
class Admitted:
    """Let in, as whom and with which sub-protocol."""

    identity: Identity
    subprotocol: str | None
    address: str
    """What the cap per address counts: the client's address, an IPv6 one by its /64; empty for
    loopback, which is exempt."""


class Admission:
    """The rules of one server."""

    def __init__(self, server: ServerSettings, auth: AuthSettings) -> None:
        self._own_names = OwnNames(server.allowed_hosts, server.host)
        self._origins = set(server.allowed_origins)
        self._proxies = [ipaddress.ip_network(proxy, strict=False) for proxy in server.trusted_proxies]
        self._tokens: Sequence[AuthToken] = ()
        self._asks_for_token = False
        self.set_tokens(auth.tokens)

    @property
    def asks_for_token(self) -> bool:
        """Whether nobody gets in without a token."""
        return self._asks_for_token

    def set_tokens(self, tokens: Sequence[AuthToken]) -> None:
        """Let in only who holds one of `tokens`, from now on. A server that once had some goes on asking
        for one when there are none left: a file that is empty by mistake must not open the door."""
        self._tokens = tokens
        self._asks_for_token = self._asks_for_token or bool(tokens)

    def still_admits(self, identity: Identity) -> bool:
        """Whether a client that was let in as `identity` would be let in as the same today."""
        if not self._asks_for_token:
            return True
        came_with = (identity.user, identity.role, identity.token_hash)
        return any((token.name, token.role, token.hash) == came_with for token in self._tokens)

    def admit(self, head: RequestHead, peer: str) -> Admitted:
        """Judge an opening request from address `peer` (empty for an in-process stream).

        Raises `Refused`: 403 for a wrong Host or Origin, 404 for a wrong path, 426 for plain
        HTTP, 401 for a missing or wrong token.
        """
        try:
            return self._judge(head, peer)
        except Refused as refused:
            refused.has_body = head.method != "HEAD"
            raise

    def _judge(self, head: RequestHead, peer: str) -> Admitted:
        self._check_host(head.header("host"))
        if head.path != PATH:
            raise Refused(HTTPStatus.NOT_FOUND, "path", HELP)
        _check_upgrade(head)
        self._check_origin([value for name, value in head.headers if name == "origin"])
        offered = head.listed("sec-websocket-protocol")
        address = self._client_address(head, peer)
        return Admitted(
            identity=self._identify(head, offered, address),
            subprotocol=SUBPROTOCOL if SUBPROTOCOL in offered else None,
            address=_counted(address),
        )

    def counted_peer(self, peer: str) -> str:
        """What the cap per address counts of who has said nothing yet: as `Admitted.address`, and empty for
        a proxy of ours, through which anybody may come."""
        address = parse_address(peer)
        return "" if address is None or self._is_proxy(address) else _counted(address)

    def _is_proxy(self, address: IPAddress) -> bool:
        return any(address in proxy for proxy in self._proxies)

    def _check_host(self, host: str | None) -> None:
        if host not in self._own_names:
            raise Refused(HTTPStatus.FORBIDDEN, "host", "This Host is not served here.")

    def _check_origin(self, origins: Sequence[str]) -> None:
        # A browser sends one; where there are more, nobody knows whose each of them is.
        if len(origins) > 1 or not all(map(self._knows_origin, origins)):
            raise Refused(HTTPStatus.FORBIDDEN, "origin", "This Origin may not connect here.")

    def _knows_origin(self, origin: str) -> bool:
        if self._origins:
            return origin in self._origins
        scheme, name = split_url(origin)
        return scheme in {"http", "https"} and is_loopback_name(name)

    def _client_address(self, head: RequestHead, peer: str) -> IPAddress | None:
        """The client's address: the nearest in `X-Forwarded-For` that is no proxy of ours."""
        address = parse_address(peer)
        hops = head.listed("x-forwarded-for")
        while address is not None and hops and self._is_proxy(address):
            address = parse_address(hops.pop())
        return address

    def _identify(self, head: RequestHead, offered: Sequence[str], address: IPAddress | None) -> Identity:
        if not self._asks_for_token:
            # A proxy on this machine that was not configured: whoever is behind it may be anywhere.
            forwarded = any(head.header(name) is not None for name in ("x-forwarded-for", "forwarded"))
            local = address is None or (address.is_loopback and not forwarded)
            return Identity(role="admin" if local else "user")
        secret = _presented_token(head, offered)
        found = _match(self._tokens, secret) if secret is not None else None
        if found is None:
            challenge = (("WWW-Authenticate", 'Bearer realm="persona"'),)
            raise Refused(HTTPStatus.UNAUTHORIZED, "token", "A valid bearer token is needed.", challenge)
        return Identity(user=found.name, role=found.role, authenticated=True, token_hash=found.hash)


def check_binding(server: ServerSettings, auth: AuthSettings) -> None:
    """Refuse to serve the network without tokens.

    Raises `StartupError` when the host is not loopback, no token is set and `auth.insecure` is
    not either.
    """
    if auth.tokens or auth.insecure or is_loopback_name(server.host):
        return
    raise StartupError(
        f"server.host {server.host} is reachable from other machines and auth.tokens is empty: "
        "set a token, bind to 127.0.0.1, or pass --insecure to let anybody in"
    )


def token_hash(secret: str) -> str:
    """The form in which a token is kept in the settings."""
    return "sha256:" + hashlib.sha256(secret.encode()).hexdigest()


def _check_upgrade(head: RequestHead) -> None:
    if not head.is_websocket or head.header("sec-websocket-version") != "13":
        upgrade = (("Upgrade", "websocket"), ("Sec-WebSocket-Version", "13"))
        raise Refused(HTTPStatus.UPGRADE_REQUIRED, "not_websocket", HELP, upgrade)
    try:
        nonce = base64.b64decode(head.header("sec-websocket-key") or "", validate=True)
    except ValueError:
        nonce = b""
    if len(nonce) != 16:
        raise Refused(HTTPStatus.BAD_REQUEST, "bad_key", "Sec-WebSocket-Key is missing or malformed.")


def _presented_token(head: RequestHead, offered: Sequence[str]) -> str | None:
    scheme, _, credentials = (head.header("authorization") or "").partition(" ")
    if scheme.casefold() == "bearer":
        return credentials.strip()
    # Browsers cannot set headers on a WebSocket; a sub-protocol is the one thing they can send.
    for name in offered:
        if name.startswith(TOKEN_SUBPROTOCOL_PREFIX):
            return name.removeprefix(TOKEN_SUBPROTOCOL_PREFIX)
    return None


def _match(tokens: Sequence[AuthToken], secret: str) -> AuthToken | None:
    presented = token_hash(secret)
    found = None
    for token in tokens:  # all of them, so that the time taken does not tell which one was near
        if hmac.compare_digest(token.hash, presented):
            found = token
    return found


def _counted(address: IPAddress | None) -> str:
    if address is None or address.is_loopback:
        return ""
    if isinstance(address, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((address, 64), strict=False))
    return str(address)
