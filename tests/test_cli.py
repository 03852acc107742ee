"""The command line: options in, one line and an exit code out."""

import os
import subprocess
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio
from click.testing import CliRunner, Result

import persona
from persona.cli import FLAG_HELP, main
from persona.config import Settings, declared, load_settings
from persona.errors import StartupError
from tests.storage.saved import save
from tests.storage.spoil import spoil_page

URL = "ws://127.0.0.1:8123/mcp"


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in [name for name in os.environ if name.startswith("PERSONA_")]:
        monkeypatch.delenv(name)


@pytest.fixture(autouse=True)
def logging_calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """Commands set up the process's logging; here they only say how."""
    calls: list[tuple[str, str]] = []
    monkeypatch.setattr(
        "persona.log.configure_logging", lambda level, log_format: calls.append((level, log_format))
    )
    return calls


def run(*arguments: str, env: dict[str, str] | None = None) -> Result:
    return CliRunner().invoke(main, arguments, env=env, catch_exceptions=False)


def stand_in(monkeypatch: pytest.MonkeyPatch, module: str, **functions: Callable[..., Any]) -> None:
    """Put a module in the place of the server's or the terminal's own."""
    fake = types.ModuleType(module)
    for name, function in functions.items():
        setattr(fake, name, function)
    monkeypatch.setitem(sys.modules, module, fake)
    monkeypatch.setattr(persona, module.rpartition(".")[2], fake, raising=False)


def test_version_and_help() -> None:
    assert run("--version").stdout == f"persona, version {persona.__version__}\n"
    helped = run("-h").stdout
    for command in ("serve", "demo", "chat", "tasks", "config", "backup", "check"):
        assert command in helped
        assert run(command, "--help").exit_code == 0


def test_every_flag_of_the_settings_is_offered() -> None:
    assert set(FLAG_HELP) == {setting.name for setting in declared() if setting.flag}
    parameters = {option for parameter in main.commands["serve"].params for option in parameter.opts}
    assert parameters >= {setting.flag for setting in declared() if setting.flag} | {"--config"}


