"""The OpenRPC document: valid, and exactly what can be called."""

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from jsonschema.validators import Draft7Validator, Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT7
from trio.testing import MockClock

from persona.client import RemoteError
from persona.testing import open_server

SCHEMA = json.loads((Path(__file__).parent / "data" / "openrpc-1.4.json").read_text())


@pytest.fixture
async def document(autojump_clock: MockClock) -> Any:
    async with open_server() as server, server.connect() as client:
        return await client.call("rpc.discover", {})


async def test_it_is_valid_openrpc(document: Any) -> None:
    # The published schema refers to a dialect of its own for the schemas inside; those have a test
    # of their own below, so here it is enough that they are objects and references are text.
    dialect = {
        "type": ["object", "boolean"],
        "definitions": {"JSONSchemaObject": {"properties": {"$ref": {"type": "string"}}}},
    }
    resource = Resource.from_contents(dialect, default_specification=DRAFT7)
    registry = Registry().with_resources(
        (f"https://meta.json-schema.tools{slash}", resource) for slash in ("", "/")
    )
    schema = {key: value for key, value in SCHEMA.items() if key != "$schema"}
    Draft7Validator(schema, registry=registry).validate(document)


async def test_every_schema_in_it_is_a_valid_schema(document: Any) -> None:
    for schema in document["components"]["schemas"].values():
        Draft202012Validator.check_schema(schema)
    for method in document["methods"]:
        for param in method["params"]:
            Draft202012Validator.check_schema(param["schema"])
            assert "$ref" not in param["schema"] or param["schema"]["$ref"].startswith("#/components/")


async def test_it_lists_exactly_the_callable_methods(autojump_clock: MockClock) -> None:
    async with open_server() as server, server.connect() as client:
        document = await client.call("rpc.discover", {})
        listed = [method["name"] for method in document["methods"]]
        assert listed == [spec.name for spec in server.server.registry.specs()]
        for name in listed:
            try:
                await client.call(name, {"no such parameter": 1})
            except RemoteError as error:
                assert error.reason == "invalid_params", (name, error)
            else:
                pytest.fail(f"{name} took an unknown parameter")


async def test_what_methods_answer_fits_the_published_schemas(autojump_clock: MockClock) -> None:
    async with open_server() as server, server.connect() as client:
        document = await client.call("rpc.discover", {})
        results = {method["name"]: method["result"]["schema"] for method in document["methods"]}
        answers: dict[str, Any] = {"rpc.discover": document}

        async def ask(name: str, /, **params: Any) -> Any:
            answers[name] = await client.call(name, params)
            return answers[name]

        await ask("persona.create", name="Milo", description="a miller")
        await ask("persona.list")
        await ask("persona.get", persona_id="milo")
        await ask("persona.update", persona_id="milo", charisma=3)
        await ask("persona.switch", persona_id="aria")
        said = await ask("persona.chat", message="Hello")
        await ask("conversation.regenerate")
        await ask("conversation.edit", turn_id=said["parent_id"], message="Hello!")
        await ask("conversation.select", turn_id=said["turn_id"])
        await ask("persona.status")
        await ask("conversation.history")
        await ask("conversation.list")
        await ask("session.info")
        await ask("conversation.delete", conversation_id=said["conversation_id"])
        await ask("events.subscribe", topics=["personas"])
        await ask("events.unsubscribe", topics=["personas"])
        await ask("system.ping", payload={"a": [1, None]})
        await ask("system.status")
        await ask("system.metrics")
        await ask("system.tasks", siblings=2)
        await ask("system.models")
        await ask("system.broadcast", type="t", data={"a": 1})
        await ask("persona.delete", persona_id="milo")
        await ask("session.clear")
    unasked = set(results) - set(answers)
    streams = {"persona.chat_stream", "conversation.regenerate_stream", "conversation.edit_stream"}
    assert unasked == {*streams, "stream.cancel"}  # see tests/e2e
    for name, answer in answers.items():
        whole = {**results[name], "components": document["components"]}
        jsonschema.validate(answer, whole, cls=Draft202012Validator)
