"""What every setting declares, and what it makes of a value."""

import pytest

from persona.config import Setting
from persona.errors import SettingsError
from tests.config.loading import ALL, put


@pytest.mark.parametrize("setting", ALL.values(), ids=ALL)
def test_every_default_is_allowed_and_has_its_type(setting: Setting) -> None:
    value = put(setting, setting.default)
    assert value == setting.default
    assert type(value) is type(setting.default)


@pytest.mark.parametrize("setting", ALL.values(), ids=ALL)
def test_every_setting_has_a_reason_and_its_name_says_its_unit(setting: Setting) -> None:
    assert setting.reason.endswith(".")
    assert (setting.unit == "s") == (setting.key.endswith("_s") and not setting.key.endswith("_per_s"))
    assert (setting.unit == "bytes") == setting.key.endswith("_bytes")
    if setting.type is float:
        assert isinstance(setting.default, float)


@pytest.mark.parametrize(
    "setting", [s for s in ALL.values() if s.type in (int, float)], ids=lambda setting: setting.name
)
def test_numbers_are_held_to_their_range(setting: Setting) -> None:
    assert setting.minimum is not None
    assert setting.maximum is not None
    for edge in (setting.minimum, setting.maximum, int(setting.maximum)):
        kept = setting.checked(edge)
        assert kept == edge
        assert type(kept) is setting.type
    below = setting.minimum - (1 if setting.type is int else 1e-6)
    wrong: list[object] = [setting.maximum + 1, -1, float("nan"), float("inf"), 10**400, True, "7", None]
    if below or not setting.unset:
        wrong.append(below)
    for value in wrong:
        with pytest.raises(SettingsError, match=setting.name):
            put(setting, value)


@pytest.mark.parametrize(
    "setting",
    [s for s in ALL.values() if s.type in (int, float) and s.unset],
    ids=lambda setting: setting.name,
)
def test_zero_is_allowed_where_it_means_something(setting: Setting) -> None:
    kept = put(setting, 0)
    assert kept == 0
    assert type(kept) is setting.type


@pytest.mark.parametrize("setting", [s for s in ALL.values() if s.choices], ids=lambda setting: setting.name)
def test_words_are_held_to_their_choices(setting: Setting) -> None:
    for choice in setting.choices:
        assert put(setting, choice) == choice
    for value in ("other", setting.choices[0].upper(), 1, None, [setting.choices[0]]):
        with pytest.raises(SettingsError, match=setting.choices[-1]):
            put(setting, value)
