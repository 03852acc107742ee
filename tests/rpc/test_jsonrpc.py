"""Frames as they come: what is a call, and what is refused."""

import json
from typing import Any

import orjson
import pytest
from hypothesis import settings

from persona.errors import InvalidRequest, ParseError
from persona.rpc import jsonrpc
from persona.rpc.jsonrpc import (
    Batch,
    Dropped,
    Invalid,
    Notification,
    Request,
    decode,
    encode_batch,
    encode_result,
)

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

    def test_an_integer_of_more_than_64_bits_is_a_float(self) -> None:
        exact, rounded = 2**64 - 1, 2**64
        message = decode(frame(params=[exact, -(2**63), rounded]))
        assert isinstance(message, Request)
        assert isinstance(message.params, list)
        assert message.params == [exact, -(2**63), float(rounded)]
        assert list(map(type, message.params)) == [int, int, float]

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
