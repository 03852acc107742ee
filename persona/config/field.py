"""What a setting is: one declaration that validation, `persona config` and the docs all read.

`setting(...)` declares one inside an attrs class; `Setting` is the declaration read back. Nothing
here knows which settings there are: that is `sections`.
"""

import re
import unicodedata
from collections.abc import Callable, Iterator
from typing import Any, ClassVar, Literal, TypeVar, cast, get_args, get_origin

import attrs

from persona.errors import SettingsError

T = TypeVar("T")

MAX_SHOWN = 80
"""Characters of a rejected value that an error shows: enough to recognise it, and still one line."""

_TRUE = frozenset({"true", "yes", "on", "1"})
_FALSE = frozenset({"false", "no", "off", "0"})
_UNFIT = frozenset({"Cc", "Cs", "Zl", "Zp"})
_KEY = "setting"


class InconsistentSettingsError(SettingsError):
    """Values that are allowed alone but not together; `names` are the settings at odds."""

    def __init__(self, text: str, *names: str) -> None:
        super().__init__(text)
        self.names = names


@attrs.frozen(kw_only=True)
class Setting:
    """One key of one section, with all that is known about it.

    `unset` says what 0 or empty means where that is special. `accepts` turns one value (of a list:
    one entry) into what the program sees or raises `ValueError`; `form` describes what it wants. A
    `secret` is never shown. `flag` is the command-line flag that sets it, if there is one.
    """

    section: str
    key: str
    type: Any
    default: Any
    reason: str
    unit: str = ""
    minimum: float | None = None
    maximum: float | None = None
    form: str = ""
    accepts: Callable[[Any], Any] | None = None
    unset: str = ""
    secret: bool = False
    flag: str = ""

    @property
    def name(self) -> str:
        """As operators write it: `limits.max_connections`."""
        return f"{self.section}.{self.key}"

    @property
    def environment(self) -> str:
        """The environment variable: `PERSONA_LIMITS_MAX_CONNECTIONS`."""
        return f"PERSONA_{self.section}_{self.key}".upper()

    @property
    def choices(self) -> tuple[str, ...]:
        """The words allowed, where only a few are."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()

    @property
    def is_list(self) -> bool:
        return get_origin(self.type) is tuple

    @property
    def allowed(self) -> str:
        """What a value must be, to follow the words "must be"."""
        if self.choices:
            text = f"one of {', '.join(self.choices)}" if len(self.choices) > 1 else self.choices[0]
        elif self.type is bool:
            text = "true or false"
        elif self.type in (int, float):
            kind = "an integer" if self.type is int else "a number"
            text = f"{kind} from {self.minimum:.15g} to {self.maximum:.15g}"
        elif self.is_list:
            text = f"a list; each entry {self.form}"
        else:
            text = self.form or "text on one line"
        return f"{text} ({self._unset_name} = {self.unset})" if self.unset else text

    @property
    def _unset_name(self) -> str:
        return "0" if self.type in (int, float) else "empty"

    def checked(self, value: object) -> Any:
        """`value` as the program sees it. Raises `ValueError` saying what is allowed."""
        if self.choices:
            ok = isinstance(value, str) and value in self.choices
        elif self.type is bool:
            ok = isinstance(value, bool)
        elif self.type in (int, float):
            return self._checked_number(value)
        elif self.is_list:
            return self._checked_list(value)
        else:
            return self._checked_text(value)
        if not ok:
            raise ValueError(self.allowed)
        return value

    def _checked_number(self, value: object) -> int | float:
        # bool is an int to Python; `port = true` is still a mistake.
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise ValueError(self.allowed)
        if self.type is int and isinstance(value, float):
            raise ValueError(self.allowed)
        low, high = cast(float, self.minimum), cast(float, self.maximum)
        # NaN is in no range, and infinity beyond every one.
        if not (low <= value <= high or (self.unset and value == 0)):
            raise ValueError(self.allowed)
        return value if self.type is int else float(value)

    def _checked_list(self, value: object) -> tuple[Any, ...]:
        if not isinstance(value, list | tuple):
            raise ValueError(self.allowed)
        entries = []
        for number, entry in enumerate(value, start=1):
            try:
                entries.append(self.accepts(entry) if self.accepts else entry)
            except ValueError as error:
                # No cause: it may quote the entry, which may be a secret.
                raise ValueError(f"{self.allowed}; entry {number} is not: {error}") from None
        return tuple(entries)

    def _checked_text(self, value: object) -> str:
        # No control characters, line breaks or lone surrogates: such text is no file name, URL or
        # model, and could not be shown on a terminal or written to a TOML file.
        if not isinstance(value, str) or any(unicodedata.category(c) in _UNFIT for c in value):
            raise ValueError(self.allowed)
        if self.accepts and (value or not self.unset):
            try:
                return cast(str, self.accepts(value))
            except ValueError:
                raise ValueError(self.allowed) from None
        return value

    def parsed(self, text: str) -> Any:
        """The value that `text` from the environment or a flag stands for, checked.

        Lists are comma-separated there. Raises `ValueError` saying what is allowed.
        """
        return self.checked(self._from_text(text))

    def _from_text(self, text: str) -> object:
        if self.type is bool:
            word = text.strip().lower()
            return True if word in _TRUE else False if word in _FALSE else text
        if self.type is int:
            # Stricter than int(), which takes "1_000", other scripts' digits and any length.
            return int(text) if re.fullmatch(r"[+-]?[0-9]{1,20}", text) else text
        if self.type is float:
            try:
                return float(text)
            except ValueError:
                return text
        if self.is_list:
            return [entry.strip() for entry in text.split(",") if entry.strip()]
        return text

    def shown(self, value: object) -> str:
        """`value` for an error: quoted, on one line, shortened; a secret not at all."""
        if self.secret:
            return "(not shown)"
        # A password in a URL is refused by `accepts`, and must not leak by that refusal.
        text = re.sub(r"//.*@", "//***@", repr(value))
        return text if len(text) <= MAX_SHOWN else text[: MAX_SHOWN - 3] + "..."


def setting(default: T, **about: Any) -> T:
    """Declare a setting inside a section class; `about` are the fields of `Setting`.

    Says it returns the value's type, as `attrs.field` does, so that type checkers see an attribute
    with a default.
    """
    field: T = attrs.field(
        default=default,
        converter=attrs.Converter(_convert, takes_self=True, takes_field=True),
        metadata={_KEY: about},
        repr=not about.get("secret", False),
    )
    return field


def _convert(value: object, section: attrs.AttrsInstance, field: "attrs.Attribute[Any]") -> Any:
    # A converter, not a validator: 30 for a float and a list for a tuple become what was declared.
    declared = _read(cast("type[Section]", type(section)), field)
    try:
        return declared.checked(value)
    except ValueError as error:
        raise SettingsError(f"{declared.name} = {declared.shown(value)}: must be {error}") from None


def _read(section: "type[Section]", field: "attrs.Attribute[Any]") -> Setting:
    return Setting(
        section=section.section,
        key=field.name,
        type=field.type,
        default=field.default,
        **field.metadata[_KEY],
    )


@attrs.frozen
class Section:
    """A table of `persona.toml`. Its attributes are its keys.

    Making one with a value that is not allowed raises `SettingsError`.
    """

    section: ClassVar[str]

    @classmethod
    def declared(cls) -> Iterator[Setting]:
        """The section's settings, in the order they were declared."""
        return (_read(cls, field) for field in attrs.fields(cls))
