"""JSON-RPC 2.0 codec: one frame <-> one value. No I/O, no state.

What `decode` makes of a frame (the server's side):

* Not JSON: `Invalid` with `ParseError`, id null. So are a string with a lone surrogate and a
  number beyond a double: the parser refuses both.
* Nested deeper than `max_depth`: `Invalid` with `InvalidRequest`.
* An object with no `method` but a `result` or an `error` looks like a response: `Dropped`, since
  answering an error with an error could go on for ever.
* A request is an object with `jsonrpc` "2.0", `method` a non-empty string, `params` an object, an
  array or absent, and `id` a string or an integer within ±2^53, compared by JSON type: `true`,
  `1.0` and `null` are no ids. Other members are ignored; the last of duplicate members counts.
* The same without `id` is a `Notification`.
* Any other object is `Invalid` with `InvalidRequest`, under its id where that could be read. One
  without an id is answered under null: being no request, it is no notification either.
* An array is a batch, each entry judged as above. Empty, or longer than `max_batch`: one
  `Invalid`. Nothing but responses: `Dropped`.

Encoding takes attrs instances, enums and tuples wherever JSON takes a value. NaN and the
infinities become null, lone surrogates become U+FFFD.
"""

from collections.abc import Iterable
from typing import Any, ClassVar, TypeGuard

import attrs
import orjson

from persona.errors import InvalidRequest, ParseError, PersonaError

Id = str | int | None
"""What a reply carries. A request's own is never None: that stands for an id that could not be read."""

Params = dict[str, Any] | list[Any] | None

MAX_ID = 2**53
"""Beyond it a double, which is what many clients keep numbers in, no longer holds every integer."""

MAX_BATCH = 50
"""Entries of a batch; the wire protocol's own number."""

_PARSER_MAX_DEPTH = 1024
"""orjson refuses what is nested deeper, and so is safe to be handed anything."""
_ENCODER_MAX_DEPTH = 254
_ABSENT: Any = object()


# Not frozen, as the others are: one is made for each message, and freezing makes that three times as dear.
@attrs.define
class Request:
    """A call that must be answered under `id`, a string or an integer."""

    id: str | int
    method: str
    params: Params = None


@attrs.frozen
class Notification:
    """A call that is never answered, even when it fails."""

    id: ClassVar[None] = None
    method: str
    params: Params = None


@attrs.frozen
class Invalid:
    """What must be answered with `error`. `id` is None where it could not be read."""

    id: Id
    error: PersonaError


@attrs.frozen
class Dropped:
    """Nothing but `count` responses nobody asked for: to be counted, never answered."""

    count: int = 1


@attrs.frozen
class Batch:
    """Entries in the order they were sent, never empty; `dropped` counts the responses left out."""

    entries: tuple[Request | Notification | Invalid, ...]
    dropped: int = 0


Message = Request | Notification | Batch | Invalid | Dropped


def decode(data: bytes | str, *, max_depth: int = 64, max_batch: int = MAX_BATCH) -> Message:
    """What a client's frame says, by the rules above. Never raises."""
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as exc:
        if _gave_up_on_depth(exc):
            return _too_deep(None, max_depth)
        return Invalid(None, ParseError(f"the message is not JSON, at line {exc.lineno} column {exc.colno}"))
    # Each level takes two characters, so a short message cannot be too deep; counting brackets
    # clears nearly every other; only what has enough of them pays for a walk.
    may_be_deep = len(data) > 2 * max_depth and _count_opening(data) > max_depth
    if isinstance(value, list):
        return _decode_batch(value, max_depth=max_depth if may_be_deep else None, max_batch=max_batch)
    if may_be_deep and _is_deeper(value, max_depth):
        return _too_deep(value, max_depth)
    return _decode_one(value)


def _decode_batch(values: list[Any], *, max_depth: int | None, max_batch: int) -> Message:
    """`max_depth` is None where the frame is known to keep to it."""
    if not values:
        return Invalid(None, InvalidRequest("a batch has at least one entry"))
    if len(values) > max_batch:
        return Invalid(None, InvalidRequest(f"a batch has at most {max_batch} entries, not {len(values)}"))
    entries: list[Request | Notification | Invalid] = []
    for value in values:
        if max_depth is not None and _is_deeper(value, max_depth - 1):
            entries.append(_too_deep(value, max_depth))
            continue
        entry = _decode_one(value)
        if not isinstance(entry, Dropped):
            entries.append(entry)
    dropped = len(values) - len(entries)
    return Batch(tuple(entries), dropped) if entries else Dropped(dropped)


def _decode_one(value: Any) -> Request | Notification | Invalid | Dropped:
    if not isinstance(value, dict):
        return Invalid(None, InvalidRequest("a request is an object"))
    get = value.get
    method = get("method", _ABSENT)
    if method is _ABSENT and ("result" in value or "error" in value):
        return Dropped()
    request_id = get("id", _ABSENT)
    params = get("params", _ABSENT)
    if request_id is not _ABSENT and not _is_id(request_id):
        return _refusal(None, "id", "a string or an integer within ±2^53")
    if get("jsonrpc") != "2.0":
        return _refusal(request_id, "jsonrpc", 'the string "2.0"')
    if not isinstance(method, str) or not method:
        return _refusal(request_id, "method", "a non-empty string")
    if params is _ABSENT:
        params = None
    elif not isinstance(params, (dict, list)):
        return _refusal(request_id, "params", "an object or an array")
    if request_id is _ABSENT:
        return Notification(method, params)
    return Request(request_id, method, params)


