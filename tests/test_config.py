"""Settings: what is declared, loading and its complaints, and the reports made of them."""

import ast
import tomllib
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import given
from hypothesis import strategies as st

import persona
from persona.config import (
    AuthSettings,
    AuthToken,
    DatabaseSettings,
    LimitSettings,
    LLMSettings,
    LoadedSettings,
    ServerSettings,
    Setting,
    Settings,
    Source,
    declared,
    describe,
    load_settings,
    settings_markdown,
    settings_table,
    settings_toml,
)
from persona.errors import SettingsError

PACKAGE = Path(persona.__file__).parent
DOCS = PACKAGE.parent / "docs" / "operations.md"
HASH = "sha256:" + "0123456789abcdef" * 4
ALL = {setting.name: setting for setting in declared()}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No test finds a persona.toml it did not write."""
    monkeypatch.chdir(tmp_path)


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


# What is declared


def test_defaults_are_the_designs() -> None:
    settings = Settings()
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8000)
    assert settings.limits.max_connections == 500
    assert settings.limits.max_pending_bytes == 1024 * 1024
    assert (settings.database.readers, settings.database.synchronous) == (2, "full")
    assert (settings.background.queue_size, settings.background.workers) == (2000, 8)
    assert settings.personas.recovery_s == 300.0
    assert settings.log.format == "auto"


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


def test_sections_know_the_names_under_which_settings_hold_them() -> None:
    for field in attrs.fields(Settings):
        assert type(getattr(Settings(), field.name)).section == field.name


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Settings().limits.max_connections = 3  # type: ignore[misc]


# Values


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


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("server.host", ["::1", "0.0.0.0", "example.org"], ["", "a b", "http://x", "[x]"]),
        ("server.allowed_hosts", [["example.org", "[::1]"]], [["http://x"], ["x:80"], [""], [3], "x"]),
        (
            "server.allowed_origins",
            [["https://example.org:8443"]],
            [["example.org"], ["http://x/"], ["http://"], [1]],
        ),
        ("server.trusted_proxies", [["10.0.0.0/8", "::1/128"]], [["10.0.0.1/8"], ["proxy"], [5], [b"abcd"]]),
        ("auth.insecure", [True], [1, "true", None]),
        (
            "llm.base_url",
            ["http://127.0.0.1:11434/v1"],
            ["ftp://x", "localhost:1", "http://", "http://x:y", "http://a b"],
        ),
        ("llm.model", ["llama3.2:3b", "été/模型"], ["a\nb", "\x1b[2J", "\udc80", "\u2028", 3]),
        ("database.path", ["/tmp/a b.db"], ["a\0b", 3]),
    ],
)
def test_texts_switches_and_lists(key: str, good: list[object], bad: list[object]) -> None:
    for value in good:
        kept = put(ALL[key], value)
        assert (list(kept) if isinstance(kept, tuple) else kept) == value
    for value in bad:
        with pytest.raises(SettingsError, match=key):
            put(ALL[key], value)


def test_values_are_brought_to_one_form() -> None:
    assert ServerSettings(host="[::1]").host == "::1"
    assert ServerSettings(allowed_hosts=("Example.ORG",)).allowed_hosts == ("example.org",)
    assert ServerSettings(trusted_proxies=("10.1.2.3",)).trusted_proxies == ("10.1.2.3/32",)
    assert LLMSettings(base_url="http://x/v1/").base_url == "http://x/v1"


def test_the_soft_memory_limit_is_at_most_the_hard_one() -> None:
    with pytest.raises(SettingsError, match=r"memory_soft_limit_mb = 300: .*memory_limit_mb = 200"):
        LimitSettings(memory_soft_limit_mb=300, memory_limit_mb=200)
    assert LimitSettings(memory_soft_limit_mb=200, memory_limit_mb=200)
    assert LimitSettings(memory_soft_limit_mb=300, memory_limit_mb=0)
    assert LimitSettings(memory_soft_limit_mb=0, memory_limit_mb=200)


def test_the_database_file_has_a_default_place_and_a_home_may_be_a_tilde(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert DatabaseSettings().file.name == "persona.db"
    assert DatabaseSettings().file.is_absolute()
    assert DatabaseSettings(path="~/x.db").file == Path("/home/somebody/x.db")


# Tokens and other secrets


def test_tokens_are_read_from_tables_and_from_text() -> None:
    expected = (AuthToken("game", "user", HASH), AuthToken("ops", "admin", HASH))
    toml = f"""
        [[auth.tokens]]
        name = "game"
        role = "user"
        hash = "{HASH}"
        [[auth.tokens]]
        name = "ops"
        role = "admin"
        hash = "{HASH.upper().replace("SHA", "sha")}"
    """
    assert load(toml).settings.auth.tokens == expected
    text = f"game:user:{HASH}, ops:admin:{HASH}"
    assert load(environ={"PERSONA_AUTH_TOKENS": text}).settings.auth.tokens == expected


@pytest.mark.parametrize(
    ("entry", "says"),
    [
        ("s3cret-value", "name, role and hash"),
        ("game:s3cret-value:" + HASH, "role must be"),
        ("game:user:s3cret-value", "hash must be"),
        ("game:user:" + HASH + "s3cret-value", "hash must be"),
        ("s3cret-value!:user:" + HASH, "name must be"),
        ({"name": "game", "role": "user", "hash": HASH, "s3cret-value": 1}, "name, role and hash"),
        ({"name": "game", "role": "user"}, "name, role and hash"),
        ({"name": 1, "role": "user", "hash": HASH}, "name must be"),
        (5, "name, role and hash"),
    ],
)
def test_a_bad_token_is_refused_by_number_and_never_shown(entry: object, says: str) -> None:
    with pytest.raises(SettingsError, match=says) as caught:
        AuthSettings(tokens=[f"fine:user:{HASH}", entry])  # type: ignore[arg-type]
    assert "entry 2" in str(caught.value)
    assert "s3cret" not in str(caught.value)
    assert HASH not in str(caught.value)


def test_two_tokens_cannot_share_a_name() -> None:
    text = complaint(environ={"PERSONA_AUTH_TOKENS": f"a:user:{HASH},a:admin:{HASH}"})
    assert "same name" in text
    assert "environment PERSONA_AUTH_TOKENS" in text


SECRETIVE = {"PERSONA_AUTH_TOKENS": f"game:user:{HASH}", "PERSONA_LLM_API_KEY": "sk-s3cret"}


def test_secrets_are_in_no_report_and_no_repr() -> None:
    loaded = load(environ=SECRETIVE)
    assert loaded.settings.llm.api_key == "sk-s3cret"
    for text in (
        settings_table(loaded),
        settings_toml(loaded),
        repr(loaded),
        repr(list(describe(loaded.settings))),
    ):
        assert "s3cret" not in text
        assert HASH.removeprefix("sha256:") not in text
    assert 'name = "game", role = "user"' in settings_table(loaded)


@pytest.mark.parametrize(
    ("toml", "environ"),
    [
        (None, {"PERSONA_LLM_API_KEY": "s3cret s3cret"}),
        (None, {"PERSONA_LLM_APIKEY": "s3cret"}),
        (None, {"PERSONA_LLM_BASE_URL": "http://user:s3cret@example.org/s3cret@x"}),
        ('[llm]\napi_key = ["s3cret"]', {}),
        ('[llm]\napi_keys = "s3cret"', {}),
        ('llm = "s3cret"', {}),
        ('api_key = "s3cret"', {}),
        ('[llm]\napi_key = "s3cret', {}),
    ],
)
def test_no_complaint_shows_a_secret(toml: str | None, environ: dict[str, str]) -> None:
    assert "s3cret" not in complaint(toml, environ)


# Loading


def test_without_any_source_everything_is_default() -> None:
    loaded = load()
    assert loaded.settings == Settings()
    assert set(loaded.sources) == set(ALL)
    assert set(loaded.sources.values()) == {Source("default")}


def test_flags_beat_the_environment_which_beats_the_file_which_beats_defaults() -> None:
    toml = "[limits]\nmax_in_flight = 2\nrate_limit_burst = 2\nmax_handshakes = 2"
    environ = {"PERSONA_LIMITS_MAX_IN_FLIGHT": "3", "PERSONA_LIMITS_RATE_LIMIT_BURST": "3"}
    loaded = load(toml, environ, {"limits.max_in_flight": 4, "limits.close_timeout_s": None})
    limits = loaded.settings.limits
    assert (limits.max_in_flight, limits.rate_limit_burst, limits.max_handshakes) == (4, 3, 2)
    assert limits.close_timeout_s == 5.0
    assert loaded.sources["limits.max_in_flight"].kind == "flag"
    assert loaded.sources["limits.rate_limit_burst"] == Source(
        "environment", "PERSONA_LIMITS_RATE_LIMIT_BURST"
    )
    assert loaded.sources["limits.max_handshakes"] == Source("file", "given.toml")
    assert loaded.sources["limits.close_timeout_s"] == Source("default")


def test_the_environments_text_becomes_values() -> None:
    loaded = load(
        environ={
            "PERSONA_LIMITS_PING_INTERVAL_S": "0.5",
            "PERSONA_LIMITS_WRITE_DEADLINE_S": "3",
            "PERSONA_AUTH_INSECURE": "Yes",
            "PERSONA_SERVER_ALLOWED_HOSTS": "a.example, b.example,",
            "PERSONA_SERVER_PORT": "0",
            "PERSONA_LLM_MODEL": "",
            "HOME": "/nowhere",
            "persona_lower": "is somebody else's",
        }
    ).settings
    assert (loaded.limits.ping_interval_s, loaded.limits.write_deadline_s) == (0.5, 3.0)
    assert loaded.auth.insecure is True
    assert loaded.server.allowed_hosts == ("a.example", "b.example")
    assert (loaded.server.port, loaded.llm.model) == (0, "")
    assert load(environ={"PERSONA_AUTH_INSECURE": "off"}).settings.auth.insecure is False


@pytest.mark.parametrize("text", ["", " ", "1_000", "٣", "0x10", "1.0", "9" * 5000, "--1", "many"])
def test_text_that_is_no_integer_is_refused(text: str) -> None:
    said = complaint(environ={"PERSONA_LIMITS_MAX_CONNECTIONS": text})
    assert said.startswith("limits.max_connections = ")
    assert "(environment PERSONA_LIMITS_MAX_CONNECTIONS): must be an integer from 1 to 100000" in said
    assert len(said) < 250


@pytest.mark.parametrize("text", ["", "nan", "inf", "-1", "1e999", "soon"])
def test_text_that_is_no_finite_number_is_refused(text: str) -> None:
    assert "must be a number from" in complaint(environ={"PERSONA_LIMITS_WRITE_DEADLINE_S": text})


def test_a_file_has_types_and_its_text_is_not_parsed() -> None:
    assert "limits.max_connections = '5' (file given.toml)" in complaint('[limits]\nmax_connections = "5"')
    assert "limits.max_connections = 5.0" in complaint("[limits]\nmax_connections = 5.0")
    assert "limits.max_connections = True" in complaint("[limits]\nmax_connections = true")
    assert "limits.ping_timeout_s = nan" in complaint("[limits]\nping_timeout_s = nan")
    assert load("[limits]\nping_timeout_s = 5").settings.limits.ping_timeout_s == 5.0


def test_a_bad_value_is_refused_even_where_it_is_overridden() -> None:
    said = complaint("[server]\nport = -1", {"PERSONA_SERVER_PORT": "9000"}, {"server.port": "9001"})
    assert "server.port = -1 (file given.toml)" in said


def test_a_flags_complaint_names_the_flag() -> None:
    said = complaint(flags={"server.port": "eighty"})
    assert (
        said
        == "server.port = 'eighty' (flag --port): must be an integer from 1 to 65535 (0 = picks a free one)"
    )


@pytest.mark.parametrize(
    ("toml", "says"),
    [
        (
            "[limits]\nmax_conections = 5",
            "unknown key limits.max_conections in given.toml; did you mean max_connections?",
        ),
        ("[limit]\nx = 1", "unknown section limit in given.toml; did you mean limits?"),
        ("[zzzz]", "unknown section zzzz in given.toml; allowed: auth, background"),
        ("[personas]\nzzz = 1", "unknown key personas.zzz in given.toml; allowed: recovery_s"),
        ('[limits]\n"a\\nb" = 1', "unknown key 'limits.a\\nb'"),
        ("port = 80", "unknown section port"),
        ("server = 3", "server in given.toml: must be a table, [server]"),
        ("[[server]]\nport = 3", "server in given.toml: must be a table"),
        ("[server\n", "given.toml is not valid TOML: "),
        ("a = " + "[" * 100_000, "given.toml is not valid TOML: "),
    ],
)
def test_a_bad_file_is_one_line(toml: str, says: str) -> None:
    assert says in complaint(toml)


def test_a_toml_error_says_where() -> None:
    assert "line 2, column" in complaint("[server]\nport = = 3")


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    for file, says in ((tmp_path / "absent.toml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(SettingsError, match=f"cannot read .*{says}"):
            load_settings(file=file, environ={}, flags={})
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9")
    with pytest.raises(SettingsError, match=r"latin.toml is not UTF-8 text \(byte 5\)"):
        load_settings(file=tmp_path / "latin.toml", environ={}, flags={})


def test_which_file_is_read(tmp_path: Path) -> None:
    for name, number in (("persona.toml", 1), ("variable.toml", 2), ("flag.toml", 3)):
        (tmp_path / name).write_text(f"[server]\nport = {number}\n", encoding="utf-8")
    environ = {"PERSONA_CONFIG": "variable.toml"}

    def port(file: Path | None, environ: dict[str, str]) -> int:
        return load_settings(file=file, environ=environ, flags={}).settings.server.port

    assert port(None, {}) == 1
    assert port(None, {"PERSONA_CONFIG": ""}) == 1
    assert port(None, environ) == 2
    assert port(Path("flag.toml"), environ) == 3
    with pytest.raises(
        SettingsError, match=r"cannot read gone.toml \(named by PERSONA_CONFIG\): No such file"
    ):
        port(None, {"PERSONA_CONFIG": "gone.toml"})


def test_an_unknown_variable_is_refused_by_name() -> None:
    said = complaint(environ={"PERSONA_LIMITS_MAXCONNECTIONS": "1"})
    assert said.endswith("PERSONA_LIMITS_MAXCONNECTIONS; did you mean PERSONA_LIMITS_MAX_CONNECTIONS?")
    assert "`persona config` lists" in complaint(environ={"PERSONA_QQQQQQ": "1"})


def test_values_at_odds_are_named_with_their_sources() -> None:
    said = complaint("[limits]\nmemory_limit_mb = 100", {"PERSONA_LIMITS_MEMORY_SOFT_LIMIT_MB": "200"})
    assert "limits.memory_soft_limit_mb: environment PERSONA_LIMITS_MEMORY_SOFT_LIMIT_MB" in said
    assert "limits.memory_limit_mb: file given.toml" in said


@given(name=st.sampled_from(sorted(ALL)), text=st.text())
def test_any_text_gives_a_value_or_one_line(name: str, text: str) -> None:
    setting = ALL[name]
    said = ""
    try:
        loaded = load_settings(file=None, environ={setting.environment: text}, flags={})
    except SettingsError as error:
        said = str(error)
    if said:
        assert said.isprintable()
        assert said.startswith(name)
    else:
        assert loaded.sources[name].kind == "environment"


# Reports


EVERYTHING = {
    "PERSONA_SERVER_PORT": "0",
    "PERSONA_SERVER_ALLOWED_HOSTS": "a.example,[::1]",
    "PERSONA_SERVER_TRUSTED_PROXIES": "10.0.0.0/8",
    "PERSONA_AUTH_INSECURE": "true",
    "PERSONA_LIMITS_PING_INTERVAL_S": "0",
    "PERSONA_LIMITS_CLOSE_TIMEOUT_S": "0.0010001",
    "PERSONA_DATABASE_PATH": 'C:\\odd "name" # é 🎭.db',
    "PERSONA_LLM_BACKEND": "openai",
    "PERSONA_LOG_FORMAT": "json",
}


@pytest.mark.parametrize("environ", [{}, EVERYTHING])
def test_the_toml_report_loads_back_to_the_same_settings(environ: dict[str, str]) -> None:
    loaded = load(environ=environ)
    again = load(settings_toml(loaded))
    assert again.settings == loaded.settings
    visible = {name for name, setting in ALL.items() if not setting.secret}
    assert {name for name, source in again.sources.items() if source.kind == "file"} == visible


def test_the_toml_report_leaves_secrets_out_as_comments() -> None:
    loaded = load(environ=SECRETIVE)
    text = settings_toml(loaded)
    assert "# api_key = (not shown)" in text
    assert "api_key" not in tomllib.loads(text)["llm"]
    assert load(text).settings == Settings()


def test_the_table_has_a_line_for_each_setting_that_tells_its_source() -> None:
    loaded = load("[log]\nlevel = 'debug'", EVERYTHING)
    header, *lines = settings_table(loaded).splitlines()
    assert [line.split()[0] for line in lines] == list(ALL)
    column = header.index("source")
    origin = dict(zip(ALL, (line[column:] for line in lines), strict=True))
    assert origin["log.level"] == "file given.toml"
    assert origin["server.port"] == "environment PERSONA_SERVER_PORT"
    assert origin["server.host"] == "default"
    assert {line[column - 1] for line in lines} == {" "}
    assert "0 (picks a free one)" in lines[1]


def test_the_docs_list_every_setting_as_it_is_declared() -> None:
    text = DOCS.read_text(encoding="utf-8")
    _, _, rest = text.partition("<!-- settings: begin -->\n")
    tables, _, _ = rest.partition("<!-- settings: end -->")
    assert tables == settings_markdown(), (
        "run `python -m persona.config` and put its output between the markers"
    )


def test_the_docs_example_loads() -> None:
    _, _, rest = DOCS.read_text(encoding="utf-8").partition("```toml\n")
    example, _, _ = rest.partition("```")
    settings = load(example.replace("sha256:...", HASH)).settings
    assert settings.server.port == 9000


def attributes_read() -> set[tuple[str, str]]:
    """Pairs of owner and attribute that the program reads: `self._limits.x` is ("limits", "x")."""
    found = set()
    for file in PACKAGE.rglob("*.py"):
        if file.parent == PACKAGE / "config":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                owner = ast.unparse(node.value).rpartition(".")[2].lstrip("_")
                found.add((owner, node.attr))
    return found


def is_read(setting: Setting, read: set[tuple[str, str]]) -> bool:
    """By its own name, or through a property of its section that is made of it. The owner has to be called
    after the section, or `settings`: any `.path` or `.name` would do otherwise."""
    section = type(getattr(Settings(), setting.section))
    names = {setting.key}
    for name, member in vars(section).items():
        if isinstance(member, property) and member.fget and setting.key in member.fget.__code__.co_names:
            names.add(name)
    return any((owner, name) in read for owner in (setting.section, "settings") for name in names)


def test_every_setting_is_read_somewhere() -> None:
    read = attributes_read()
    assert [name for name, setting in ALL.items() if not is_read(setting, read)] == []


def test_the_search_for_unread_settings_finds_one() -> None:
    read = attributes_read()
    unread = attrs.evolve(ALL["limits.max_in_flight"], key="max_unicorns")
    assert not is_read(unread, read)
    assert not is_read(ALL["database.path"], {("head", "path")})
    assert is_read(ALL["database.path"], {("database", "file")})
