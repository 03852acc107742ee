"""HTTP connections: bounded in number, in time, and in what they can break."""

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from persona.web import server as web_server
from tests.web.site import OpenSite, open_site

GET = b"GET /livez HTTP/1.1\r\nHost: localhost\r\n\r\n"

UPGRADE = (
    b"GET / HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
    b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
)


async def until(condition: object, *, within_s: float = 20.0) -> None:
    with trio.fail_after(within_s):
        while not condition():  # type: ignore[operator]
            await trio.sleep(0.005)


def open_count(site: OpenSite) -> float:
    return site.metrics.value("http_connections")


async def read_answer(stream: trio.SocketStream) -> bytes:
    answer = b""
    with trio.fail_after(20):
        while b"\r\n\r\n" not in answer or not answer.endswith(b"}\n"):
            data = await stream.receive_some()
            assert data, answer
            answer += data
    return answer


async def ended(stream: trio.SocketStream, *, within_s: float = 20.0) -> bytes:
    """What still comes before the server closes."""
    answer = b""
    with trio.fail_after(within_s):
        try:
            async for data in stream:
                answer += data
        except trio.BrokenResourceError:
            pass
    return answer


async def test_a_connection_serves_one_request_after_another() -> None:
    async with open_site() as site, await trio.open_tcp_stream("127.0.0.1", site.port) as stream:
        for _ in range(3):
            await stream.send_all(GET)
            assert (await read_answer(stream)).startswith(b"HTTP/1.1 200 ")
        assert open_count(site) == 1


async def test_one_more_than_there_is_room_for_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "MAX_CONNECTIONS", 2)
    async with open_site() as site:
        first = await trio.open_tcp_stream("127.0.0.1", site.port)
        async with first, await trio.open_tcp_stream("127.0.0.1", site.port) as second:
            await until(lambda: open_count(site) == 2)
            async with await trio.open_tcp_stream("127.0.0.1", site.port) as third:
                assert (await ended(third)).startswith(b"HTTP/1.1 503 ")
            assert site.metrics.value("http_refused_total", reason="max_connections") == 1
            await second.send_all(GET)
            assert (await read_answer(second)).startswith(b"HTTP/1.1 200 ")
        await until(lambda: open_count(site) == 0)
        assert (await site.get("/livez")).status_code == 200


async def test_the_words_of_a_refusal_are_as_long_as_it_says() -> None:
    head, _, body = web_server.FULL.partition(b"\r\n\r\n")
    assert f"Content-Length: {len(body)}".encode() in head


async def test_who_says_nothing_and_who_does_not_finish_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "KEEP_ALIVE_S", 0.2)
    async with open_site() as site:
        for beginning in (b"", GET[:-5]):
            async with await trio.open_tcp_stream("127.0.0.1", site.port) as stream:
                await stream.send_all(beginning)
                assert await ended(stream) == b""


async def test_a_connection_does_not_last_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(web_server, "MAX_LIFETIME_S", 0.3)
    async with open_site() as site:
        site.ask_database = trio.sleep_forever
        async with await trio.open_tcp_stream("127.0.0.1", site.port) as stream:
            await stream.send_all(GET.replace(b"livez", b"readyz"))
            assert await ended(stream) == b""
        await until(lambda: open_count(site) == 0)