def _is_id(value: Any) -> TypeGuard[str | int]:
    # `type() is`: a bool is an int to isinstance. What orjson made a float of, an integer of 2^64
    # or more among it, is no int.
    return isinstance(value, str) or (type(value) is int and -MAX_ID <= value <= MAX_ID)


def _refusal(request_id: Any, member: str, expected: str) -> Invalid:
    error = InvalidRequest(f"'{member}' must be {expected}", field=member)
    return Invalid(None if request_id is _ABSENT else request_id, error)


def _too_deep(value: Any, max_depth: int) -> Invalid:
    request_id = value.get("id") if isinstance(value, dict) else None
    error = InvalidRequest(f"the message is nested deeper than {max_depth} levels")
    return Invalid(request_id if _is_id(request_id) else None, error)


def _count_opening(data: bytes | str) -> int:
    if isinstance(data, str):
        return data.count("[") + data.count("{")
    return data.count(b"[") + data.count(b"{")


def _is_deeper(value: Any, max_depth: int) -> bool:
    """Whether more than `max_depth` arrays and objects stand inside one another.

    Level by level, so that depth costs no recursion.
    """
    level = [value] if isinstance(value, (dict, list)) else []
    for _ in range(max_depth):
        if not level:
            return False
        level = [
            child
            for container in level
            for child in (container.values() if isinstance(container, dict) else container)
            if isinstance(child, (dict, list))
        ]
    return bool(level)


def _gave_up_on_depth(exc: orjson.JSONDecodeError) -> bool:
    """Whether the parser met its own depth limit in a text that may well be JSON.

    Told by brackets, not by the parser's wording, which changes between versions; text that
    leaves some open is not JSON at any depth.
    """

    def unclosed(text: str) -> int:
        return text.count("[") + text.count("{") - text.count("]") - text.count("}")

    return unclosed(exc.doc[: exc.pos]) >= _PARSER_MAX_DEPTH and unclosed(exc.doc) == 0


def encode_result(id: Id, result: Any) -> bytes:  # noqa: A002  (the wire's own word)
    """A response that carries `result`. Raises `TypeError` for what JSON cannot hold."""
    return _encode({"jsonrpc": "2.0", "id": id, "result": result})


def encode_error(id: Id, error: PersonaError) -> bytes:  # noqa: A002
    """A response that carries `error`. Never fails while `error.details` is JSON-ready."""
    return _encode({"jsonrpc": "2.0", "id": id, "error": error.to_wire()})


def encode_notification(method: str, params: object = None) -> bytes:
    """A notification. `params` is an object, an array, an attrs instance or None.

    Raises `TypeError` for what JSON cannot hold.
    """
    if params is None:
        return _encode({"jsonrpc": "2.0", "method": method})
    return _encode({"jsonrpc": "2.0", "method": method, "params": params})


def encode_request(id: str | int, method: str, params: object = None) -> bytes:  # noqa: A002
    """A request; `params` as in `encode_notification`. Raises `TypeError` likewise."""
    if params is None:
        return _encode({"jsonrpc": "2.0", "id": id, "method": method})
    return _encode({"jsonrpc": "2.0", "id": id, "method": method, "params": params})


def encode_batch(parts: Iterable[bytes]) -> bytes:
    """Encoded messages, at least one, as one array. Raises `ValueError` when there is none: an
    empty batch is silence, not `[]`."""
    body = b",".join(parts)
    if not body:
        raise ValueError("a batch needs at least one message")
    return b"[" + body + b"]"


def _encode(message: dict[str, Any]) -> bytes:
    try:
        return orjson.dumps(message, default=_as_dict)
    except orjson.JSONEncodeError:
        # A model or an upstream service can hand us half a surrogate pair; losing the character
        # is better than losing the answer. Anything else fails again, as it should.
        return orjson.dumps(_scrub(message, _ENCODER_MAX_DEPTH), default=_as_dict)


def _as_dict(value: Any) -> dict[str, Any]:
    """orjson's hook for types it does not know; it comes back for what is inside."""
    fields: tuple[attrs.Attribute[Any], ...] | None = getattr(type(value), "__attrs_attrs__", None)
    if fields is None:
        raise TypeError
    try:
        given: dict[str, Any] = vars(value)
    except TypeError:  # its fields are slots
        given = {(name := field.name): getattr(value, name) for field in fields}
    return given


def _scrub(value: Any, levels: int) -> Any:
    """`value` with U+FFFD for each lone surrogate. Below `levels` it is left as it is: the encoder
    refuses what is nested deeper."""
    if isinstance(value, str):
        return value.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    if levels == 0:
        return value
    if isinstance(value, dict):
        return {_scrub(key, 0): _scrub(child, levels - 1) for key, child in value.items()}
    if isinstance(value, (list, tuple)):
        return [_scrub(child, levels - 1) for child in value]
    if attrs.has(type(value)):
        return _scrub(_as_dict(value), levels)
    return value
