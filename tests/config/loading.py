"""Loads settings as a test gives them."""

from pathlib import Path
from typing import Any

import pytest

import persona
from persona.config import LoadedSettings, Setting, Settings, declared, load_settings
from persona.errors import SettingsError

PACKAGE = Path(persona.__file__).parent
DOCS = PACKAGE.parent / "docs" / "operations.md"
HASH = "sha256:" + "0123456789abcdef" * 4
ALL = {setting.name: setting for setting in declared()}


def load(
    toml: str | None = None, environ: dict[str, str] | None = None, flags: dict[str, object] | None = None
) -> LoadedSettings:
    file = None
    if toml is not None:
        file = Path("given.toml")
        file.write_text(toml, encoding="utf-8")
    return load_settings(file=file, environ=environ or {}, flags=flags or {})


def complaint(
    toml: str | None = None, environ: dict[str, str] | None = None, flags: dict[str, object] | None = None
) -> str:
    with pytest.raises(SettingsError) as caught:
        load(toml, environ, flags)
    text = str(caught.value)
    assert text.isprintable(), "not one line"
    assert caught.value.__cause__ is None
    return text


def put(setting: Setting, value: object) -> Any:
    """What the section makes of `value` when built by hand."""
    cls = type(getattr(Settings(), setting.section))
    return getattr(cls(**{setting.key: value}), setting.key)


SECRETIVE = {"PERSONA_AUTH_TOKENS": f"game:user:{HASH}", "PERSONA_LLM_API_KEY": "sk-s3cret"}