def test_importing_the_command_line_does_not_load_the_server() -> None:
    code = (
        "import sys, persona.cli; print({'trio', 'structlog', 'httpx2', 'sqlite_utils'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "set()"


# config


def test_config_shows_each_value_and_its_source() -> None:
    Path("persona.toml").write_text("[limits]\nmax_in_flight = 1\n", encoding="utf-8")
    done = run("config", "--port", "0", "--insecure", env={"PERSONA_LLM_BACKEND": "scripted"})
    assert done.exit_code == 0
    lines = {line.split()[0]: line for line in done.stdout.splitlines()}
    assert lines["limits.max_in_flight"].endswith("file persona.toml")
    assert lines["server.port"].endswith("flag --port")
    assert lines["auth.insecure"].endswith("flag --insecure")
    assert lines["llm.backend"].endswith("environment PERSONA_LLM_BACKEND")
    assert lines["server.host"].endswith("default")


def test_a_flag_that_is_not_given_sets_nothing() -> None:
    assert "flag" not in run("config").stdout


def test_config_as_toml_is_a_file_for_the_same_settings() -> None:
    done = run("config", "--format", "toml", "--port", "0", "--db", "some where.db", "--log-level", "debug")
    Path("again.toml").write_text(done.stdout, encoding="utf-8")
    again = load_settings(file=Path("again.toml"), environ={}, flags={}).settings
    assert (again.server.port, again.database.path, again.log.level) == (0, "some where.db", "debug")
    repeated = run("config", "--format", "toml", "--config", "again.toml").stdout
    assert load_settings(file=_write(repeated), environ={}, flags={}).settings == again


def _write(text: str) -> Path:
    file = Path("written.toml")
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize(
    ("arguments", "env", "says"),
    [
        (["--port", "x"], {}, "server.port = 'x' (flag --port): must be an integer from 1 to 65535"),
        (["--log-level", "loud"], {}, "(flag --log-level): must be one of debug, info, warning, error"),
        (["--engine", "other"], {}, "(flag --engine): must be one of trio-websocket, sansio"),
        (["--config", "gone.toml"], {}, "cannot read gone.toml: No such file or directory"),
        ([], {"PERSONA_SERVER_PORTS": "1"}, "did you mean PERSONA_SERVER_PORT?"),
    ],
)
@pytest.mark.parametrize("command", ["config", "serve"])
def test_a_bad_setting_is_one_line_and_exit_2(
    command: str, arguments: list[str], env: dict[str, str], says: str
) -> None:
    done = run(command, *arguments, env=env)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("persona: error: ")
    assert done.stderr.count("\n") == 1
    assert says in done.stderr


def test_the_process_ends_with_one_line_too() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "persona", "config"],
        env=os.environ | {"PERSONA_LLM_API_KEY": "s3cret s3cret"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("persona: error: llm.api_key = (not shown)")
    assert done.stderr.count("\n") == 1


# serve


@pytest.fixture
def served(monkeypatch: pytest.MonkeyPatch) -> list[Settings]:
    seen: list[Settings] = []

    async def run_server(settings: Settings, *, on_listening: Callable[[str], None], tokens: object) -> None:
        await trio.lowlevel.checkpoint()
        seen.append(settings)
        on_listening(URL)

    stand_in(monkeypatch, "persona.app", run_server=run_server)
    return seen


def test_serve_runs_the_server_with_its_settings(
    served: list[Settings], logging_calls: list[tuple[str, str]]
) -> None:
    done = run(
        *(
            "serve",
            "--host",
            "::1",
            "--port",
            "0",
            "--http-port",
            "8081",
            "--db",
            "x.db",
            "--llm",
            "scripted",
        ),
        *("--engine", "trio-websocket", "--log-level", "error", "--log-format", "json", "--insecure"),
    )
    assert (done.exit_code, done.stdout) == (0, f"listening on {URL}\n")
    (settings,) = served
    assert (settings.server.host, settings.server.port, settings.server.http_port) == ("::1", 0, 8081)
    assert (settings.database.path, settings.llm.backend, settings.auth.insecure) == (
        "x.db",
        "scripted",
        True,
    )
    assert logging_calls == [("error", "json")]


def test_the_listening_line_is_flushed_before_the_server_goes_on() -> None:
    code = f"""
import sys, types, trio
async def run_server(settings, *, on_listening, tokens):
    on_listening({URL!r})
    await trio.sleep_forever()
app = types.ModuleType("persona.app")
app.run_server = run_server
sys.modules["persona.app"] = app
from persona.cli import main
main(["serve"])
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            assert server.stdout.readline() == f"listening on {URL}\n"
        finally:
            server.kill()


class CannotBindError(StartupError):
    exit_code = 7


def _group(*errors: Exception) -> ExceptionGroup[Exception]:
    return ExceptionGroup("outer", [ExceptionGroup("inner", list(errors))])


@pytest.mark.parametrize("wrap", [lambda error: error, _group], ids=["bare", "in a nursery"])
def test_a_startup_error_is_one_line_and_its_exit_code(
    wrap: Callable[[Exception], Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run_server(settings: Settings, *, on_listening: Callable[[str], None], tokens: object) -> None:
        await trio.lowlevel.checkpoint()
        raise wrap(CannotBindError("port 8000\nis taken"))

    stand_in(monkeypatch, "persona.app", run_server=run_server)
    done = run("serve")
    assert (done.exit_code, done.stdout) == (7, "")
    assert done.stderr == "persona: error: port 8000 is taken\n"


def test_a_bug_beside_a_startup_error_is_not_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    async def run_server(settings: Settings, *, on_listening: Callable[[str], None], tokens: object) -> None:
        await trio.lowlevel.checkpoint()
        raise _group(CannotBindError("no"), KeyError("bug"))

    stand_in(monkeypatch, "persona.app", run_server=run_server)
    with pytest.RaisesGroup(pytest.RaisesGroup(CannotBindError, KeyError)):
        run("serve")


@pytest.mark.parametrize("beside", [[], [CannotBindError("no")]])
def test_ctrl_c_before_anything_handles_it_is_no_traceback(
    beside: list[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def run_server(settings: Settings, *, on_listening: Callable[[str], None], tokens: object) -> None:
        await trio.lowlevel.checkpoint()
        raise BaseExceptionGroup("", [KeyboardInterrupt(), *beside])

    stand_in(monkeypatch, "persona.app", run_server=run_server)
    done = run("serve")
    assert done.exit_code == 1
    assert done.stderr.strip() == "Aborted!"


# demo


@pytest.fixture
def demos(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Settings, str | None, str]]:
    seen: list[tuple[Settings, str | None, str]] = []

    async def run_demo(
        settings: Settings, *, say: str | None, persona: str, conversation_id: str | None
    ) -> int:
        assert conversation_id is None
        await trio.lowlevel.checkpoint()
        seen.append((settings, say, persona))
        return 3

    stand_in(monkeypatch, "persona.demo", run_demo=run_demo)
    return seen


def test_demo_serves_on_a_free_loopback_port(
    demos: list[tuple[Settings, str | None, str]], logging_calls: list[tuple[str, str]]
) -> None:
    done = run("demo", "--say", "hello", "--db", "x.db", env={"PERSONA_SERVER_HOST": "0.0.0.0"})
    assert done.exit_code == 3
    ((settings, say, persona_name),) = demos
    assert (settings.server.host, settings.server.port, settings.database.path) == ("127.0.0.1", 0, "x.db")
    # A fixed port, for a chat in a terminal, would be one more thing that can be taken.
    assert settings.server.http_port == 0
    assert (say, persona_name) == ("hello", "aria")
    assert logging_calls == [("error", "auto")]


def test_demo_logs_what_it_is_told_to(
    demos: list[tuple[Settings, str | None, str]], logging_calls: list[tuple[str, str]]
) -> None:
    run("demo", "--persona", "kira", "--log-level", "info")
    assert demos[0][1:] == (None, "kira")
    assert logging_calls == [("info", "auto")]


# chat


@pytest.fixture
def chats(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str, str | None, str | None]]:
    seen: list[tuple[str, str, str | None, str | None]] = []

    async def chat(
        url: str, persona: str, say: str | None, token: str | None, conversation_id: str | None
    ) -> int:
        assert conversation_id == ("c1" if say == "hi" else None)
        await trio.lowlevel.checkpoint()
        seen.append((url, persona, say, token))
        return 1

    stand_in(monkeypatch, "persona.terminal", chat=chat)
    return seen


def test_chat_passes_its_options_on_and_ends_with_the_terminals_code(
    chats: list[tuple[str, str, str | None, str | None]],
) -> None:
    Path("token").write_text("s3cret \nrest\n", encoding="utf-8")
    assert run("chat").exit_code == 1
    run("chat", "--url", URL, "--persona", "kira", "--say", "hello", "--token-file", "token")
    run("chat", "--say", "hi", "--conversation", "c1")
    assert chats == [
        ("ws://127.0.0.1:8000/mcp", "aria", None, None),
        (URL, "kira", "hello", "s3cret"),
        ("ws://127.0.0.1:8000/mcp", "aria", "hi", None),
    ]


@pytest.mark.parametrize(
    ("file", "says"), [("gone", "cannot read gone: No such file"), ("latin", "latin is not UTF-8")]
)
def test_a_token_file_that_cannot_be_read_is_one_line(file: str, says: str) -> None:
    Path("latin").write_bytes(b"\xe9")
    done = run("chat", "--token-file", file)
    assert done.exit_code == 1
    assert done.stderr.startswith(f"persona: error: {says}")
    assert done.stderr.count("\n") == 1


# backup and check


@pytest.fixture
def database(tmp_path: Path) -> Path:
    return save(tmp_path / "p.db")


def test_backup_says_in_one_line_what_it_did(database: Path) -> None:
    done = run("backup", "b.db", "--db", str(database))
    assert (done.exit_code, done.stderr) == (0, "")
    assert done.stdout.startswith(f"backed up {database} to {Path('b.db').absolute()}: 2 personas, ")
    assert done.stdout.count("\n") == 1
    again = run("backup", "b.db", env={"PERSONA_DATABASE_PATH": str(database)})
    assert (again.exit_code, again.stdout) == (1, "")
    assert again.stderr.startswith("persona: error: ")
    assert again.stderr.endswith("exists already; name another file or use --force\n")
    assert run("backup", "b.db", "--force", env={"PERSONA_DATABASE_PATH": str(database)}).exit_code == 0


def test_check_ends_with_what_it_found(database: Path) -> None:
    sound = run("check", "--db", str(database))
    assert (sound.exit_code, sound.stderr) == (0, "")
    assert sound.stdout.startswith(f"{database}: sound; 2 personas, ")
    spoil_page(database, "turns")
    damaged = run("check", "--db", str(database))
    assert (damaged.exit_code, damaged.stderr) == (1, "")
    assert damaged.stdout.startswith(f"{database}: damaged\n  turns: only ")
    assert "What to do:\n  stop the server" in damaged.stdout


def test_check_of_nothing_is_one_line_and_exit_2(tmp_path: Path) -> None:
    done = run("check", "--db", "gone.db")
    assert (done.exit_code, done.stdout) == (2, "")
    assert (
        done.stderr == f"persona: error: {tmp_path / 'gone.db'}: cannot be read: No such file or directory\n"
    )
    assert not Path("gone.db").exists()


# tasks


def test_tasks_passes_its_options_on_and_prints_what_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[str, str | None, int, bool]] = []

    async def read_tasks(url: str, *, token: str | None, siblings: int, as_json: bool) -> str:
        await trio.lowlevel.checkpoint()
        seen.append((url, token, siblings, as_json))
        return "a tree\n"

    stand_in(monkeypatch, "persona.tasks", read_tasks=read_tasks)
    Path("token").write_text("s3cret\n", encoding="utf-8")
    assert run("tasks").stdout == "a tree\n"
    run("tasks", "--url", URL, "--siblings", "9", "--json", "--token-file", "token")
    assert seen == [("ws://127.0.0.1:8000/mcp", None, 3, False), (URL, "s3cret", 9, True)]
    assert run("tasks", "--siblings", "0").exit_code == 2
