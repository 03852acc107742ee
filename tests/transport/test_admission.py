"""Who may connect."""

import base64
from http import HTTPStatus

import attrs
import pytest

from persona.config import AuthSettings, AuthToken, ServerSettings
from persona.errors import StartupError
from persona.transport.admission import Admission, check_binding, token_hash
from persona.transport.handshake import Refused, RequestHead

KEY = base64.b64encode(bytes(16)).decode()
ANN, ROOT = AuthToken("ann", "user", token_hash("ann's")), AuthToken("root", "admin", token_hash("root's"))
LOCAL = "127.0.0.1"


def head(*, target: str = "/mcp", method: str = "GET", **headers: str | None) -> RequestHead:
    merged: dict[str, str | None] = {
        "host": "localhost:8000",
        "connection": "keep-alive, Upgrade",
        "upgrade": "WebSocket",
        "sec-websocket-version": "13",
        "sec-websocket-key": KEY,
    }
    merged |= {name.replace("_", "-"): value for name, value in headers.items()}
    pairs = tuple((name, value) for name, value in merged.items() if value is not None)
    return RequestHead(method, target, pairs)


def admission(*tokens: AuthToken, **server: object) -> Admission:
    return Admission(attrs.evolve(ServerSettings(), **server), AuthSettings(tokens=tokens))


def refusal(rules: Admission, request: RequestHead, peer: str = LOCAL) -> HTTPStatus:
    with pytest.raises(Refused) as caught:
        rules.admit(request, peer)
    return caught.value.status


def test_a_plain_local_client_is_admin_while_there_are_no_tokens() -> None:
    admitted = admission().admit(head(), LOCAL)
    assert (admitted.identity.user, admitted.identity.role) == ("anonymous", "admin")
    assert not admitted.identity.authenticated
    assert admitted.subprotocol is None
    assert admission().admit(head(host="192.0.2.1"), "192.0.2.9").identity.role == "user"


@pytest.mark.parametrize(("offered", "chosen"), [("mcp", "mcp"), ("x, mcp", "mcp"), ("x", None)])
def test_mcp_is_chosen_when_it_is_offered(offered: str, chosen: str | None) -> None:
    assert admission().admit(head(sec_websocket_protocol=offered), LOCAL).subprotocol == chosen


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (head(target="/"), HTTPStatus.NOT_FOUND),
        (head(upgrade=None), HTTPStatus.UPGRADE_REQUIRED),
        (head(connection="close"), HTTPStatus.UPGRADE_REQUIRED),
        (head(method="POST"), HTTPStatus.UPGRADE_REQUIRED),
        (head(sec_websocket_version="8"), HTTPStatus.UPGRADE_REQUIRED),
        (head(sec_websocket_key=None), HTTPStatus.BAD_REQUEST),
        (head(sec_websocket_key="c2hvcnQ="), HTTPStatus.BAD_REQUEST),
        (head(sec_websocket_key="?"), HTTPStatus.BAD_REQUEST),
    ],
)
def test_what_is_no_handshake_is_refused(request_head: RequestHead, status: HTTPStatus) -> None:
    assert refusal(admission(), request_head) == status


@pytest.mark.parametrize("changes", [{"host": "evil.example"}, {"target": "/"}, {}])
def test_an_answer_to_head_has_no_body(changes: dict[str, str]) -> None:
    answers = []
    for method in ("HEAD", "POST"):
        with pytest.raises(Refused) as caught:
            admission().admit(head(method=method, **changes), LOCAL)
        answers.append(caught.value.response())
    (without, whole) = answers
    assert without.endswith(b"\r\n\r\n")
    # Otherwise the same, its length too.
    assert whole.startswith(without)
    assert whole != without


def test_an_upgrade_needs_http_1_1() -> None:
    assert refusal(admission(), attrs.evolve(head(), http_version="1.0")) == HTTPStatus.UPGRADE_REQUIRED


def test_of_two_origins_none_is_believed() -> None:
    request = head(origin="http://localhost:3000")
    admission().admit(request, LOCAL)
    for second in ("https://evil.example", "http://localhost:3000"):
        twice = attrs.evolve(request, headers=(*request.headers, ("origin", second)))
        assert refusal(admission(), twice) == HTTPStatus.FORBIDDEN


def test_the_query_is_not_part_of_the_path() -> None:
    admission().admit(head(target="/mcp?x=1"), LOCAL)


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:8000", "[::1]:8000", "192.0.2.7"])
def test_names_that_cannot_be_rebound_pass(host: str) -> None:
    admission().admit(head(host=host), LOCAL)


@pytest.mark.parametrize("host", [None, "", "evil.example", "localhost.evil.example", "[", "a\x00b"])
def test_other_hosts_are_refused(host: str | None) -> None:
    assert refusal(admission(), head(host=host)) == HTTPStatus.FORBIDDEN


def test_a_host_list_replaces_the_default() -> None:
    rules = admission(allowed_hosts=("chat.example", "[::1]"))
    rules.admit(head(host="Chat.Example:443"), LOCAL)
    rules.admit(head(host="[::1]:8000"), LOCAL)
    assert refusal(rules, head(host="localhost")) == HTTPStatus.FORBIDDEN


