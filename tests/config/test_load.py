"""Files, environment and flags: which is stronger, and what is said of a bad one."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from persona.config import Settings, Source, load_settings
from persona.errors import SettingsError
from tests.config.loading import ALL, complaint, load


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


@pytest.mark.parametrize("value", [True, False])
def test_a_switch_is_one_of_a_few_words(value: bool) -> None:
    for word in ("true", "Yes", "on", "1") if value else ("false", "no", "OFF", "0"):
        assert load(environ={"PERSONA_AUTH_INSECURE": word}).settings.auth.insecure is value


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


def test_a_byte_order_mark_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "notepad.toml").write_bytes(b"\xef\xbb\xbf[server]\nport = 5\n")
    assert load_settings(file=tmp_path / "notepad.toml", environ={}, flags={}).settings.server.port == 5


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
