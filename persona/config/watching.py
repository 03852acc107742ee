"""What is logged, and when the monitor raises an alert."""

from typing import ClassVar, Literal

import attrs

from persona.config.field import Section, setting


@attrs.frozen(kw_only=True)
class LogSettings(Section):
    """What is logged to stderr, and how."""

    section: ClassVar[str] = "log"

    level: Literal["debug", "info", "warning", "error"] = setting(
        "info",
        flag="--log-level",
        reason="Starts, stops and troubles, and nothing for each message: logs must not cost more "
        "than the work.",
    )
    format: Literal["auto", "console", "json"] = setting(
        "auto",
        flag="--log-format",
        reason="`auto` is for people on a terminal and one JSON object a line everywhere else, where "
        "programs read.",
    )
    slow_request_s: float = setting(
        1.0,
        unit="s",
        minimum=0.001,
        maximum=3600.0,
        unset="off",
        reason="A call that takes longer is logged as a warning. Nothing but a chat should come near it, and "
        "chats take what the model takes, so they are left out.",
    )


@attrs.frozen(kw_only=True)
class MonitorSettings(Section):
    """When the monitor raises an alert."""

    section: ClassVar[str] = "monitor"

    alert_error_ratio: float = setting(
        0.05,
        minimum=0.001,
        maximum=1.0,
        unset="off",
        reason="The share of a minute's calls that may fail by no fault of the client's: one in twenty is "
        "what users begin to talk about.",
    )
    alert_p95_s: float = setting(
        1.0,
        unit="s",
        minimum=0.001,
        maximum=3600.0,
        unset="off",
        reason="What 95 of 100 calls may take, chats aside, which take what the model takes. Everything else "
        "takes milliseconds; a second is where people notice.",
    )
    alert_loop_lag_s: float = setting(
        0.25,
        unit="s",
        minimum=0.001,
        maximum=3600.0,
        unset="off",
        reason="How late the event loop may come to what is due. A quarter of a second is ten times what "
        "a full house costs on a small machine, and still before tokens visibly stutter.",
    )
