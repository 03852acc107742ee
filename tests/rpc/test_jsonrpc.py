import enum
import json
from typing import Any

import attrs
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from persona.errors import InternalError, InvalidRequest, LLMUnavailable, ParseError
from persona.model import Priority
from persona.rpc import jsonrpc
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

quick = settings(max_examples=100, deadline=None, derandomize=True, database=None)

MAX_ID = 2**53


def frame(**members: Any) -> bytes:
    """A well-formed request frame with `members` changed; a member set to `...` is left out."""
    whole = {"jsonrpc": "2.0", "id": 7, "method": "system.ping", "params": {}} | members
    return json.dumps({name: value for name, value in whole.items() if value is not ...}).encode()


def nested(levels: int) -> Any:
    value: Any = []
    for _ in range(levels - 1):
        value = [value]
    return value


def assert_invalid(message: object, request_id: object, *, field: str | None = None) -> InvalidRequest:
    assert isinstance(message, Invalid)
    assert type(message.id) is type(request_id)
    assert message.id == request_id
    assert isinstance(message.error, InvalidRequest)
    assert message.error.field == field
    if field is not None:
        assert f"'{field}'" in message.error.message
    return message.error


class TestDecodeOne:
    @pytest.mark.parametrize("params", [{}, {"a": 1}, [], [1, "two", None]])
    def test_a_request(self, params: Any) -> None:
        assert decode(frame(params=params)) == Request(7, "system.ping", params)

    def test_absent_params_are_none(self) -> None:
        assert decode(frame(params=...)) == Request(7, "system.ping", None)

    def test_without_an_id_it_is_a_notification(self) -> None:
        assert decode(frame(id=...)) == Notification("system.ping", {})
        assert decode(frame(id=..., params=...)) == Notification("system.ping", None)

    def test_text_is_taken_like_bytes(self) -> None:
        assert decode(frame(params=["é😀"]).decode()) == Request(7, "system.ping", ["é😀"])

    @pytest.mark.parametrize("request_id", [0, 1, -1, MAX_ID, -MAX_ID, "", "a", "7", "é😀\x00", "x" * 1000])
    def test_ids_keep_value_and_type(self, request_id: str | int) -> None:
        message = decode(frame(id=request_id))
        assert isinstance(message, Request)
        assert type(message.id) is type(request_id)
        assert message.id == request_id
        assert orjson.loads(encode_result(message.id, None))["id"] == request_id

    @pytest.mark.parametrize(
        "written",
        [
            "null",
            "true",
            "false",
            "1.0",
            "1e2",
            "0.5",
            "{}",
            "[]",
            str(MAX_ID + 1),
            str(-MAX_ID - 1),
            str(2**64 - 1),
            str(2**64),
            str(-(2**63)),
            str(-(2**63) - 1),
            "1" * 200,
        ],
    )
    def test_what_is_no_id(self, written: str) -> None:
        data = f'{{"jsonrpc":"2.0","id":{written},"method":"m"}}'
        error = assert_invalid(decode(data), None, field="id")
        assert "2^53" in error.message

    @pytest.mark.parametrize("version", [..., "1.0", "2", "", 2.0, 2, None, ["2.0"]])
    def test_jsonrpc_must_be_2_0(self, version: Any) -> None:
        assert_invalid(decode(frame(jsonrpc=version)), 7, field="jsonrpc")

    @pytest.mark.parametrize("method", [..., "", None, 1, True, [], {"name": "m"}])
    def test_method_must_be_a_non_empty_string(self, method: Any) -> None:
        assert_invalid(decode(frame(method=method)), 7, field="method")

    @pytest.mark.parametrize("params", [None, 1, 1.5, True, "text", ""])
    def test_params_must_be_an_object_or_an_array(self, params: Any) -> None:
        assert_invalid(decode(frame(params=params)), 7, field="params")
        assert_invalid(decode(frame(params=params, id="x")), "x", field="params")

    def test_an_invalid_request_without_an_id_is_answered_under_null(self) -> None:
        # From the specification's own examples; being no request, it is no notification.
        assert_invalid(decode('{"jsonrpc": "2.0", "method": 1, "params": "bar"}'), None, field="method")
        assert_invalid(decode(frame(id=..., params=5)), None, field="params")
        assert_invalid(decode(b"{}"), None, field="jsonrpc")

    @pytest.mark.parametrize("data", [b"null", b"true", b"1", b"1.5", b'"text"', b'"method"'])
    def test_json_that_is_no_object(self, data: bytes) -> None:
        error = assert_invalid(decode(data), None)
        assert "object" in error.message

    def test_other_members_are_ignored(self) -> None:
        assert decode(frame(meta={"trace": 1}, result=1, error=2)) == Request(7, "system.ping", {})

    def test_the_last_of_duplicate_members_counts(self) -> None:
        data = '{"jsonrpc":"2.0","id":1,"id":2,"method":"a","method":"b","params":{"k":1,"k":2}}'
        assert decode(data) == Request(2, "b", {"k": 2})

    @pytest.mark.parametrize(
        "response",
        [
            {"jsonrpc": "2.0", "id": 7, "result": 1},
            {"jsonrpc": "2.0", "id": 7, "result": None},
            {"jsonrpc": "2.0", "id": None, "error": {"code": 1, "message": "m"}},
            {"jsonrpc": "2.0", "id": 1.5, "result": 1, "error": 2},
            {"result": 1},
            {"error": None},
        ],
    )
    def test_what_looks_like_a_response_is_dropped(self, response: Any) -> None:
        assert decode(orjson.dumps(response)) == Dropped(1)


