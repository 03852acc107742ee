"""Answers as bytes, and what holds for any input."""

import enum
from typing import Any

import attrs
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona.errors import InternalError, InvalidRequest, LLMUnavailable, ParseError
from persona.model import Priority
from persona.rpc.jsonrpc import (
    Batch,
    Dropped,
    Invalid,
    Notification,
    Request,
    decode,
    encode_batch,
    encode_error,
    encode_notification,
    encode_request,
    encode_result,
)
from tests.rpc.replies import ErrorReply, ProtocolViolation, Reply, decode_reply
from tests.rpc.test_jsonrpc import MAX_ID, frame, nested, quick


class Mood(enum.Enum):
    CALM = "calm"


@attrs.frozen
class Inner:
    number: int
    priority: Priority


@attrs.define
class Outer:
    name: str
    inner: Inner
    items: tuple[Any, ...] = ()


class TestEncode:
    def test_result(self) -> None:
        assert orjson.loads(encode_result(7, {"a": [1]})) == {"jsonrpc": "2.0", "id": 7, "result": {"a": [1]}}
        assert orjson.loads(encode_result("x", None)) == {"jsonrpc": "2.0", "id": "x", "result": None}

    def test_error(self) -> None:
        error = LLMUnavailable("the model is down", retry_after_s=1.5, details={"stream_id": "s1"})
        assert orjson.loads(encode_error(None, error)) == {
            "jsonrpc": "2.0",
            "id": None,
            "error": {
                "code": -32003,
                "message": "the model is down",
                "data": {
                    "reason": "llm_unavailable",
                    "retryable": True,
                    "retry_after_s": 1.5,
                    "stream_id": "s1",
                },
            },
        }

    def test_attrs_enums_and_tuples_at_any_level(self) -> None:
        value = {"all": [Outer("o", Inner(1, Priority.SOCIAL), (Mood.CALM, Inner(2, Priority.NONE)))]}
        assert orjson.loads(encode_result(1, value))["result"] == {
            "all": [
                {
                    "name": "o",
                    "inner": {"number": 1, "priority": "social"},
                    "items": ["calm", {"number": 2, "priority": "none"}],
                }
            ]
        }
        assert orjson.loads(encode_result(1, Inner(3, Priority.NONE)))["result"]["number"] == 3

    def test_what_json_cannot_hold_is_a_type_error(self) -> None:
        circle: list[Any] = []
        circle.append(circle)
        for value in (object(), {1, 2}, b"bytes", 2**64, {1: 2}, circle, nested(300)):
            with pytest.raises(TypeError):
                encode_result(1, value)

    def test_nan_and_infinity_become_null(self) -> None:
        result = encode_result(1, [float("nan"), float("inf"), 1.5])
        assert orjson.loads(result)["result"] == [None, None, 1.5]

    def test_lone_surrogates_are_replaced_wherever_they_are(self) -> None:
        broken = "a\ud83d"
        value = {
            broken: [broken, (broken, 1)],
            "o": Outer(broken, Inner(1, Priority.NONE)),
            "pair": "\ud83d\ude00",
        }
        assert orjson.loads(encode_result(1, value))["result"] == {
            "a\ufffd": ["a\ufffd", ["a\ufffd", 1]],
            "o": {"name": "a\ufffd", "inner": {"number": 1, "priority": "none"}, "items": []},
            "pair": "😀",
        }
        error = orjson.loads(encode_error(1, InternalError("no \udfff", details={"at": "\udfff"})))["error"]
        assert (error["message"], error["data"]["at"]) == ("no \ufffd", "\ufffd")

    def test_whatever_passes_the_door_can_be_sent_back_deeper(self) -> None:
        # The largest depth the settings allow, wrapped in a reply.
        deep = nested(249)
        message = decode(frame(params=deep), max_depth=250)
        assert isinstance(message, Request)
        assert orjson.loads(encode_result(1, {"payload": message.params}))["result"]["payload"] == deep

    def test_notification(self) -> None:
        assert orjson.loads(encode_notification("event", Inner(1, Priority.NONE))) == {
            "jsonrpc": "2.0",
            "method": "event",
            "params": {"number": 1, "priority": "none"},
        }
        assert orjson.loads(encode_notification("event")) == {"jsonrpc": "2.0", "method": "event"}

    def test_request(self) -> None:
        assert decode(encode_request(1, "m")) == Request(1, "m", None)
        assert decode(encode_request("a", "m", [])) == Request("a", "m", [])

    def test_batch_joins_what_is_encoded(self) -> None:
        assert encode_batch([b"{}"]) == b"[{}]"
        assert encode_batch(part for part in (b'{"a":1}', b"{}")) == b'[{"a":1},{}]'

    def test_a_batch_of_nothing_is_refused(self) -> None:
        with pytest.raises(ValueError, match="at least one"):
            encode_batch([])