@pytest.mark.parametrize("asks", [False, True])
async def test_who_has_gone_gives_its_place_back_before_the_keep_alive_ends(
    asks: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(web_server, "KEEP_ALIVE_S", 300.0)
    async with open_site() as site:
        async with await trio.open_tcp_stream("127.0.0.1", site.port) as stream:
            await until(lambda: open_count(site) == 1)
            if asks:
                await stream.send_all(GET)
                await read_answer(stream)
            # Who goes before hypercorn has begun to wait for the next request, it does not keep.
            await wait_all_tasks_blocked(0.05)
        await until(lambda: open_count(site) == 0)


async def test_who_closes_its_side_only_still_gets_its_answer() -> None:
    async with open_site() as site, await trio.open_tcp_stream("127.0.0.1", site.port) as stream:
        await stream.send_all(GET)
        await stream.send_eof()
        assert (await ended(stream)).endswith(b'{"alive":true}\n')


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", b"HTTP/1.1 400 "),
        (b"GET /livez HTTP/1.1\r\n\r\n", b"HTTP/1.1 400 "),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", b"HTTP/1.1 400 "),
        (b"GET /livez HTTP/1.1\r\nHost: localhost\r\nX: " + b"x" * 200_000, b"HTTP/1.1 431 "),
        (UPGRADE, b"HTTP/1.1 403 "),
    ],
)
async def test_what_is_no_request_of_ours_harms_nobody(
    request_bytes: bytes, status: bytes, log_entries: list[dict[str, object]]
) -> None:
    async with open_site() as site:
        async with await trio.open_tcp_stream("127.0.0.1", site.port) as stream:
            await stream.send_all(request_bytes)
            assert (await ended(stream)).startswith(status)
        assert (await site.get("/livez")).status_code == 200
    assert [entry for entry in log_entries if entry["log_level"] == "error"] == []


async def test_a_crash_stays_in_its_connection(
    monkeypatch: pytest.MonkeyPatch, log_entries: list[dict[str, object]]
) -> None:
    class Crashing:
        def __init__(self, *_: object) -> None: ...

        async def run(self) -> None:
            await trio.lowlevel.checkpoint()
            raise KeyError("bug")

    async with open_site() as site:
        with monkeypatch.context() as patch:
            patch.setattr(web_server, "TCPServer", Crashing)
            async with await trio.open_tcp_stream("127.0.0.1", site.port) as stream:
                assert await ended(stream) == b""
        assert (await site.get("/livez")).status_code == 200
        assert open_count(site) == 1
    assert [entry["event"] for entry in log_entries] == ["http_connection_crashed"]


async def flood(stream: trio.SocketStream) -> None:
    """Ask without reading, until no more is taken: the answers fill the sockets."""
    with trio.move_on_after(20):
        while True:
            with trio.move_on_after(0.5) as scope:
                await stream.send_all(GET.replace(b"/livez", b"/metrics") * 20)
            if scope.cancelled_caught:
                return


async def test_who_does_not_read_is_cut_at_the_write_deadline() -> None:
    async with (
        open_site(write_deadline_s=0.5) as site,
        await trio.open_tcp_stream("127.0.0.1", site.port) as stream,
    ):
        await until(lambda: open_count(site) == 1)
        with pytest.raises(trio.BrokenResourceError):
            for _ in range(40):
                await flood(stream)
        await until(lambda: open_count(site) == 0)


async def test_who_does_not_read_does_not_hold_up_the_end() -> None:
    async with (
        open_site(write_deadline_s=300.0) as site,
        await trio.open_tcp_stream("127.0.0.1", site.port) as stream,
    ):
        await flood(stream)
        with trio.fail_after(20):
            await site.web.drain()
            await until(lambda: open_count(site) == 0)


async def test_a_drain_lets_what_is_under_way_be_answered_and_closes_the_idle(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(web_server, "DRAIN_S", 20.0)
    asked, answer = trio.Event(), trio.Event()

    async def slow() -> None:
        asked.set()
        await answer.wait()

    async with open_site() as site:
        site.ask_database = slow
        idle = await trio.open_tcp_stream("127.0.0.1", site.port)
        async with (
            idle,
            await trio.open_tcp_stream("127.0.0.1", site.port) as busy,
            trio.open_nursery() as nursery,
        ):
            await busy.send_all(GET.replace(b"livez", b"readyz"))
            await asked.wait()
            nursery.start_soon(site.web.drain)
            assert await ended(idle) == b""
            with pytest.raises(OSError, match="all attempts to connect"):
                while True:
                    await (await trio.open_tcp_stream("127.0.0.1", site.port)).aclose()
            answer.set()
            assert b'{"ready":true}' in await ended(busy)


async def test_nothing_is_left_behind() -> None:
    before = trio.lowlevel.current_statistics().tasks_living
    async with open_site() as site:
        await site.get("/")
        stream = await trio.open_tcp_stream("127.0.0.1", site.port)
    await stream.aclose()
    assert trio.lowlevel.current_statistics().tasks_living == before
