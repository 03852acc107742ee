"""Loading settings: defaults, then `persona.toml`, then the environment, then flags.

Each layer is checked in full even where a stronger one overrides it: a mistake that is hidden today
becomes tomorrow's surprise. Every complaint is a `SettingsError` of one line that says where the value
came from, and no complaint ever shows a secret.
"""

import difflib
import stat
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

import attrs

from persona.config.field import InconsistentSettingsError, Setting
from persona.config.sections import Settings, declared, sections
from persona.errors import SettingsError

DEFAULT_FILE = "persona.toml"
FILE_VARIABLE = "PERSONA_CONFIG"
_PREFIX = "PERSONA_"


@attrs.frozen
class Source:
    """Where a value came from. `detail` is the file's name, the variable or the flag."""

    kind: Literal["default", "file", "environment", "flag"]
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.kind} {self.detail}".rstrip()


@attrs.frozen
class LoadedSettings:
    """Settings, and the source of each by its `section.key` name."""

    settings: Settings
    sources: Mapping[str, Source]


_Found = Iterator[tuple[Setting, Any, Source]]


def load_settings(
    *, file: Path | None, environ: Mapping[str, str], flags: Mapping[str, object]
) -> LoadedSettings:
    """The effective settings.

    `file` is the file the operator named; if it is `None`, `PERSONA_CONFIG` may name one, else
    `persona.toml` in the current directory is used if it is there. `flags` maps `section.key` to a
    value or to its text; `None` means the flag was not given.

    Raises `SettingsError`, with one line, for an unknown key or variable, a value that is not
    allowed, and a file that cannot be read.
    """
    known = {setting.name: setting for setting in declared()}
    values: dict[str, Any] = {name: setting.default for name, setting in known.items()}
    sources = {name: Source("default") for name in known}
    for layer in (
        _from_file(known, file, environ),
        _from_environment(known, environ),
        _from_flags(known, flags),
    ):
        for setting, value, source in layer:
            values[setting.name], sources[setting.name] = value, source
    return LoadedSettings(_build(values, sources), MappingProxyType(sources))


def settings_file(file: Path | None, environ: Mapping[str, str]) -> Path:
    """The file that `load_settings` reads, if there is one."""
    return file or Path(environ.get(FILE_VARIABLE) or DEFAULT_FILE)


def fingerprint(file: Path) -> object:
    """Another one whenever the file is another one, or has been written to; `None` where it can be read but
    once, as a pipe can. Never raises."""
    try:
        found = file.stat()
    except OSError as error:
        return error.errno
    if not stat.S_ISREG(found.st_mode):
        return None
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def _build(values: Mapping[str, Any], sources: Mapping[str, Source]) -> Settings:
    try:
        made = {
            cls.section: cls(**{setting.key: values[setting.name] for setting in cls.declared()})
            for cls in sections()
        }
    except InconsistentSettingsError as error:
        where = ", ".join(f"{name}: {sources[name]}" for name in error.names)
        raise SettingsError(f"{error} ({_one_line(where)})") from None
    return Settings(**made)  # type: ignore[arg-type]


def _from_file(known: Mapping[str, Setting], file: Path | None, environ: Mapping[str, str]) -> _Found:
    named_by_variable = environ.get(FILE_VARIABLE, "") if file is None else ""
    path = settings_file(file, environ)
    shown = _one_line(path) + (f" (named by {FILE_VARIABLE})" if named_by_variable else "")
    implied = file is None and not named_by_variable
    table = _read_toml(path, shown, may_be_missing=implied)
    source = Source("file", _one_line(path))
    names = {setting.section for setting in known.values()}
    for section, keys in table.items():
        if section not in names:
            raise SettingsError(f"unknown section {_quoted(section)} in {shown}; {_hint(section, names)}")
        if not isinstance(keys, dict):
            # The value is not shown: it may be a secret in the wrong place.
            raise SettingsError(f"{section} in {shown}: must be a table, [{section}]")
        for key, value in keys.items():
            setting = known.get(f"{section}.{key}")
            if setting is None:
                allowed = [other.key for other in known.values() if other.section == section]
                name = _quoted(f"{section}.{key}")
                raise SettingsError(f"unknown key {name} in {shown}; {_hint(key, allowed)}")
            yield setting, _checked(setting, value, source), source


def _read_toml(path: Path, shown: str, *, may_be_missing: bool) -> dict[str, Any]:
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError as error:
        if may_be_missing:
            return {}
        raise SettingsError(f"cannot read {shown}: {error.strerror}") from None
    except OSError as error:
        raise SettingsError(f"cannot read {shown}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise SettingsError(f"{shown} is not UTF-8 text (byte {error.start})") from None
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise SettingsError(f"{shown} is not valid TOML: {_one_line(error)}") from None
    except RecursionError:
        raise SettingsError(f"{shown} is not valid TOML: nested too deeply") from None


def _from_environment(known: Mapping[str, Setting], environ: Mapping[str, str]) -> _Found:
    by_variable = {setting.environment: setting for setting in known.values()}
    for variable in sorted(environ):
        if not variable.startswith(_PREFIX) or variable == FILE_VARIABLE:
            continue
        setting = by_variable.get(variable)
        if setting is None:
            hint = _hint(
                variable, [*by_variable, FILE_VARIABLE], otherwise="`persona config` lists what there is"
            )
            raise SettingsError(f"unknown environment variable {_quoted(variable)}; {hint}")
        source = Source("environment", variable)
        yield setting, _checked(setting, environ[variable], source), source


def _from_flags(known: Mapping[str, Setting], flags: Mapping[str, object]) -> _Found:
    for name, value in flags.items():
        if value is not None:
            setting = known[name]
            source = Source("flag", setting.flag)
            yield setting, _checked(setting, value, source), source


def _checked(setting: Setting, value: object, source: Source) -> Any:
    # TOML has types, so a file's text is text; the environment and flags have nothing but text.
    is_text = source.kind != "file" and isinstance(value, str)
    try:
        return setting.parsed(str(value)) if is_text else setting.checked(value)
    except ValueError as error:
        raise SettingsError(f"{setting.name} = {setting.shown(value)} ({source}): must be {error}") from None


def _hint(word: str, allowed: Iterable[str], *, otherwise: str = "") -> str:
    allowed = sorted(allowed)
    # A missing or spare underscore is the commonest slip, and close in difflib's measure too.
    close = difflib.get_close_matches(word, allowed, n=1)
    if close:
        return f"did you mean {close[0]}?"
    return otherwise or f"allowed: {', '.join(allowed)}"


def _quoted(name: str) -> str:
    """A plain name as it is; any other, which a file's author may quote into a key, escaped."""
    return name if name.isprintable() else repr(name)


def _one_line(thing: object) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in str(thing))