class TestNotJson:
    @pytest.mark.parametrize(
        "data",
        [
            b"",
            b" ",
            b"{",
            b'{"jsonrpc": "2.0", "method": "foobar, "params": "bar", "baz]',
            b"[1,]",
            b"{'a': 1}",
            b"NaN",
            b"Infinity",
            b"1e400",
            b"01",
            b"{} {}",
            b"{}\x00",
            b"\x00",
            b"\xff\xfe",
            b'"\xc3"',
            b"\xef\xbb\xbf{}",
            b'"\n"',
            b'"\\ud800"',
            b'{"\\udc00": 1}',
            b'"\\ud800\\u0041"',
            "\ud800",
            '"\udfff"',
            b"[" * 100,
            b"[" * 5000,
            b'{"a":' * 5000,
            b"x" + b"[" * 2000 + b"]" * 2000,
        ],
    )
    def test_a_parse_error_under_null(self, data: bytes | str) -> None:
        message = decode(data)
        assert isinstance(message, Invalid)
        assert message.id is None
        assert isinstance(message.error, ParseError)

    def test_it_says_where(self) -> None:
        message = decode(b'{"a": 1,\n "b": x}')
        assert isinstance(message, Invalid)
        assert message.error.message.endswith("at line 2 column 7")

    def test_a_pair_of_surrogate_escapes_is_a_character(self) -> None:
        assert decode('{"jsonrpc":"2.0","id":1,"method":"\\ud83d\\ude00"}') == Request(1, "😀", None)


class TestDepth:
    # A request adds one level around its params.
    @pytest.mark.parametrize("text", [False, True])
    def test_the_bound_is_exact(self, text: bool) -> None:
        def ask(levels: int) -> jsonrpc.Message:
            data = frame(params="?").replace(b'"?"', b"[" * (levels - 1) + b"]" * (levels - 1))
            return decode(data.decode() if text else data)

        assert ask(64) == Request(7, "system.ping", nested(63))
        error = assert_invalid(ask(65), 7)
        assert "64" in error.message
        assert_invalid(ask(500), 7)
        assert_invalid(ask(1024), 7)

    def test_nothing_but_brackets_is_measured_too(self) -> None:
        # The shortest text of each depth.
        for levels, complaint in ((64, "object"), (65, "deeper")):
            message = decode(b"[" * levels + b"]" * levels)
            assert isinstance(message, Batch)
            assert complaint in assert_invalid(message.entries[0], None).message

    def test_objects_count_like_arrays(self) -> None:
        params: dict[str, Any] = {}
        for _ in range(4):
            params = {"a": params}
        data = frame(params=params)
        assert decode(data, max_depth=6) == Request(7, "system.ping", params)
        assert_invalid(decode(data, max_depth=5), 7)

    def test_breadth_is_not_depth(self) -> None:
        params: list[Any] = [[[], {}] for _ in range(200)]
        assert decode(frame(params=params), max_depth=4) == Request(7, "system.ping", params)

    def test_brackets_inside_strings_do_not_count(self) -> None:
        assert decode(frame(params=["[{" * 500])) == Request(7, "system.ping", ["[{" * 500])
        assert_invalid(decode(json.dumps("[{" * 500)), None)

    @pytest.mark.parametrize("request_id", [..., None, 1.5])
    def test_an_unusable_id_gives_null(self, request_id: Any) -> None:
        assert_invalid(decode(frame(id=request_id, params=nested(64))), None)

    @pytest.mark.parametrize("levels", [1025, 1100, 30_000])
    def test_deeper_than_the_parser_goes(self, levels: int) -> None:
        for data in (b"[" * levels + b"]" * levels, b'{"a":' * levels + b"1" + b"}" * levels):
            error = assert_invalid(decode(data), None)
            assert "64" in error.message

    def test_in_a_batch_the_array_counts_and_only_the_deep_entry_fails(self) -> None:
        fits = frame(params=nested(3))
        deep = frame(id="deep", params=nested(4))
        message = decode(encode_batch([fits, deep, b"[[[[]]]]", b"1"]), max_depth=5)
        assert isinstance(message, Batch)
        assert message.entries[0] == Request(7, "system.ping", nested(3))
        assert "deeper" in assert_invalid(message.entries[1], "deep").message
        assert "object" in assert_invalid(message.entries[2], None).message
        assert "object" in assert_invalid(message.entries[3], None).message


class TestBatch:
    def test_entries_keep_their_order(self) -> None:
        message = decode(encode_batch([frame(id=1), frame(id=...), frame(id="b", params=[1])]))
        assert message == Batch(
            (
                Request(1, "system.ping", {}),
                Notification("system.ping", {}),
                Request("b", "system.ping", [1]),
            )
        )

    def test_empty_is_one_error(self) -> None:
        assert_invalid(decode(b"[]"), None)

    def test_the_bound_is_exact(self) -> None:
        full = decode(encode_batch([frame()] * 50))
        assert isinstance(full, Batch)
        assert len(full.entries) == 50
        error = assert_invalid(decode(encode_batch([frame()] * 51)), None)
        assert "50" in error.message
        assert_invalid(decode(encode_batch([frame()] * 3), max_batch=2), None)

    def test_each_bad_entry_is_answered_for_itself(self) -> None:
        message = decode(b"[1, [], null, " + frame(method=5, id="bad") + b"," + frame() + b"]")
        assert isinstance(message, Batch)
        for entry in message.entries[:3]:
            assert_invalid(entry, None)
        assert_invalid(message.entries[3], "bad", field="method")
        assert message.entries[4] == Request(7, "system.ping", {})

    def test_responses_are_left_out_and_counted(self) -> None:
        response = b'{"jsonrpc":"2.0","id":1,"result":1}'
        assert decode(encode_batch([response, frame(), response])) == Batch(
            (Request(7, "system.ping", {}),), dropped=2
        )
        assert decode(encode_batch([response, response])) == Dropped(2)


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
