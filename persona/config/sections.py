"""Every setting of the server: name, default, unit, range and the reason for the default.

This, `limits`, `llm` and `watching` are the one place where settings are declared. Values called the guide's
are its production settings.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, ClassVar, Literal, get_args

import attrs

from persona.config import checks
from persona.config.field import InconsistentSettingsError, Section, Setting, setting
from persona.config.limits import DAY_S, LimitSettings
from persona.config.llm import LLMSettings
from persona.config.watching import LogSettings, MonitorSettings

Access = Literal["user", "admin"]


@attrs.frozen
class AuthToken:
    """Who may connect: a name for logs, what they may do, and the hash of their bearer token."""

    name: str
    role: Access
    hash: str = attrs.field(repr=False)
    """`sha256:` and 64 lower-case hex digits."""

    @classmethod
    def read(cls, entry: object) -> "AuthToken":
        """From a table, or from `name:role:sha256:hex`. Raises `ValueError` that quotes nothing."""
        if isinstance(entry, cls):
            return entry
        if isinstance(entry, str):
            entry = dict(zip(("name", "role", "hash"), entry.split(":", 2), strict=False))
        if not isinstance(entry, Mapping) or entry.keys() != {"name", "role", "hash"}:
            raise ValueError("name, role and hash are needed, and nothing else")
        name, role, digest = entry["name"], entry["role"], entry["hash"]
        if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", name):
            raise ValueError("name must be 1 to 64 letters, digits, dots, dashes or underscores")
        if name == "anonymous":
            raise ValueError("the name anonymous is what clients without a token go by")
        if role not in get_args(Access):
            raise ValueError("role must be user or admin")
        if not isinstance(digest, str) or not re.fullmatch(r"sha256:[0-9A-Fa-f]{64}", digest):
            raise ValueError("hash must be sha256: and 64 hex digits")
        return cls(name, role, digest.lower())


@attrs.frozen(kw_only=True)
class ServerSettings(Section):
    """Where the server listens, and whom it lets in by name."""

    section: ClassVar[str] = "server"

    host: str = setting(
        "127.0.0.1",
        flag="--host",
        form="a host name or address",
        accepts=checks.bind_host,
        reason="A fresh install can be reached from this machine only.",
    )
    port: int = setting(
        8000,
        flag="--port",
        minimum=1,
        maximum=65535,
        unset="picks a free one",
        reason="The port that persona clients already try.",
    )
    http_host: str = setting(
        "127.0.0.1",
        form="a host name or address",
        accepts=checks.bind_host,
        reason="The pages, the probes and the metrics ask nobody for a token, so other machines see them "
        "only where somebody decided that.",
    )
    http_port: int = setting(
        8080,
        flag="--http-port",
        minimum=1,
        maximum=65535,
        unset="no HTTP",
        reason="Where one looks for a web server that is not the machine's first. A port of its own, so that "
        "a proxy or a firewall can let clients in without the metrics.",
    )
    public_url: str = setting(
        "",
        form="a ws:// or wss:// URL without user and query",
        accepts=checks.websocket_url,
        unset="the host of the page, and server.port",
        reason="Where the pages find the WebSocket. Behind a proxy only the operator knows.",
    )
    engine: Literal["trio-websocket", "sansio"] = setting(
        "trio-websocket",
        flag="--engine",
        reason="What speaks WebSocket. sansio, on the protocol of `websockets`, does the same work in a "
        "fraction of the time; see performance.md.",
    )
    graceful_timeout_s: float = setting(
        30.0,
        unit="s",
        minimum=0.001,
        maximum=DAY_S,
        reason="How long a stop waits for running requests: as long as a plain request may take, so "
        "only chats are ever cut short.",
    )
    allowed_hosts: tuple[str, ...] = setting(
        (),
        accepts=checks.host,
        form="a host name or address without a port, IPv6 in brackets",
        unset="localhost, the bound host, and any IP address",
        reason="Other Host headers are refused: otherwise a web page reaches a local server by "
        "pointing a name of its own at it (DNS rebinding).",
    )
    allowed_origins: tuple[str, ...] = setting(
        (),
        accepts=checks.origin,
        form="an exact origin, scheme://host[:port]",
        unset="http and https on localhost and loopback addresses, any port",
        reason="Browsers let every page open a WebSocket to localhost; only the Origin header tells "
        "pages apart. A client that sends none is no browser, and passes.",
    )
    trusted_proxies: tuple[str, ...] = setting(
        (),
        accepts=checks.network,
        form="an IP address or network",
        unset="none",
        reason="X-Forwarded-For is believed from these only: anybody else could forge an address and "
        "slip past the limit per address.",
    )


@attrs.frozen(kw_only=True)
class AuthSettings(Section):
    """Who may connect."""

    section: ClassVar[str] = "auth"

    tokens: tuple[AuthToken, ...] = setting(
        (),
        secret=True,
        accepts=AuthToken.read,
        form='{name, role = "user" or "admin", hash = "sha256:<64 hex digits>"}, '
        "in the environment name:role:sha256:hex",
        unset="nobody needs a token",
        reason="Only hashes are kept, so a leaked file lets nobody in. A fast hash is enough: tokens "
        "are random, and a slow one would let strangers spend the server's time.",
    )
    insecure: bool = setting(
        False,
        flag="--insecure",
        reason="Serving other machines without tokens has to be a decision, not an accident.",
    )

    def __attrs_post_init__(self) -> None:
        names = [token.name for token in self.tokens]
        if len(names) != len(set(names)):
            raise InconsistentSettingsError("auth.tokens: two tokens have the same name", "auth.tokens")


@attrs.frozen(kw_only=True)
class DatabaseSettings(Section):
    """The SQLite file."""

    section: ClassVar[str] = "database"

    path: str = setting(
        "",
        flag="--db",
        form="a file name",
        accepts=checks.file_name,
        unset="persona.db in the user's data directory",
        reason="Conversations belong to the user, not to the directory the server was started in.",
    )
    readers: int = setting(
        2,
        unit="threads",
        minimum=1,
        maximum=16,
        reason="The guide's pool of 10 to 20 measured slower: ten reader threads, a call each, gave "
        "2,100 reads a second and two gave 4,000, since threads fight over the interpreter. The second "
        "one keeps a long search from holding up short reads.",
    )
    synchronous: Literal["full", "normal"] = setting(
        "full",
        reason="Commits are shared by all turns that wait, so surviving a power cut is nearly free "
        "(over 40,000 rows a second against 53,000). `normal` may lose the last commits in a power "
        "cut, never in a crash of the server alone.",
    )
    busy_timeout_s: float = setting(
        5.0,
        unit="s",
        minimum=0.001,
        maximum=3600.0,
        reason="The server has one writer, so only another program can hold the lock; this outlasts "
        "a quick one and still ends well within request_timeout_s.",
    )
    cache_pages: int = setting(
        10_000,
        unit="pages",
        minimum=10,
        maximum=1_000_000,
        reason="The guide's figure: at most 40 MB of 4 KiB pages for each database connection.",
    )
    wal_limit_bytes: int = setting(
        16 * 1024 * 1024,
        unit="bytes",
        minimum=64 * 1024,
        maximum=4 * 1024**3,
        reason="Where the write-ahead log is taken into the file even while clients write. With 100 "
        "clients that write at once 16 MiB took 6 ms, in which the others wait; 4 MiB took 4, and four "
        "times as often made writing a tenth slower. The log's file becomes up to twice as large.",
    )

    @property
    def file(self) -> Path:
        """The database file: `path`, or its default place in the user's data directory.

        Nothing is created.
        """
        if self.path:
            return Path(self.path).expanduser()
        # Here, not above: most commands never ask, and it is slow to import on some platforms.
        import platformdirs

        return platformdirs.user_data_path("persona", appauthor=False) / "persona.db"


@attrs.frozen(kw_only=True)
class BackgroundSettings(Section):
    """Work that no client waits for."""

    section: ClassVar[str] = "background"

    queue_size: int = setting(
        2000,
        unit="jobs",
        minimum=1,
        maximum=1_000_000,
        reason="The guide's figure: four jobs for each of 500 clients. When it is full, the least "
        "important job is dropped and counted.",
    )
    workers: int = setting(
        8,
        unit="tasks",
        minimum=1,
        maximum=1000,
        reason="The guide's figure. Jobs mostly wait for the model or the disk, so a few workers are "
        "enough, and few cannot crowd out clients.",
    )


@attrs.frozen(kw_only=True)
class PersonaSettings(Section):
    """How personas bear being talked to."""

    section: ClassVar[str] = "personas"

    recovery_s: float = setting(
        300.0,
        unit="s",
        minimum=0.001,
        maximum=30 * DAY_S,
        unset="personas never tire",
        reason="Seconds from exhausted to rested: five minutes, so rest is noticed by a crowd and "
        "never by one user at a keyboard.",
    )


@attrs.frozen(kw_only=True)
class Settings:
    """Everything an operator may set. Made with no arguments it holds the defaults."""

    server: ServerSettings = attrs.field(factory=ServerSettings)
    auth: AuthSettings = attrs.field(factory=AuthSettings)
    limits: LimitSettings = attrs.field(factory=LimitSettings)
    database: DatabaseSettings = attrs.field(factory=DatabaseSettings)
    background: BackgroundSettings = attrs.field(factory=BackgroundSettings)
    llm: LLMSettings = attrs.field(factory=LLMSettings)
    personas: PersonaSettings = attrs.field(factory=PersonaSettings)
    log: LogSettings = attrs.field(factory=LogSettings)
    monitor: MonitorSettings = attrs.field(factory=MonitorSettings)


def sections() -> tuple[type[Section], ...]:
    """The section classes, in the order of `persona.toml`."""
    types: list[Any] = [field.type for field in attrs.fields(Settings)]
    return tuple(types)


def declared() -> Iterator[Setting]:
    """Every setting there is, section by section."""
    for section in sections():
        yield from section.declared()
