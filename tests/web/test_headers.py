"""What every answer says to browsers, and who gets none."""

import pytest

from persona.web.headers import FIXED, content_security_policy
from tests.web.site import open_site

EVERY_KIND = ("/", "/dashboard", "/static/base.css", "/config.json", "/livez", "/readyz", "/metrics", "/gone")


@pytest.mark.parametrize("path", EVERY_KIND)
async def test_every_answer_has_the_headers(path: str) -> None:
    async with open_site(port=8123) as site:
        answer = await site.get(path)
        assert {name: answer.headers[name] for name in FIXED} == FIXED
        policy = answer.headers["content-security-policy"]
        assert "unsafe" not in policy
        assert "connect-src 'self' ws://127.0.0.1:8123;" in policy
        assert answer.headers["cache-control"] in ("no-cache", "no-store")
        assert "server" not in answer.headers


async def test_a_refused_method_has_them_too() -> None:
    async with open_site() as site:
        answer = await site.client.post("/")
        assert answer.status_code == 405
        assert {name: answer.headers[name] for name in FIXED} == FIXED


async def test_a_name_that_is_not_ours_is_refused_everywhere_and_counted() -> None:
    async with open_site() as site:
        for path in EVERY_KIND:
            answer = await site.get(path, Host="evil.example")
            assert (answer.status_code, answer.text) == (421, "This Host is not served here.\n")
            assert "ws://" not in answer.headers["content-security-policy"]
        assert site.metrics.value("http_refused_total", reason="host") == len(EVERY_KIND)


async def test_names_that_are_ours_are_those_of_the_settings() -> None:
    async with open_site(allowed_hosts=("persona.example",)) as site:
        assert (await site.get("/livez", Host="persona.example:443")).status_code == 200
        assert (await site.get("/livez")).status_code == 421
    async with open_site(http_host="persona.lan") as site:
        assert (await site.get("/livez", Host="persona.lan")).status_code == 200


async def test_the_policy_names_the_websocket_under_the_pages_own_name() -> None:
    async with open_site(port=8123) as site:
        answer = await site.get("/", Host="[::1]:8080")
        assert "connect-src 'self' ws://[::1]:8123;" in answer.headers["content-security-policy"]
    async with open_site(public_url="wss://persona.example/mcp") as site:
        answer = await site.get("/")
        assert "connect-src 'self' wss://persona.example;" in answer.headers["content-security-policy"]


def test_a_policy_without_a_websocket() -> None:
    assert "connect-src 'self';" in content_security_policy()
