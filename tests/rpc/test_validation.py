"""Raw params -> typed ones, or an error naming the field."""

import math
from typing import Annotated, Any

import pytest
from msgspec import Meta, Struct, field

from persona.errors import InvalidParams
from persona.rpc import params as p
from persona.rpc.validation import convert_params

Colour = Annotated[str, Meta(pattern="^#[0-9a-f]{6}$", description="six digits after a #")]


class Inner(Struct, forbid_unknown_fields=True):
    size: Annotated[int, Meta(ge=1)] = 1


class Outer(Struct, forbid_unknown_fields=True):
    name: Annotated[str, Meta(min_length=1)]
    likings: dict[Annotated[str, Meta(min_length=1)], Annotated[int, Meta(le=100)]] = field(
        default_factory=dict
    )
    inner: Inner = field(default_factory=Inner)
    entries: list[int] = field(default_factory=list)
    colours: list[Colour] = field(default_factory=list)


@pytest.mark.parametrize(
    ("params", "expected"),
    [
        ({"name": "a"}, Outer(name="a")),
        (["a"], Outer(name="a")),
        (["a", {"x": 1}, {"size": 3}], Outer(name="a", likings={"x": 1}, inner=Inner(size=3))),
        ({"name": "a", "likings": {"unknown": 5}}, Outer(name="a", likings={"unknown": 5})),
    ],
)
def test_good_params_by_name_and_by_position(params: Any, expected: Outer) -> None:
    assert convert_params(params, Outer) == (expected, math.inf)


@pytest.mark.parametrize(
    ("params", "field"),
    [
        (None, "name"),
        ({}, "name"),
        ([], "name"),
        ({"name": ""}, "name"),
        ({"name": None}, "name"),
        ({"name": "a", "nmae": "b"}, "nmae"),
        ({"name": "a", "inner": {"size": 0}}, "inner.size"),
        ({"name": "a", "inner": {"sise": 1}}, "inner.sise"),
        ({"name": "a", "inner": 7}, "inner"),
        ({"name": "a", "likings": {"x": 101}}, "likings[...]"),
        ({"name": "a", "likings": {"": 5}}, "likings"),
        ({"name": "a", "entries": [1, True]}, "entries[1]"),
        (["a", {}, {}, [], [], 1.0, "one too many"], "params"),
        ({"name": "a", "timeout_s": 0}, "timeout_s"),
        ({"name": "a", "timeout_s": -1.5}, "timeout_s"),
        ({"name": "a", "timeout_s": "1"}, "timeout_s"),
        ({"name": "a", "timeout_s": True}, "timeout_s"),
        (["a", {}, {}, [], [], "soon"], "timeout_s"),
    ],
)
def test_bad_params_name_the_field(params: Any, field: str) -> None:
    with pytest.raises(InvalidParams) as caught:
        convert_params(params, Outer)
    assert caught.value.field == field
    if field:
        assert field in caught.value.message


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"name": "a", "likings": {"": 5}}, "a key of 'likings': Expected `str` of length >= 1"),
        ({"name": "a", "colours": ["#0000ff", "blue"]}, "'colours[1]': expected six digits after a #"),
    ],
)
def test_what_was_expected_is_told_in_words(params: Any, message: str) -> None:
    with pytest.raises(InvalidParams) as caught:
        convert_params(params, Outer)
    assert caught.value.message == message


@pytest.mark.parametrize(
    ("params", "params_type"),
    [
        ({"name": " x", "description": "y"}, p.CreatePersona),
        ({"persona_id": "aria", "name": "x\n"}, p.UpdatePersona),
        ({"topics": ["No Topic"]}, p.TopicParams),
    ],
)
def test_no_client_is_told_a_regular_expression_of_ours(params: Any, params_type: type[p.Params]) -> None:
    with pytest.raises(InvalidParams) as caught:
        convert_params(params, params_type)
    assert caught.value.field
    assert "regex" not in caught.value.message


@pytest.mark.parametrize(
    ("params", "timeout_s"),
    [
        ({"name": "a", "timeout_s": 2}, 2.0),
        ({"timeout_s": 0.5, "name": "a"}, 0.5),
        ({"name": "a", "timeout_s": None}, math.inf),
        (["a", {}, {}, [], [], 3.5], 3.5),
    ],
)
def test_every_method_takes_a_timeout_beside_its_own(params: Any, timeout_s: float) -> None:
    given = repr(params)
    assert convert_params(params, Outer) == (Outer(name="a"), timeout_s)
    assert repr(params) == given


def test_a_strange_name_is_shown_without_its_control_characters() -> None:
    with pytest.raises(InvalidParams) as caught:
        convert_params({"name": "a", "\x1b[2J" + "x" * 1000: 1}, Outer)
    assert caught.value.field is not None
    assert "\x1b" not in caught.value.message
    assert len(caught.value.field) == 64
