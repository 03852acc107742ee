"""The cheap client, against servers that answer well and servers that do not."""

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import pytest

from loadgen import wire
from loadgen.wire import (
    WireConnection,
    WrongAnswer,
    broadcast,
    connected,
    ping_loop,
    request_frame,
    subscribe,
)

Answer = Callable[[dict[str, Any]], list[bytes]]


def text_frame(payload: bytes) -> bytes:
    if len(payload) < 126:
        return struct.pack("!BB", 0x81, len(payload)) + payload
    return struct.pack("!BBH", 0x81, 126, len(payload)) + payload


def reply(request: dict[str, Any], result: Any) -> bytes:
    return text_frame(orjson.dumps({"jsonrpc": "2.0", "id": request["id"], "result": result}))


def pong(request: dict[str, Any]) -> list[bytes]:
    return [reply(request, {"pong": True, "payload": request["params"]["payload"]})]


class TinyServer:
    """Blocking sockets and a thread each: as little like what is tested as can be."""

    def __init__(self, answer: Answer, head: bytes) -> None:
        self.answer = answer
        self.head = head
        self.pongs: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"ws://127.0.0.1:{self._listener.getsockname()[1]}/mcp"
        self._threads = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            self._threads.append(threading.Thread(target=self._serve, args=(client,)))
            self._threads[-1].start()

    def _serve(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as reader:
            while reader.readline().strip():
                pass
            client.sendall(self.head)
            while head := reader.read(2):
                length = head[1] & 0x7F
                if length == 126:
                    (length,) = struct.unpack("!H", reader.read(2))
                assert head[1] & 0x80
                assert reader.read(4) == bytes(4)
                payload = reader.read(length)
                if head[0] == 0x8A:
                    self.pongs.append(payload)
                else:
                    for frame in self.answer(orjson.loads(payload)):
                        client.sendall(frame)

    def close(self) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for thread in self._threads:
            thread.join(10)


@contextmanager
def tiny(answer: Answer = pong, *, head: bytes = b"HTTP/1.1 101 Yes\r\n\r\n") -> Iterator[TinyServer]:
    server = TinyServer(answer, head)
    try:
        yield server
    finally:
        server.close()


@pytest.mark.parametrize("in_flight", [1, 5])
def test_each_connection_asks_again_when_all_is_answered(in_flight: int) -> None:
    with tiny() as server, connected(server.url, 3) as clients:
        latencies = ping_loop(clients, seconds=0.1, in_flight=in_flight)
        answered = [client.answered for client in clients]
        assert all(count and count % in_flight == 0 for count in answered)
        assert sum(answered) == len(latencies) * in_flight
        assert all(0 < latency < 5 for latency in latencies)
        # What is asked next goes on where this ended.
        ping_loop(clients, seconds=0.05, in_flight=in_flight)


def test_an_echo_has_to_give_the_request_back() -> None:
    with (
        tiny(lambda request: [text_frame(orjson.dumps(request))]) as server,
        connected(server.url, 2) as clients,
    ):
        assert len(ping_loop(clients, seconds=0.05, is_echo=True)) >= 2


@pytest.mark.parametrize(
    "answer",
    [
        lambda request: pong({**request, "id": request["id"] + 1}),
        lambda request: pong({**request, "params": {"payload": "another's"}}),
        lambda request: [reply(request, {"pong": False, "payload": request["params"]["payload"]})],
        lambda _request: [text_frame(b'{"jsonrpc":"2.0","id":0,"error":{"code":1}}')],
        lambda _request: [text_frame(b"[]")],
        lambda _request: [text_frame(b"no json")],
        lambda _request: [struct.pack("!BBH", 0x89, 126, 300) + b"x" * 300],
        lambda _request: [b"\x88\x00"],
    ],
    ids=[
        *("another id", "another payload", "no pong", "an error", "no answer", "no json", "a long ping"),
        "a close",
    ],
)
def test_a_wrong_answer_is_no_answer(answer: Answer) -> None:
    with tiny(answer) as server, connected(server.url, 1) as clients, pytest.raises(WrongAnswer):
        ping_loop(clients, seconds=0.1)


def test_a_server_that_is_not_there_is_no_answer() -> None:
    with tiny() as server:
        url = server.url
    with pytest.raises(WrongAnswer, match="cannot connect"), connected(url, 1):
        pass


def test_a_connection_that_breaks_is_no_answer() -> None:
    ours, theirs = socket.socketpair()
    with ours, WireConnection(theirs) as client:
        ours.close()
        with pytest.raises(WrongAnswer, match="the connection broke"):
            client.send(b"x")


def test_a_query_is_asked_for_too(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []

    def upgrade(_sock: object, path: str, *_: object) -> bytes:
        asked.append(path)
        return b""

    monkeypatch.setattr(WireConnection, "_upgrade", staticmethod(upgrade))
    ours, theirs = socket.socketpair()
    monkeypatch.setattr(wire.socket, "create_connection", lambda *_args, **_options: ours)
    with theirs, WireConnection.open("ws://127.0.0.1:1/mcp?x=1"):
        assert asked == ["/mcp?x=1"]


def test_a_call_waits_no_longer_than_for_an_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "SILENCE_S", 0.05)
    with (
        tiny(lambda _request: []) as server,
        connected(server.url, 1) as (client,),
        pytest.raises(WrongAnswer, match="no answer for"),
    ):
        client.call("any", {})


def test_who_subscribed_to_something_else_is_told() -> None:
    with (
        tiny(lambda request: [reply(request, None)]) as server,
        connected(server.url, 2) as clients,
        pytest.raises(WrongAnswer, match="and was told None"),
    ):
        subscribe(clients, "tests")


def test_silence_is_not_waited_for_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "SILENCE_S", 0.2)
    with (
        tiny(lambda _request: []) as server,
        connected(server.url, 1) as clients,
        pytest.raises(WrongAnswer, match="no answer for"),
    ):
        ping_loop(clients, seconds=0.1)


