"""Settings: declared once, loaded from file, environment and flags, and shown with their sources.

Import from here; the modules below are arranged for their readers: `field` (what a setting is),
`sections`, `limits`, `llm` and `watching` (which there are), `checks` (what values must look like), `load`,
`report`.
"""

from persona.config.field import InconsistentSettingsError, Section, Setting
from persona.config.limits import LimitSettings
from persona.config.llm import LLMSettings
from persona.config.load import LoadedSettings, Source, fingerprint, load_settings, settings_file
from persona.config.report import Row, describe, settings_markdown, settings_table, settings_toml
from persona.config.sections import (
    AuthSettings,
    AuthToken,
    BackgroundSettings,
    DatabaseSettings,
    PersonaSettings,
    ServerSettings,
    Settings,
    declared,
)
from persona.config.watching import LogSettings, MonitorSettings

__all__ = [
    "AuthSettings",
    "AuthToken",
    "BackgroundSettings",
    "DatabaseSettings",
    "InconsistentSettingsError",
    "LLMSettings",
    "LimitSettings",
    "LoadedSettings",
    "LogSettings",
    "MonitorSettings",
    "PersonaSettings",
    "Row",
    "Section",
    "ServerSettings",
    "Setting",
    "Settings",
    "Source",
    "declared",
    "describe",
    "fingerprint",
    "load_settings",
    "settings_file",
    "settings_markdown",
    "settings_table",
    "settings_toml",
]
