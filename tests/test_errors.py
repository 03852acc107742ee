"""The tree of errors: one code and one reason a class, and what of one goes over the wire."""

import re
from pathlib import Path
from typing import Any

import pytest

import persona
from persona import errors
from persona.errors import (
    DatabaseError,
    Overloaded,
    PersonaError,
    PersonaNotFound,
    SettingsError,
    StartupError,
)

PROTOCOL = Path(persona.__file__).parent.parent / "docs" / "protocol.md"
ON_THE_WIRE = [
    cls for cls in vars(errors).values() if isinstance(cls, type) and issubclass(cls, PersonaError)
]


def test_a_code_and_a_reason_belong_to_one_class() -> None:
    plain = [cls for cls in ON_THE_WIRE if cls.__name__ != "InternalError"]  # it is the root's own
    assert len({cls.code for cls in plain}) == len({cls.reason for cls in plain}) == len(plain)


def test_the_protocol_lists_every_class_with_its_code() -> None:
    text = PROTOCOL.read_text(encoding="utf-8")
    listed = {(int(code), reason) for code, reason in re.findall(r"\| (-32\d{3}) \| `?(\w+)`? \|", text)}
    assert listed == {(cls.code, cls.reason) for cls in ON_THE_WIRE}


@pytest.mark.parametrize(
    ("error", "data"),
    [
        (PersonaNotFound("no such persona"), {"reason": "persona_not_found", "retryable": False}),
        (
            Overloaded("full", field="message", retry_after_s=1.23456, details={"position": 3}),
            {
                "reason": "overloaded",
                "retryable": True,
                "retry_after_s": 1.235,
                "field": "message",
                "position": 3,
            },
        ),
    ],
)
def test_what_is_known_goes_over_the_wire_and_nothing_else(error: PersonaError, data: dict[str, Any]) -> None:
    assert error.to_wire() == {"code": error.code, "message": str(error), "data": data}


def test_a_command_that_cannot_start_says_what_kind_of_trouble_it_is() -> None:
    assert (StartupError.exit_code, SettingsError.exit_code, DatabaseError.exit_code) == (1, 2, 1)