def test_who_is_refused_is_told_with_the_servers_words() -> None:
    with (
        tiny(head=b"HTTP/1.1 503 Full\r\n\r\n") as server,
        pytest.raises(WrongAnswer, match="503 Full"),
        connected(server.url, 1),
    ):
        pass


def test_frames_that_come_in_pieces_and_pings_between_them() -> None:
    long = b"x" * 300

    def in_pieces(request: dict[str, Any]) -> list[bytes]:
        frame = b"\x89\x02hi" + reply(request, long.decode())
        return [frame[:1], frame[1:5], frame[5:9], frame[9:]]

    with tiny(in_pieces) as server, connected(server.url, 1) as (client,):
        assert client.call("any", {}) == long.decode()
        assert client.call("any", {}) == long.decode()
    assert server.pongs == [b"hi", b"hi"]


def test_an_error_in_place_of_a_result_is_a_wrong_answer() -> None:
    error = text_frame(b'{"jsonrpc":"2.0","id":-1,"error":{"code":-32601}}')
    with tiny(lambda _: [error]) as server, connected(server.url, 1) as (client,), pytest.raises(WrongAnswer):
        client.call("any", {})


class Topic:
    """Publishes to all but the publisher, as the real servers do."""

    def __init__(self, *, delivered: int, data: str | None = None) -> None:
        self._delivered = delivered
        self._data = data

    def __call__(self, request: dict[str, Any]) -> list[bytes]:
        if request["method"] == "events.subscribe":
            return [reply(request, {"topics": request["params"]["topics"]})]
        return [reply(request, {"delivered": self._delivered})]


def test_a_broadcast_that_reached_others_than_it_should_is_wrong() -> None:
    with (
        tiny(Topic(delivered=7)) as server,
        connected(server.url, 3) as clients,
        pytest.raises(WrongAnswer, match="delivered"),
    ):
        subscribe(clients, "tests")
        broadcast(clients, "tests", size_bytes=10, rounds=1)


@pytest.mark.parametrize("events", [[], ["0-" + "x" * 10] * 2, ["another's"]])
def test_receipts_of_the_publisher_are_nobody_elses(events: list[str]) -> None:
    """As many messages as connections, and none of them to a subscriber."""

    def answer(request: dict[str, Any]) -> list[bytes]:
        if request["method"] == "events.subscribe":
            return [reply(request, {"topics": request["params"]["topics"]})]
        told = [orjson.dumps({"method": "event", "params": {"data": data}}) for data in events]
        return [reply(request, {"delivered": 2}), *map(text_frame, told)]

    with (
        tiny(answer) as server,
        connected(server.url, 3) as clients,
        pytest.MonkeyPatch.context() as patch,
        pytest.raises(WrongAnswer, match="event" if events else "no answer"),
    ):
        patch.setattr(wire, "SILENCE_S", 0.2)
        subscribe(clients, "tests")
        broadcast(clients, "tests", size_bytes=10, rounds=1)


def test_a_request_is_a_masked_frame_of_either_length() -> None:
    for size in (1, 200):
        frame = request_frame(3, "m", {"payload": "x" * size})
        assert frame[0] == 0x81
        body = 6 if size == 1 else 8
        assert orjson.loads(frame[body:])["params"] == {"payload": "x" * size}


def test_what_is_open_is_closed_when_a_later_one_fails() -> None:
    opened: list[WireConnection] = []

    with tiny() as server:
        with pytest.raises(WrongAnswer), connected(server.url, 2) as clients:
            opened += clients
            raise WrongAnswer("stop")
        assert [connection.sock.fileno() for connection in opened] == [-1, -1]
