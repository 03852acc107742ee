"""The limits: what one client, and all of them together, may use.

Each is decided at the edge, before it costs anything. Values called the guide's are its production
settings.
"""

from typing import ClassVar

import attrs

from persona.config.field import InconsistentSettingsError, Section, setting

DAY_S = 86_400.0


@attrs.frozen(kw_only=True)
class LimitSettings(Section):
    """What one client, and all of them together, may use."""

    section: ClassVar[str] = "limits"

    max_connections: int = setting(
        500,
        unit="connections",
        minimum=1,
        maximum=100_000,
        reason="The guide's figure. One more is refused at the handshake, before it costs anything.",
    )
    max_connections_per_address: int = setting(
        64,
        unit="connections",
        minimum=1,
        maximum=100_000,
        unset="off",
        reason="One machine cannot take all places. Loopback is exempt: local programs and a local "
        "proxy's clients all come from there.",
    )
    max_handshakes: int = setting(
        500,
        unit="handshakes",
        minimum=1,
        maximum=100_000,
        reason="Half-open handshakes hold a socket and a task before anything is known about the "
        "client. As many as there are places may come at once, as after a restart; no more. As many that "
        "are refused are given half a second to read why.",
    )
    handshake_timeout_s: float = setting(
        10.0,
        unit="s",
        minimum=0.001,
        maximum=3600.0,
        reason="A handshake is one round trip; 10 s forgives a bad link. trio-websocket alone would "
        "wait 60 s.",
    )
    max_message_bytes: int = setting(
        65_536,
        unit="bytes",
        minimum=64,
        maximum=16_777_216,
        reason="The wire protocol's limit: far above any chat line, and 500 clients that send one at "
        "once take 32 MB.",
    )
    max_json_depth: int = setting(
        64,
        unit="levels",
        minimum=4,
        maximum=250,
        reason="orjson reads 1024 levels but writes no more than 254, so what is let in must be "
        "bounded at the door; no call needs more than a handful.",
    )
    rate_limit_per_minute: int = setting(
        100,
        unit="messages a minute",
        minimum=1,
        maximum=1_000_000,
        unset="off",
        reason="The guide's figure, for one connection: more than a person types, less than a loop "
        "gone wrong.",
    )
    rate_limit_burst: int = setting(
        20,
        unit="messages",
        minimum=1,
        maximum=1_000_000,
        reason="A client that starts sends several calls at once; it may, and is held to the rate "
        "afterwards.",
    )
    control_rate_limit_per_minute: int = setting(
        1000,
        unit="frames a minute",
        minimum=1,
        maximum=1_000_000,
        unset="off",
        reason="Pings, pongs and unfinished fragments cost work and bring no message, so the limit above "
        "never sees them. A client that pings every second sends 60; over it the connection is closed.",
    )
    control_rate_limit_burst: int = setting(
        200,
        unit="frames",
        minimum=1,
        maximum=1_000_000,
        reason="A message of the largest size may come in fragments of 330 bytes.",
    )
    max_in_flight: int = setting(
        16,
        unit="requests",
        minimum=1,
        maximum=10_000,
        reason="Requests of one connection that run at once: it takes more than six greedy clients "
        "to fill the handler pool.",
    )
    handler_pool_size: int = setting(
        100,
        unit="requests",
        minimum=1,
        maximum=100_000,
        reason="The guide's figure: requests of all clients that run at once. One more waits a "
        "quarter of a second, so that a burst is no overload, and is answered `overloaded` then.",
    )
    request_timeout_s: float = setting(
        30.0,
        unit="s",
        minimum=0.001,
        maximum=DAY_S,
        reason="Nothing but a chat takes seconds; what does has met a stuck disk or a bug, and its "
        "client should hear of it.",
    )
    chat_timeout_s: float = setting(
        300.0,
        unit="s",
        minimum=0.001,
        maximum=DAY_S,
        reason="Covers the wait for the model and the answer: 500 tokens at 2 tokens a second, a slow "
        "machine, take 250 s.",
    )
    max_pending_messages: int = setting(
        1000,
        unit="messages",
        minimum=1,
        maximum=1_000_000,
        reason="Outgoing messages that may wait for a slow client. A stream is about one a token, so "
        "a whole default answer of 500 tokens fits twice.",
    )
    max_pending_bytes: int = setting(
        1_048_576,
        unit="bytes",
        minimum=64,
        maximum=1_073_741_824,
        reason="The same wait in bytes, since messages differ in size: 500 clients that all stop "
        "reading hold 500 MB, well under the memory limit.",
    )
    write_deadline_s: float = setting(
        10.0,
        unit="s",
        minimum=0.001,
        maximum=3600.0,
        reason="One write that takes longer means a client that no longer reads; it is cut, and its "
        "outbox freed.",
    )
    ping_interval_s: float = setting(
        20.0,
        unit="s",
        minimum=0.001,
        maximum=3600.0,
        unset="off",
        reason="Shorter than the 30 to 60 s after which proxies and home routers drop what is idle.",
    )
    ping_timeout_s: float = setting(
        20.0,
        unit="s",
        minimum=0.001,
        maximum=3600.0,
        reason="Long enough for a phone that changes networks; together with the interval a dead "
        "peer is gone within 40 s.",
    )
    close_timeout_s: float = setting(
        5.0,
        unit="s",
        minimum=0.001,
        maximum=3600.0,
        reason="A close frame is answered in one round trip. trio-websocket alone waits for ever on "
        "a peer that does not read.",
    )
    max_personas: int = setting(
        1000,
        unit="personas",
        minimum=1,
        maximum=100_000,
        reason="Any client may create one, and `persona.list` shows all at once: a thousand hold everybody "
        "else up for 3 ms, and make 12 MB at the very most, which our client still takes.",
    )
    memory_soft_limit_mb: int = setting(
        1600,
        unit="MB",
        minimum=64,
        maximum=1_048_576,
        unset="off",
        reason="Four fifths of the limit: from here on new connections are refused, so those there "
        "can go on.",
    )
    memory_limit_mb: int = setting(
        2000,
        unit="MB",
        minimum=64,
        maximum=1_048_576,
        unset="off",
        reason="The guide's figure. From here on idle connections are closed, then the slowest.",
    )

    def __attrs_post_init__(self) -> None:
        soft, hard = self.memory_soft_limit_mb, self.memory_limit_mb
        if hard and soft > hard:
            raise InconsistentSettingsError(
                f"limits.memory_soft_limit_mb = {soft}: must be at most limits.memory_limit_mb = {hard}",
                "limits.memory_soft_limit_mb",
                "limits.memory_limit_mb",
            )
