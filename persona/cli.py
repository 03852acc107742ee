"""The command line: `persona serve`, `demo`, `chat`, `tasks`, `config`, `backup`, `check`.

Commands read their options and call on. What they call is imported when it is called, so that `--help`
and `config` do not pay for trio and the server.
"""

import functools
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, TypeVar

import click

from persona import __version__
from persona.config import (
    LoadedSettings,
    Setting,
    declared,
    fingerprint,
    load_settings,
    settings_file,
    settings_table,
    settings_toml,
)
from persona.errors import StartupError

Command = TypeVar("Command", bound=Callable[..., Any])

FLAG_HELP = {
    "server.host": "Address to listen on.",
    "server.port": "Port to listen on; 0 picks a free one.",
    "server.http_port": "Port for the pages, the probes and the metrics over HTTP; 0 for none.",
    "database.path": "Database file.",
    "llm.backend": "Where answers come from.",
    "server.engine": "WebSocket engine.",
    "auth.insecure": "Serve other machines without tokens.",
    "log.level": "Least severe event to log.",
    "log.format": "How events look on stderr.",
}
DEMO_FLAGS = ("database.path", "llm.backend", "log.level", "log.format")

# Setting names hold a dot, Python's parameters cannot: server.port arrives as server__port.
_DOT = "__"

# What reads the file says what is wrong with it, in one line as everywhere.
_FILE = click.Path(path_type=Path, readable=False)


class _Program(click.Group):
    """Ends with one line and an exit code where a command cannot start or go on."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except StartupError as error:
            failure = error
        except BaseExceptionGroup as group:
            # Raised in a nursery, so trio wrapped it. Anything beside it is a bug, and shows in full.
            interrupts, others = group.split(KeyboardInterrupt)
            found, rest = (None, None) if others is None else others.split(StartupError)
            if rest is not None:
                raise
            if interrupts is not None:
                raise KeyboardInterrupt from None
            assert found is not None
            failure = _first(found)
        click.echo(f"persona: error: {' '.join(str(failure).split())}", err=True)
        raise click.exceptions.Exit(failure.exit_code)


def _first(group: BaseExceptionGroup[StartupError]) -> StartupError:
    error = group.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def settings_options(*names: str) -> Callable[[Command], Command]:
    """Add `--config` and the flags of these settings to a command; `_load` takes them up.

    A flag takes any text: `load_settings` checks it and complains in one line, as for every source.
    """
    settings = {setting.name: setting for setting in declared()}
    options = [
        click.option(
            "--config",
            "config_file",
            type=_FILE,
            metavar="FILE",
            help="Settings file.  [default: PERSONA_CONFIG, else ./persona.toml if it is there]",
        ),
        *(_option(settings[name]) for name in names),
    ]

    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def _option(setting: Setting) -> Callable[[Command], Command]:
    parameter = setting.name.replace(".", _DOT)
    text = FLAG_HELP[setting.name]
    if setting.type is bool:
        return click.option(setting.flag, parameter, is_flag=True, default=None, help=text)
    metavar = "|".join(setting.choices) or ("INTEGER" if setting.type is int else "TEXT")
    default = setting.default or setting.unset
    return click.option(setting.flag, parameter, metavar=metavar, help=f"{text}  [default: {default}]")


def _load(config_file: Path | None, options: dict[str, Any], **fixed: object) -> LoadedSettings:
    flags = {name.replace(_DOT, "."): value for name, value in (options | fixed).items()}
    return load_settings(file=config_file, environ=os.environ, flags=flags)


@click.group(cls=_Program, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="persona")
def main() -> None:
    """A local-first server for AI personas: characters with a voice and a memory."""


@main.command()
@settings_options(*FLAG_HELP)
def serve(config_file: Path | None, **options: Any) -> None:
    """Serve personas until SIGINT or SIGTERM; a second signal stops at once."""
    loaded = _load(config_file, options)
    _configure_logging(loaded)
    import trio

    from persona.app import run_server
    from persona.garbage import rarely_collected
    from persona.transport.tokens import TokenSource

    tokens = TokenSource(
        fingerprint=functools.partial(fingerprint, settings_file(config_file, os.environ)),
        load=lambda: _load(config_file, options).settings.auth.tokens,
    )
    server = functools.partial(
        run_server,
        loaded.settings,
        # echo flushes, so a program that waits for this line behind a pipe gets it at once.
        on_listening=lambda url: click.echo(f"listening on {url}"),
        tokens=tokens,
    )
    with rarely_collected():
        trio.run(server)


_say = click.option("--say", metavar="TEXT", help="Say one line, print the answer, and stop.")
_persona = click.option(
    "--persona", default="aria", show_default=True, help="Who to talk to: an id or a name."
)
_conversation = click.option(
    "--conversation", "conversation_id", metavar="ID", help="Go on with an older conversation."
)


@main.command()
@_say
@_persona
@_conversation
@settings_options(*DEMO_FLAGS)
def demo(
    config_file: Path | None, say: str | None, persona: str, conversation_id: str | None, **options: Any
) -> None:
    """Try it: a server on a free port and a chat with it, in one process."""
    loaded = _load(config_file, options, server__host="127.0.0.1", server__port=0, server__http_port=0)
    # A chat and a server's log on one terminal: only trouble may interrupt, unless asked for more.
    # That there is no model is no trouble here; the chat says so itself.
    _configure_logging(loaded, default_level="error")
    import trio

    from persona.demo import run_demo

    sys.exit(
        trio.run(
            functools.partial(
                run_demo, loaded.settings, say=say, persona=persona, conversation_id=conversation_id
            )
        )
    )


_url = click.option("--url", default="ws://127.0.0.1:8000/mcp", show_default=True, help="The server.")
_token_file = click.option(
    "--token-file",
    type=_FILE,
    metavar="FILE",
    help="File whose first line is the bearer token. On the command line every local user could read it.",
)


@main.command()
@_url
@_persona
@_say
@_conversation
@_token_file
def chat(
    url: str, persona: str, say: str | None, conversation_id: str | None, token_file: Path | None
) -> None:
    """Talk with a persona in the terminal."""
    token = None if token_file is None else _read_token(token_file)
    from persona.log import configure_logging

    configure_logging("warning", "auto")
    import trio

    from persona.terminal import chat as run_chat

    sys.exit(
        trio.run(functools.partial(run_chat, url, persona, say, token=token, conversation_id=conversation_id))
    )


@main.command()
@_url
@click.option(
    "--siblings",
    type=click.IntRange(1, 500),
    default=3,
    show_default=True,
    help="Tasks of a kind that are shown in each nursery; the rest are counted.",
)
@click.option("--json", "as_json", is_flag=True, help="As JSON, for programs.")
@_token_file
def tasks(url: str, siblings: int, as_json: bool, token_file: Path | None) -> None:
    """Print what a running server's tasks do now. Needs the admin role."""
    token = None if token_file is None else _read_token(token_file)
    import trio

    from persona.tasks import read_tasks

    read = functools.partial(read_tasks, url, token=token, siblings=siblings, as_json=as_json)
    click.echo(trio.run(read), nl=False)