class TestDecodeReply:
    def test_result(self) -> None:
        assert decode_reply(encode_result(7, {"a": 1})) == Reply(7, {"a": 1})
        assert decode_reply(encode_result("x", None).decode()) == Reply("x", None)

    def test_error(self) -> None:
        assert decode_reply(encode_error(None, ParseError("no"))) == ErrorReply(
            None, -32700, "no", {"reason": "parse_error", "retryable": False}
        )
        bare = b'{"jsonrpc":"2.0","id":1,"error":{"code":-1,"message":"m"}}'
        assert decode_reply(bare) == ErrorReply(1, -1, "m", None)

    def test_notification(self) -> None:
        assert decode_reply(encode_notification("event", {"seq": 1})) == Notification("event", {"seq": 1})

    def test_batch(self) -> None:
        data = encode_batch([encode_result(1, 1), encode_error(2, InvalidRequest("no"))])
        replies = decode_reply(data)
        assert isinstance(replies, tuple)
        assert replies[0] == Reply(1, 1)
        assert isinstance(replies[1], ErrorReply)

    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b"{",
            "\ud800",
            b"1",
            b"[]",
            b"[1]",
            b"{}",
            b'{"id":1,"result":1}',
            b'{"jsonrpc":"1.0","id":1,"result":1}',
            b'{"jsonrpc":"2.0","id":1}',
            b'{"jsonrpc":"2.0","id":1,"result":1,"error":{"code":1,"message":"m"}}',
            b'{"jsonrpc":"2.0","result":1}',
            b'{"jsonrpc":"2.0","id":null,"result":1}',
            b'{"jsonrpc":"2.0","id":1.5,"result":1}',
            b'{"jsonrpc":"2.0","error":{"code":1,"message":"m"}}',
            b'{"jsonrpc":"2.0","id":true,"error":{"code":1,"message":"m"}}',
            b'{"jsonrpc":"2.0","id":1,"error":null}',
            b'{"jsonrpc":"2.0","id":1,"error":{"code":"1","message":"m"}}',
            b'{"jsonrpc":"2.0","id":1,"error":{"code":true,"message":"m"}}',
            b'{"jsonrpc":"2.0","id":1,"error":{"code":1}}',
            b'{"jsonrpc":"2.0","id":1,"method":"m"}',
            b'{"jsonrpc":"2.0","method":""}',
            b'{"jsonrpc":"2.0","method":"m","params":1}',
        ],
    )
    def test_garbage_is_a_violation(self, data: bytes | str) -> None:
        with pytest.raises(ProtocolViolation):
            decode_reply(data)


# What JSON can say and orjson can write. Surrogates have tests of their own.
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
scalars = (
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**64 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | texts
)
json_values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
ids = st.integers(-MAX_ID, MAX_ID) | texts
params_values = (
    st.none() | st.lists(json_values, max_size=2) | st.dictionaries(texts, json_values, max_size=2)
)
methods = texts.filter(bool)
# Members drawn apart, so that most examples are requests with one thing wrong.
near_requests = st.fixed_dictionaries(
    {},
    optional={
        "jsonrpc": st.just("2.0") | json_values,
        "id": ids | json_values,
        "method": methods | json_values,
        "params": params_values | json_values,
        "result": json_values,
        "error": json_values,
    },
)


def assert_message(message: object) -> None:
    """`message` is one of the union, and what it promises holds."""
    assert isinstance(message, (Request, Notification, Batch, Invalid, Dropped))
    if isinstance(message, Batch):
        assert message.entries
        for entry in message.entries:
            assert isinstance(entry, Request | Notification | Invalid)
            assert_message(entry)
    elif isinstance(message, Request):
        assert type(message.id) in (str, int)
        assert message.method
        assert decode(encode_request(message.id, message.method, message.params)) == message
    elif isinstance(message, Invalid):
        reply = decode_reply(encode_error(message.id, message.error))
        assert isinstance(reply, ErrorReply)
        assert reply.id == message.id
        assert reply.code in (-32700, -32600)


class TestAnyInput:
    @quick
    @given(st.binary(max_size=200) | st.text(max_size=200))
    def test_bytes_and_text(self, data: bytes | str) -> None:
        assert_message(decode(data))

    @quick
    @given(
        st.lists(st.sampled_from([*'[]{},:" ', "1", '"id"', '"method"', '"2.0"', "\\", "null"]), max_size=30)
    )
    def test_json_like_text(self, pieces: list[str]) -> None:
        assert_message(decode("".join(pieces)))

    @quick
    @given(json_values | near_requests | st.lists(near_requests, max_size=3))
    def test_json_values(self, value: Any) -> None:
        message = decode(orjson.dumps(value))
        assert_message(message)
        assert not isinstance(message, Invalid) or isinstance(message.error, InvalidRequest)

    @quick
    @given(json_values, st.integers(1, 6))
    def test_the_depth_bound(self, value: Any, max_depth: int) -> None:
        def depth(value: Any) -> int:
            if not isinstance(value, dict | list):
                return 0
            return 1 + max(map(depth, value.values() if isinstance(value, dict) else value), default=0)

        params = [value]
        message = decode(encode_request(1, "m", params), max_depth=max_depth)
        assert isinstance(message, Request) == (1 + depth(params) <= max_depth)

    @quick
    @given(st.binary(max_size=200) | st.text(max_size=200) | near_requests.map(orjson.dumps))
    def test_reply_or_violation(self, data: bytes | str) -> None:
        try:
            message = decode_reply(data)
        except ProtocolViolation:
            return
        assert isinstance(message, Reply | ErrorReply | Notification | tuple)


class TestRoundTrip:
    @quick
    @given(ids, methods, params_values)
    def test_requests(self, request_id: str | int, method: str, params: Any) -> None:
        message = decode(encode_request(request_id, method, params))
        assert message == Request(request_id, method, params)
        assert type(message.id) is type(request_id)

    @quick
    @given(methods, params_values)
    def test_notifications(self, method: str, params: Any) -> None:
        data = encode_notification(method, params)
        assert decode(data) == decode_reply(data) == Notification(method, params)

    @quick
    @given(ids, json_values)
    def test_results(self, request_id: str | int, result: Any) -> None:
        reply = decode_reply(encode_result(request_id, result))
        assert reply == Reply(request_id, result)
        assert type(reply.id) is type(request_id)

    @quick
    @given(ids, st.text())
    def test_any_text_can_be_sent(self, request_id: str | int, text: str) -> None:
        reply = decode_reply(encode_result(request_id, text))
        assert isinstance(reply, Reply)
        assert reply.result == text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
