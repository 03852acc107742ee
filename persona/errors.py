"""Every error a caller can meet, in one tree.

A class below `PersonaError` carries the JSON-RPC `code` and the `reason` its reply shows, so
that an error raised anywhere in the server is translated in one place only (`rpc.dispatch`).
`message` is written for people; it never holds a traceback, SQL, a path or a secret.

`StartupError` and its kin never cross the wire: they end a command with one line and an exit code.
"""

from typing import Any, ClassVar


class PersonaError(Exception):
    """An error with a place on the wire.

    `field` names the parameter that is wrong; `retry_after_s` (seconds) says when a retry can
    succeed; `details` are further fields for `error.data`, JSON-ready.
    """

    code: ClassVar[int] = -32603
    reason: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        retry_after_s: float | None = None,
        details: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.field = field
        self.retry_after_s = retry_after_s
        self.details = details

    def to_wire(self) -> dict[str, Any]:
        """The JSON-RPC `error` object."""
        data: dict[str, Any] = {"reason": self.reason, "retryable": self.retryable}
        if self.retry_after_s is not None:
            data["retry_after_s"] = round(self.retry_after_s, 3)
        if self.field is not None:
            data["field"] = self.field
        if self.details:
            data.update(self.details)
        return {"code": self.code, "message": self.message, "data": data}


class ParseError(PersonaError):
    """The frame is not JSON."""

    code, reason = -32700, "parse_error"


class InvalidRequest(PersonaError):
    """JSON, but no JSON-RPC request."""

    code, reason = -32600, "invalid_request"


class MethodNotFound(PersonaError):
    """No method has this name."""

    code, reason = -32601, "method_not_found"


class InvalidParams(PersonaError):
    """A parameter is missing, unknown, of the wrong type or out of range."""

    code, reason = -32602, "invalid_params"


class InternalError(PersonaError):
    """A bug. `data.error_id` is the id under which it was logged."""


class PersonaNotFound(PersonaError):
    """No persona has this id or name."""

    code, reason = -32000, "persona_not_found"


class NoActivePersona(PersonaError):
    """A chat that names no persona, on a session that has switched to none."""

    code, reason = -32001, "no_active_persona"


class MemoryFailure(PersonaError):
    """The database could not read or write; nothing was acknowledged. Comes with `retry_after_s`."""

    code, reason, retryable = -32002, "memory_error", True


class LLMUnavailable(PersonaError):
    """The model is down, timed out, refused, or answered nonsense."""

    code, reason, retryable = -32003, "llm_unavailable", True

    is_transient = False
    """Set where nobody could be served at that moment: no connection, a connection that broke, or a server
    that said it was busy. The same request may succeed a moment later."""

    @classmethod
    def transient(cls, message: str, *, retry_after_s: float | None = None) -> "LLMUnavailable":
        """One that may pass."""
        error = cls(message, retry_after_s=retry_after_s)
        error.is_transient = True
        return error


class NotFound(PersonaError):
    """No such conversation, turn or stream, or it belongs to somebody else."""

    code, reason = -32004, "not_found"


class PersonaUnavailable(PersonaError):
    """The persona rests; `retry_after_s` says until when."""

    code, reason, retryable = -32005, "persona_unavailable", True


class Conflict(PersonaError):
    """The same `client_msg_id` with another body, a stale version, a taken name, or one persona too many."""

    code, reason = -32006, "conflict"


class RateLimited(PersonaError):
    """The connection sends more messages than its share."""

    code, reason, retryable = -32010, "rate_limited", True


class Overloaded(PersonaError):
    """An inbox, the handler pool, the model's queue or the database's queue is full."""

    code, reason, retryable = -32011, "overloaded", True


class DeadlineExceeded(PersonaError):
    """The request's time is up."""

    code, reason, retryable = -32012, "deadline_exceeded", True


class RequestCancelled(PersonaError):
    """The client cancelled the request."""

    code, reason = -32013, "cancelled"


class ShuttingDown(PersonaError):
    """The server drains; another one, or this one later, can take the request."""

    code, reason, retryable = -32014, "shutting_down", True


class Unauthorized(PersonaError):
    """Missing, wrong or insufficient credentials."""

    code, reason = -32015, "unauthorized"


class StartupError(Exception):
    """The command cannot start or go on. Its text is one line for the operator.

    `exit_code` is the process's exit status.
    """

    exit_code: ClassVar[int] = 1


class SettingsError(StartupError):
    """An unknown key or a bad value in the settings."""

    exit_code = 2


class DatabaseError(StartupError):
    """The database file cannot be used: newer than this program, corrupt, or not writable."""


class DatabaseUnreadable(DatabaseError):
    """The database file cannot be looked at, so that nothing is known of it."""

    exit_code = 2