@main.command()
@settings_options(*FLAG_HELP)
@click.option(
    "--format",
    "output",
    type=click.Choice(["table", "toml"]),
    default="table",
    show_default=True,
    help="A table with sources, or a persona.toml that gives the same settings.",
)
def config(config_file: Path | None, output: str, **options: Any) -> None:
    """Print the effective settings and where each came from: default, file, environment or flag."""
    loaded = _load(config_file, options)
    click.echo(settings_table(loaded) if output == "table" else settings_toml(loaded).rstrip("\n"))


@main.command()
@click.argument("target", type=_FILE, metavar="PATH")
@click.option("--force", is_flag=True, help="Replace PATH if it is there.")
@settings_options("database.path")
def backup(config_file: Path | None, target: Path, force: bool, **options: Any) -> None:
    """Copy the database to PATH, checked, also while a server runs."""
    loaded = _load(config_file, options)
    from persona.storage.backup import back_up

    click.echo(back_up(loaded.settings.database.file, target, force=force))


@main.command()
@settings_options("database.path")
def check(config_file: Path | None, **options: Any) -> None:
    """Look for damage in the database, also while a server runs; changes nothing.

    Exits with 0 when it is sound, 1 when it is damaged, 2 when it cannot be looked at.
    """
    loaded = _load(config_file, options)
    from persona.storage.check import check as look

    report = look(loaded.settings.database.file)
    for line in report.lines():
        click.echo(line)
    sys.exit(0 if report.is_sound else 1)


def _configure_logging(loaded: LoadedSettings, default_level: Literal["error"] | None = None) -> None:
    from persona.log import configure_logging

    log = loaded.settings.log
    unset = loaded.sources["log.level"].kind == "default"
    configure_logging(default_level if default_level and unset else log.level, log.format)


def _read_token(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8").partition("\n")[0].strip()
    except OSError as error:
        raise StartupError(f"cannot read {file}: {error.strerror}") from None
    except UnicodeDecodeError:
        raise StartupError(f"{file} is not UTF-8 text") from None
