"""What can go wrong for a client. `str()` of each is one line, fit to be shown to a user."""

from typing import Any, Self


class ClientError(Exception):
    """Any failure this package raises."""


class ConnectFailed(ClientError):
    """No connection came about: refused, answered with an HTTP status, or too slow.

    `status` is the HTTP status, if there was one; `retry_after_s` what its `Retry-After` said.
    """

    def __init__(
        self, message: str, *, status: int | None = None, retry_after_s: float | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.retry_after_s = retry_after_s


class ConnectionLost(ClientError):
    """The connection has ended, with a call unanswered or before one was made.

    A request that was under way may or may not have taken effect. `code` is the WebSocket close
    code, 1006 where the connection just broke off.
    """

    def __init__(self, message: str, *, code: int = 1006) -> None:
        super().__init__(message)
        self.code = code


class MessageTooLarge(ClientError):
    """The message is larger than the server takes, so it was not sent; the connection is fine.

    The server would answer it by closing the connection.
    """

    def __init__(self, size_bytes: int, max_message_bytes: int) -> None:
        super().__init__(
            f"the message is {size_bytes} bytes long; the server takes at most {max_message_bytes}"
        )
        self.size_bytes = size_bytes
        self.max_message_bytes = max_message_bytes


class InvalidMessage(ClientError):
    """The message holds what JSON cannot carry, such as an integer of more than 64 bits, so it was not
    sent; the connection is fine."""


class UnexpectedAnswer(ClientError):
    """The server answered something that is not what the protocol says the method answers."""


class RemoteError(ClientError):
    """The server's error reply. `reason` is the stable name to act on; `data` is all that came."""

    def __init__(
        self,
        code: int,
        message: str,
        *,
        reason: str = "unknown",
        retryable: bool = False,
        retry_after_s: float | None = None,
        field: str | None = None,
        data: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(f"{reason}: {message}")
        self.code = code
        self.message = message
        self.reason = reason
        self.retryable = retryable
        self.retry_after_s = retry_after_s
        self.field = field
        self.data = data or {}

    @classmethod
    def from_wire(cls, error: Any) -> Self:
        """Read an `error` object, however little of it is there."""
        error = error if isinstance(error, dict) else {}
        data = error.get("data")
        data = data if isinstance(data, dict) else {}
        code, retry_after_s, field = error.get("code"), data.get("retry_after_s"), data.get("field")
        return cls(
            code if isinstance(code, int) else -32603,
            one_line(str(error.get("message", "no message"))),
            reason=one_line(str(data.get("reason", "unknown"))),
            retryable=data.get("retryable") is True,
            retry_after_s=float(retry_after_s) if isinstance(retry_after_s, int | float) else None,
            field=field if isinstance(field, str) else None,
            data=data,
        )


def one_line(text: str, max_chars: int = 300) -> str:
    """`text` with runs of white space and control characters made one space, cut to `max_chars`."""
    line = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return line if len(line) <= max_chars else f"{line[: max_chars - 3]}..."
