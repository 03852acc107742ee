"""The reports made of settings, and that every setting is read and documented."""

import ast
import tomllib

import attrs
import pytest

from persona.config import Setting, Settings, describe, settings_markdown, settings_table, settings_toml
from tests.config.loading import ALL, DOCS, HASH, PACKAGE, SECRETIVE, load


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
