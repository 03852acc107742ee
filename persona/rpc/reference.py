"""The method tables of `docs/protocol.md`, made from the registry."""

from collections.abc import Iterator
from itertools import groupby
from typing import Any

import attrs
import msgspec

from persona.rpc.dispatch import MethodSpec
from persona.rpc.results import error_classes


def methods_markdown(specs: list[MethodSpec]) -> str:
    """One table a namespace: name, params with type and default, result fields."""
    lines: list[str] = []
    for namespace, group in groupby(specs, key=lambda spec: spec.name.split(".")[0]):
        lines += [f"#### {namespace}", "", "| method | params | result |", "|---|---|---|"]
        lines += [_row(spec) for spec in group]
        lines.append("")
    return "\n".join(lines)


def errors_markdown() -> str:
    """The error table: code, reason, whether a retry can help, when."""
    lines = ["| code | reason | retryable | when |", "|---|---|---|---|"]
    for cls in error_classes():
        when = (cls.__doc__ or "").split("\n")[0]
        lines.append(f"| {cls.code} | `{cls.reason}` | {'yes' if cls.retryable else 'no'} | {when} |")
    return "\n".join(lines)


def _row(spec: MethodSpec) -> str:
    params = "<br>".join(_param(name, schema, required) for name, schema, required in _fields(spec.params))
    result = ", ".join(f"`{field.name}`" for field in attrs.fields(spec.result))
    marks = " *(admin)*" if spec.admin else ""
    return f"| `{spec.name}`{marks}<br>{spec.summary} | {params or 'none'} | {result} |"


def _fields(params_type: type[msgspec.Struct]) -> Iterator[tuple[str, dict[str, Any], bool]]:
    _, components = msgspec.json.schema_components([params_type])
    declared = components[params_type.__name__]
    for name in params_type.__struct_fields__:
        yield name, declared["properties"][name], name in declared["required"]


def _param(name: str, schema: dict[str, Any], required: bool) -> str:
    default = schema.get("default")
    suffix = "" if required else "?" if default is None else f"={default}"
    return f"`{name}{suffix}` {_type(schema)}".rstrip()


def _type(schema: dict[str, Any]) -> str:
    """A few words for a schema: `string, 1-80 characters`."""
    if "anyOf" in schema:
        kinds = [_type(part) for part in schema["anyOf"] if part.get("type") != "null"]
        return " or ".join(kinds)
    if "$ref" in schema:
        return str(schema["$ref"]).rsplit("/", 1)[-1]
    kind = schema.get("type", "any")
    bounds = _bounds(schema)
    return f"{kind} {bounds}".strip()


def _bounds(schema: dict[str, Any]) -> str:
    for low, high in (("minimum", "maximum"), ("minLength", "maxLength"), ("minItems", "maxItems")):
        if low in schema and high in schema:
            return f"{schema[low]} to {schema[high]}"
        if high in schema:
            return f"to {schema[high]}"
    return ""
