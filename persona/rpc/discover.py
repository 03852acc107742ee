"""The OpenRPC 1.4 document, made from the registry: it lists exactly the callable methods."""

from typing import Any

import msgspec

from persona.rpc.dispatch import MethodSpec
from persona.rpc.results import error_classes, error_schema
from persona.rpc.validation import Timeout

OPENRPC_VERSION = "1.4.0"
REF_TEMPLATE = "#/components/schemas/{name}"


def openrpc_document(specs: list[MethodSpec], *, version: str, url: str) -> dict[str, Any]:
    """The document for `specs`, served at `url`."""
    types = {t for spec in specs for t in (spec.params, spec.result)}
    schemas, components = msgspec.json.schema_components(
        sorted(types, key=lambda t: t.__name__), ref_template=REF_TEMPLATE
    )
    del schemas
    return {
        "openrpc": OPENRPC_VERSION,
        "info": {
            "title": "persona",
            "version": version,
            "description": "Chat with AI personas: JSON-RPC 2.0, one value a WebSocket text frame.",
            "license": {"name": "MIT"},
        },
        "servers": [{"name": "this server", "url": url}],
        "methods": [_method(spec, components) for spec in specs],
        "components": {"schemas": components, "errors": _errors()},
    }


def _method(spec: MethodSpec, components: dict[str, Any]) -> dict[str, Any]:
    declared = components[spec.params.__name__]
    result_name = spec.result.__name__
    required = set(declared.get("required", ()))
    return {
        "name": spec.name,
        "summary": spec.summary,
        "paramStructure": "either",
        "params": [
            *(
                {"name": name, "required": name in required, "schema": declared["properties"][name]}
                for name in spec.params.__struct_fields__
            ),
            {"name": "timeout_s", "required": False, "schema": msgspec.json.schema(Timeout | None)},
        ],
        "result": {"name": result_name, "schema": {"$ref": REF_TEMPLATE.format(name=result_name)}},
        "errors": [{"$ref": f"#/components/errors/{c.reason}"} for c in error_classes()],
    }


def _errors() -> dict[str, Any]:
    return {
        c.reason: {"code": c.code, "message": (c.__doc__ or c.reason).split("\n")[0], "data": error_schema()}
        for c in error_classes()
    }
