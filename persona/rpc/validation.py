"""Raw params -> a `Struct`, or `InvalidParams` naming the field."""

import math
import re
import typing
from collections.abc import Iterator
from typing import Annotated, Any, TypeVar

import msgspec
from msgspec import Meta, Struct

from persona.errors import InvalidParams

Params = dict[str, Any] | list[Any] | None

P = TypeVar("P", bound=Struct)

Timeout = Annotated[
    float, Meta(gt=0, description="seconds the client will wait, where the server's limit is more")
]
"""`timeout_s`, which every method takes beside its own params."""

_MISSING = re.compile(r"missing required field `(?P<name>\w+)`")
_PATTERN = re.compile(r"^Expected `str` matching regex (?P<pattern>.*) - at `")
_PATH = re.compile(r" - at `(?P<key>key` in `)?\$\.?(?P<path>[^`]*)`$")


def convert_params(params: Params, params_type: type[P]) -> tuple[P, float]:
    """`params` as a `params_type`, and the seconds the client will wait: infinity where it did not say.

    Positional params fill the fields in the order of their declaration, `timeout_s` last. Raises
    `InvalidParams` naming the field that is missing, unknown, of the wrong type or out of range.
    """
    named, timeout_s = _named(params, params_type), math.inf
    if "timeout_s" in named:
        named = dict(named)
        timeout_s = _timeout_s(named.pop("timeout_s"))
    try:
        return msgspec.convert(named, params_type), timeout_s
    except msgspec.ValidationError as exc:
        # That says which field is unknown, and not which ones are known.
        _refuse_unknown(named, params_type, "")
        raise _explain(str(exc), params_type) from None


def _named(params: Params, params_type: type[Struct]) -> dict[str, Any]:
    if params is None:
        return {}
    if isinstance(params, dict):
        return params
    names = [*_fields(params_type), "timeout_s"]
    if len(params) > len(names):
        text = f"at most {len(names)} positional params are taken, {len(params)} were given"
        raise InvalidParams(text, field="params")
    return dict(zip(names, params, strict=False))


def _timeout_s(value: object) -> float:
    try:
        timeout_s = msgspec.convert(value, Timeout | None)
    except msgspec.ValidationError as exc:
        raise InvalidParams(f"'timeout_s': {exc}", field="timeout_s") from None
    return math.inf if timeout_s is None else timeout_s


def _refuse_unknown(params: dict[str, Any], params_type: type[Struct], prefix: str) -> None:
    fields = _fields(params_type)
    for name, value in params.items():
        if name not in fields:
            shown = prefix + _printable(name)
            known = ", ".join(fields) or "none"
            raise InvalidParams(f"unknown parameter '{shown}'; known are: {known}", field=shown)
        nested = fields[name]
        if nested is not None and isinstance(value, dict):
            _refuse_unknown(value, nested, f"{prefix}{name}.")


def _fields(params_type: type[Struct]) -> dict[str, type[Struct] | None]:
    """Field names in order, each with the class its value is, if that has fields of its own."""
    hints = typing.get_type_hints(params_type)
    return {name: _struct(hints[name]) for name in params_type.__struct_fields__}


def _struct(hint: Any) -> type[Struct] | None:
    return hint if isinstance(hint, type) and issubclass(hint, Struct) else None


def _explain(text: str, params_type: type[Struct]) -> InvalidParams:
    if missing := _MISSING.search(text):
        name = missing["name"]
        prefix = found["path"] + "." if (found := _PATH.search(text)) else ""
        return InvalidParams(f"missing parameter '{prefix}{name}'", field=prefix + name)
    if found := _PATH.search(text):
        path = found["path"]
        what = f"a key of '{path}'" if found["key"] else f"'{path}'"
        expected = _in_words(text, path, params_type) or text[: found.start()]
        return InvalidParams(f"{what}: {expected}", field=path)
    return InvalidParams(text)


def _in_words(text: str, path: str, params_type: type[Struct]) -> str | None:
    """The description of the pattern that `text` shows, where a field of `params_type` has one."""
    shown = _PATTERN.search(text)
    if shown is None:
        return None
    hint = typing.get_type_hints(params_type, include_extras=True).get(re.split(r"[.\[]", path)[0])
    for meta in _metas(hint):
        if repr(meta.pattern) == shown["pattern"] and meta.description:
            return f"expected {meta.description}"
    return None


def _metas(hint: Any) -> Iterator[Meta]:
    for part in typing.get_args(hint):
        if isinstance(part, Meta):
            yield part
        yield from _metas(part)


def _printable(name: str) -> str:
    return "".join(c if c.isprintable() else "?" for c in name[:64])
