"""Reads what a server says, strictly: the other half of the codec, to try the encoders with."""

from typing import Any

import attrs
import orjson

from persona.rpc.jsonrpc import MAX_ID, Id, Notification, decode

ABSENT: Any = object()


class ProtocolViolation(ValueError):
    """The server sent what is no JSON-RPC reply or notification."""


@attrs.frozen
class Reply:
    """The result of the request `id`."""

    id: str | int
    result: Any


@attrs.frozen
class ErrorReply:
    """The failure of the request `id`; None where the server could not tell which."""

    id: Id
    code: int
    message: str
    data: Any = None


ServerMessage = Reply | ErrorReply | Notification


def decode_reply(data: bytes | str) -> ServerMessage | tuple[ServerMessage, ...]:
    """What a server's frame says; a tuple, never empty, for a batch of replies.

    Raises `ProtocolViolation` for anything that is no reply and no notification, a request
    included: this server never calls its clients.
    """
    try:
        value = orjson.loads(data)
    except orjson.JSONDecodeError as exc:
        raise ProtocolViolation(f"not JSON: {exc}") from None
    if not isinstance(value, list):
        return _decode_server_message(value)
    if not value:
        raise ProtocolViolation("an empty batch")
    return tuple(_decode_server_message(entry) for entry in value)


def _decode_server_message(value: Any) -> ServerMessage:
    if not isinstance(value, dict) or value.get("jsonrpc") != "2.0":
        raise ProtocolViolation("not a JSON-RPC 2.0 object")
    if "method" in value:
        message = decode(orjson.dumps(value))
        if not isinstance(message, Notification):
            raise ProtocolViolation("not a notification, though it has a method")
        return message
    if ("result" in value) == ("error" in value):
        raise ProtocolViolation("a reply has either a result or an error")
    reply_id = value.get("id", ABSENT)
    if "result" in value:
        if not is_id(reply_id):
            raise ProtocolViolation("a result without a usable id")
        return Reply(reply_id, value["result"])
    if reply_id is not None and not is_id(reply_id):
        raise ProtocolViolation("an error without a usable id")
    return _decode_error(reply_id, value["error"])


def _decode_error(reply_id: Id, error: Any) -> ErrorReply:
    if not isinstance(error, dict):
        raise ProtocolViolation("an error that is no object")
    code, message = error.get("code"), error.get("message")
    if type(code) is not int or not isinstance(message, str):
        raise ProtocolViolation("an error needs an integer code and a message")
    return ErrorReply(reply_id, code, message, error.get("data"))


def is_id(value: Any) -> bool:
    return isinstance(value, str) or (type(value) is int and -MAX_ID <= value <= MAX_ID)