@pytest.mark.parametrize(
    "origin", [None, "http://127.0.0.1:8080", "http://localhost:3000", "https://127.0.0.1", "http://[::1]:1"]
)
def test_local_origins_pass(origin: str | None) -> None:
    admission().admit(head(origin=origin), LOCAL)


@pytest.mark.parametrize(
    "origin", ["https://evil.example", "null", "http://localhost.evil.example", "file://localhost", ""]
)
def test_other_origins_are_refused(origin: str) -> None:
    assert refusal(admission(), head(origin=origin)) == HTTPStatus.FORBIDDEN


def test_it_says_whether_a_token_is_asked_for() -> None:
    rules = admission()
    assert not rules.asks_for_token
    rules.set_tokens([ANN])
    rules.set_tokens([])
    assert rules.asks_for_token


def test_an_origin_list_is_exact() -> None:
    rules = admission(allowed_origins=("https://chat.example",))
    rules.admit(head(origin="https://chat.example"), LOCAL)
    for origin in ("https://chat.example:444", "http://chat.example", "http://localhost"):
        assert refusal(rules, head(origin=origin)) == HTTPStatus.FORBIDDEN


@pytest.mark.parametrize(
    ("headers", "user", "role"),
    [
        ({"authorization": "Bearer ann's"}, "ann", "user"),
        ({"authorization": "bearer  root's"}, "root", "admin"),
        ({"sec_websocket_protocol": "mcp, persona.auth.root's"}, "root", "admin"),
    ],
)
def test_a_token_names_its_owner(headers: dict[str, str], user: str, role: str) -> None:
    identity = admission(ANN, ROOT).admit(head(**headers), LOCAL).identity
    assert (identity.user, identity.role, identity.authenticated) == (user, role, True)


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": "Basic ann's"},
        {"sec_websocket_protocol": "persona.auth."},
    ],
)
def test_no_valid_token_is_401_even_from_loopback(headers: dict[str, str]) -> None:
    assert refusal(admission(ANN), head(**headers)) == HTTPStatus.UNAUTHORIZED


def test_refusals_never_show_the_token() -> None:
    with pytest.raises(Refused) as caught:
        admission(ANN).admit(head(authorization="Bearer s3cret"), LOCAL)
    assert b"s3cret" not in caught.value.response()
    assert "ann's" not in repr(ANN)


@pytest.mark.parametrize(
    ("peer", "forwarded", "counted"),
    [
        (LOCAL, None, ""),
        ("192.0.2.1", None, "192.0.2.1"),
        ("::ffff:192.0.2.1", None, "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", None, "2001:db8:1:2::/64"),
        ("fe80::1%eth0", None, "fe80::/64"),
        ("192.0.2.1", "203.0.113.5", "192.0.2.1"),  # no proxy of ours: not believed
        ("10.0.0.1", "203.0.113.5", "203.0.113.5"),
        ("10.0.0.1", "198.51.100.1, 203.0.113.5, 10.0.0.2", "203.0.113.5"),
        ("10.0.0.1", "10.0.0.3", "10.0.0.3"),
        ("", None, ""),
    ],
)
def test_which_address_is_counted(peer: str, forwarded: str | None, counted: str) -> None:
    rules = admission(trusted_proxies=("10.0.0.0/24",))
    assert rules.admit(head(x_forwarded_for=forwarded), peer).address == counted


@pytest.mark.parametrize(
    ("peer", "counted"),
    [
        (LOCAL, ""),
        ("", ""),
        ("192.0.2.1", "192.0.2.1"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
        ("10.0.0.1", ""),  # a proxy of ours
    ],
)
def test_which_peer_is_counted_before_it_has_said_anything(peer: str, counted: str) -> None:
    assert admission(trusted_proxies=("10.0.0.0/24",)).counted_peer(peer) == counted


def test_a_local_proxys_clients_are_no_local_clients() -> None:
    rules = admission(trusted_proxies=("127.0.0.1",))
    assert rules.admit(head(x_forwarded_for="203.0.113.5"), LOCAL).identity.role == "user"
    assert rules.admit(head(), LOCAL).identity.role == "admin"
    # Nor are those of one that nobody told us of.
    for header in ({"x_forwarded_for": "127.0.0.1"}, {"forwarded": "for=127.0.0.1"}):
        assert admission().admit(head(**header), LOCAL).identity.role == "user"


def test_the_network_is_not_served_without_tokens() -> None:
    def check(host: str, *tokens: AuthToken, insecure: bool = False) -> None:
        check_binding(ServerSettings(host=host), AuthSettings(tokens=tokens, insecure=insecure))

    for host in ("127.0.0.1", "localhost", "::1"):
        check(host)
    for host in ("0.0.0.0", "::", "192.0.2.1"):
        with pytest.raises(StartupError, match="--insecure"):
            check(host)
        check(host, ANN)
        check(host, insecure=True)
