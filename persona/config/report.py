"""Settings for people: rows for `persona config` and the docs, and an effective `persona.toml`.

Secrets never pass through here in the clear.
"""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import attrs

from persona.config.field import Setting
from persona.config.load import LoadedSettings
from persona.config.sections import AuthToken, Settings, declared, sections


@attrs.frozen
class Row:
    """One setting and the value it has."""

    setting: Setting
    value: Any = attrs.field(repr=False)

    @property
    def text(self) -> str:
        """The value as TOML; of a secret, only that there is one (a token's name and role are none)."""
        if not self.setting.secret:
            return toml_value(self.value)
        if isinstance(self.value, tuple):
            shown = (f'{{name = "{t.name}", role = "{t.role}", hash = (not shown)}}' for t in self.value)
            return f"[{', '.join(shown)}]"
        return "(not shown)" if self.value else '""'

    @property
    def meaning(self) -> str:
        """What 0 or empty means, if that is the value and it is special."""
        return self.setting.unset if not self.value and self.setting.type is not bool else ""


def describe(settings: Settings) -> Iterator[Row]:
    """A row for each setting, in the order of declaration."""
    for setting in declared():
        yield Row(setting, getattr(getattr(settings, setting.section), setting.key))


def toml_value(value: object) -> str:
    """A value as TOML would write it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        # JSON's string is TOML's, but for DEL; escaping beyond ASCII would write surrogate pairs,
        # which TOML refuses.
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, tuple):
        return f"[{', '.join(map(toml_value, value))}]"
    if isinstance(value, AuthToken):
        raise TypeError("a token is a secret")
    return repr(value)


def settings_table(loaded: LoadedSettings) -> str:
    """What `persona config` prints: key, value, unit and source in aligned columns."""
    rows = [("key", "value", "unit", "source")]
    for row in describe(loaded.settings):
        value = f"{row.text} ({row.meaning})" if row.meaning else row.text
        rows.append((row.setting.name, value, row.setting.unit, str(loaded.sources[row.setting.name])))
    widths = [max(len(line[column]) for line in rows) for column in range(3)]
    return "\n".join(
        "  ".join([*(cell.ljust(width) for cell, width in zip(line, widths, strict=False)), line[3]]).rstrip()
        for line in rows
    )


def settings_toml(loaded: LoadedSettings) -> str:
    """An effective `persona.toml`: it loads back to the same settings, but for secrets.

    Those are there as comments that do not show them.
    """
    lines = ["# Effective settings. Secrets are left out: add them, or set them in the environment."]
    for row in describe(loaded.settings):
        setting, source = row.setting, loaded.sources[row.setting.name]
        if f"[{setting.section}]" not in lines:
            lines += ["", f"[{setting.section}]"]
        hidden = "# " if setting.secret else ""
        origin = f"  # {source}" if source.kind != "default" else ""
        lines.append(f"{hidden}{setting.key} = {row.text}{origin}")
    return "\n".join(lines) + "\n"


def settings_markdown() -> str:
    """The docs' tables, one a section, made from the declarations."""
    rows = list(describe(Settings()))
    parts = []
    for cls in sections():
        lines = [f"### `[{cls.section}]`", "", (cls.__doc__ or "").strip().partition("\n")[0], ""]
        lines += _markdown_table(row for row in rows if row.setting.section == cls.section)
        parts.append("\n".join(lines))
    return "\n\n".join(parts) + "\n"


def _markdown_table(rows: Iterable[Row]) -> Iterator[str]:
    yield "| key | default | unit | allowed | why |"
    yield "|---|---|---|---|---|"
    for row in rows:
        setting = row.setting
        key = f"`{setting.key}`" + (f"<br>`{setting.flag}`" if setting.flag else "")
        cells = (key, f"`{row.text}`", setting.unit, setting.allowed, setting.reason)
        yield f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"
