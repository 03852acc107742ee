"""The routes, over real HTTP."""

import re
from importlib import resources

import pytest
import trio
from prometheus_client.parser import text_string_to_metric_families

import persona
from persona.errors import MemoryFailure
from persona.metrics import Metrics
from persona.web import app as web_app
from tests.web.site import open_site


async def broken() -> None:
    raise MemoryFailure("the disk is gone")


@pytest.mark.parametrize(("path", "title"), [("/", "Chat · persona"), ("/dashboard", "Dashboard · persona")])
async def test_the_pages(path: str, title: str) -> None:
    async with open_site() as site:
        page = await site.get(path)
        assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
        assert f"<title>{title}</title>" in page.text
        # All that a page is made of is there, and nothing of it comes from elsewhere or stands in the page.
        links = re.findall(r'(?:src|href)="([^"]+)"', page.text)
        for link in links:
            assert (await site.get(link)).status_code == 200, link
        assert "http" not in "".join(links)
        assert "<style" not in page.text
        assert not re.search(r"<script[^>]*>[^<]|\son\w+=|\sstyle=", page.text)


async def test_scripts_import_what_is_there() -> None:
    async with open_site() as site:
        files = [entry.name for entry in (resources.files("persona.web") / "static").iterdir()]
        for name in files:
            file = await site.get(f"/static/{name}")
            assert file.status_code == 200
            for imported in re.findall(r'from "\./([^"]+)"', file.text):
                assert imported in files


@pytest.mark.parametrize(
    ("name", "media_type"),
    [("chat.js", "text/javascript"), ("base.css", "text/css"), ("icon.svg", "image/svg+xml")],
)
async def test_a_file_is_sent_once_and_asked_for_after(name: str, media_type: str) -> None:
    async with open_site() as site:
        first = await site.get(f"/static/{name}")
        assert first.headers["content-type"].startswith(media_type)
        again = await site.get(f"/static/{name}", If_None_Match=first.headers["etag"])
        assert (again.status_code, again.content) == (304, b"")
        other = await site.get(f"/static/{name}", If_None_Match='"0123456789abcdef"')
        assert other.content == first.content


@pytest.mark.parametrize(
    "path",
    [
        "/static/",
        "/static/gone.js",
        "/static/../app.py",
        "/static/%2e%2e/app.py",
        "/static/..%2fapp.py",
        "/livez/",
        "/%00",
    ],
)
async def test_nothing_else_is_served(path: str) -> None:
    # As it is: an HTTP client would tidy the path up first.
    request = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    async with open_site() as site:
        assert (await exchange(site.port, request.encode())).startswith(b"HTTP/1.1 404 ")
        assert all(value != path for value in _paths(site.metrics))


async def exchange(port: int, request: bytes) -> bytes:
    """Everything that is answered to these bytes."""
    answer = b""
    with trio.fail_after(20):
        async with await trio.open_tcp_stream("127.0.0.1", port) as stream:
            await stream.send_all(request)
            async for data in stream:
                answer += data
    return answer


def _paths(metrics: Metrics) -> list[str]:
    return [sample.labels["path"] for family in metrics.http_requests.collect() for sample in family.samples]


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE"])
async def test_only_get_and_head(method: str) -> None:
    async with open_site() as site:
        for path in ("/", "/metrics", "/static/chat.js"):
            answer = await site.client.request(method, path)
            assert (answer.status_code, set(answer.headers["allow"].split(", "))) == (405, {"GET", "HEAD"})


async def test_head_is_get_without_the_body() -> None:
    async with open_site() as site:
        got, head = await site.get("/"), await site.client.head("/")
        assert (head.status_code, head.content) == (200, b"")
        assert head.headers["content-length"] == got.headers["content-length"]


async def test_the_pages_learn_where_the_websocket_is() -> None:
    async with open_site(port=8123) as site:
        assert (await site.get("/config.json")).json() == {
            "url": "ws://127.0.0.1:8123/mcp",
            "token_required": False,
            "version": persona.__version__,
        }
        assert (await site.get("/config.json", Host="localhost:9")).json()["url"] == "ws://localhost:8123/mcp"
        site.asks_for_token = True
        assert (await site.get("/config.json")).json()["token_required"] is True


@pytest.mark.parametrize(
    ("settings", "url"),
    [
        # One that is bound elsewhere is not to be found under the page's name.
        ({"host": "192.0.2.1"}, "ws://192.0.2.1:8000/mcp"),
        ({"host": "0.0.0.0"}, "ws://localhost:8000/mcp"),
        ({"host": "::1", "http_host": "::1"}, "ws://localhost:8000/mcp"),
        ({"host": "::1"}, "ws://[::1]:8000/mcp"),
        ({"public_url": "wss://persona.example/mcp"}, "wss://persona.example/mcp"),
    ],
)
async def test_wherever_it_is(settings: dict[str, str], url: str) -> None:
    async with open_site(**settings) as site:
        assert (await site.get("/config.json", Host="localhost")).json()["url"] == url


async def test_alive_whatever_else() -> None:
    async with open_site() as site:
        site.refusal, site.ask_database = "draining", broken
        answer = await site.get("/livez")
        assert (answer.status_code, answer.text) == (200, '{"alive":true}\n')


async def test_ready_and_why_not() -> None:
    async with open_site() as site:
        assert (await site.get("/readyz")).text == '{"ready":true}\n'
        for reason in ("draining", "max_connections", "memory"):
            site.refusal = reason
            answer = await site.get("/readyz")
            assert (answer.status_code, answer.text) == (503, f'{{"ready":false,"reason":"{reason}"}}\n')
        site.refusal, site.ask_database = None, broken
        assert (await site.get("/readyz")).json() == {"ready": False, "reason": "database"}


async def test_a_database_that_does_not_answer_is_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_app, "DATABASE_TIMEOUT_S", 0.1)
    async with open_site() as site:
        site.ask_database = trio.sleep_forever
        assert (await site.get("/readyz")).json() == {"ready": False, "reason": "database"}


async def test_metrics_are_what_was_counted() -> None:
    async with open_site() as site:
        for _ in range(3):
            await site.get("/livez")
        await site.get("/no/such/page")
        site.metrics.connections.set(7)
        answer = await site.get("/metrics")
        assert answer.headers["content-type"].startswith("text/plain; version=")
        samples = {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(answer.text)
            for sample in family.samples
        }
        assert samples["persona_connections",] == 7
        assert samples["persona_http_requests_total", "/livez", "200"] == 3
        assert samples["persona_http_requests_total", "other", "404"] == 1


async def test_metrics_in_the_form_that_is_asked_for() -> None:
    async with open_site() as site:
        answer = await site.get("/metrics", Accept="application/openmetrics-text; version=1.0.0")
        assert answer.headers["content-type"].startswith("application/openmetrics-text")
        assert answer.text.endswith("# EOF\n")


async def test_a_bug_is_one_500_and_is_logged_by_us_alone(
    log_entries: list[dict[str, object]], capsys: pytest.CaptureFixture[str]
) -> None:
    async with open_site() as site:

        async def buggy() -> None:
            raise KeyError("bug")

        site.ask_database = buggy
        answer = await site.get("/readyz")
        assert (answer.status_code, answer.text) == (500, "Internal error\n")
        assert (await site.get("/livez")).status_code == 200
    assert [entry["event"] for entry in log_entries if entry["log_level"] == "error"] == [
        "http_request_crashed"
    ]
    # hypercorn would write lines of its own there, amid those that a program reads.
    assert capsys.readouterr().err == ""
