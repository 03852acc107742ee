"""The sections: defaults, texts, addresses, tokens."""

from pathlib import Path

import attrs
import pytest

from persona.config import AuthSettings, AuthToken, DatabaseSettings, LLMSettings, ServerSettings, Settings
from persona.errors import SettingsError
from tests.config.loading import ALL, HASH, complaint, load, put


def test_defaults_are_the_designs() -> None:
    settings = Settings()
    assert (settings.server.host, settings.server.port) == ("127.0.0.1", 8000)
    assert (settings.server.http_host, settings.server.http_port) == ("127.0.0.1", 8080)
    assert settings.limits.max_connections == 500
    assert settings.limits.max_pending_bytes == 1024 * 1024
    assert (settings.database.readers, settings.database.synchronous) == (2, "full")
    assert (settings.background.queue_size, settings.background.workers) == (2000, 8)
    assert settings.personas.recovery_s == 300.0
    assert settings.log.format == "auto"


def test_sections_know_the_names_under_which_settings_hold_them() -> None:
    for field in attrs.fields(Settings):
        assert type(getattr(Settings(), field.name)).section == field.name


def test_settings_cannot_be_changed() -> None:
    with pytest.raises(attrs.exceptions.FrozenInstanceError):
        Settings().limits.max_connections = 3  # type: ignore[misc]


@pytest.mark.parametrize(
    ("key", "good", "bad"),
    [
        ("server.host", ["::1", "0.0.0.0", "example.org"], ["", "a b", "http://x", "[x]"]),
        ("server.http_host", ["::1", "0.0.0.0"], ["", "a b", "http://x"]),
        (
            "server.public_url",
            ["wss://persona.example/mcp", "ws://[::1]:9000/mcp"],
            [
                "https://x",
                "wss://",
                "wss://x/a?b",
                "wss://u:p@x",
                "wss://x;script-src *",
                "wss://x, y",
                "wss://été/",
            ],
        ),
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


def test_the_database_file_has_a_default_place_and_a_home_may_be_a_tilde(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert DatabaseSettings().file.name == "persona.db"
    assert DatabaseSettings().file.is_absolute()
    assert DatabaseSettings(path="~/x.db").file == Path("/home/somebody/x.db")


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
        ("anonymous:user:" + HASH, "clients without a token"),
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
