"""How the kinds of model servers that `standin` plays write their answers."""

import json
from typing import Any, Literal, Protocol

Kind = Literal["ollama", "openai"]


def to_json(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode()


class Dialect(Protocol):
    """One kind of server. Values are JSON-ready; a frame is what the wire carries."""

    models_path: str
    chat_path: str
    media_type: str

    def max_tokens(self, body: dict[str, Any]) -> int:
        """The limit a chat request sets."""
        ...

    def models(self, names: tuple[str, ...]) -> object: ...

    def error(self, text: str) -> object: ...

    def token(self, model: str, text: str) -> object: ...

    def tool_call(self, model: str) -> object: ...

    def end(self, model: str, reason: str, tokens: int | None) -> list[bytes]:
        """The frames after the last token; `tokens` is reported unless it is `None`."""
        ...

    def frame(self, value: object) -> bytes:
        """A value, or a string as it stands, as it goes over the wire."""
        ...


class Ollama:
    models_path = "/api/tags"
    chat_path = "/api/chat"
    media_type = "application/x-ndjson"

    def max_tokens(self, body: dict[str, Any]) -> int:
        return int(body["options"]["num_predict"])

    def models(self, names: tuple[str, ...]) -> object:
        return {"models": [{"name": name, "model": name, "size": 1} for name in names]}

    def error(self, text: str) -> object:
        return {"error": text}

    def token(self, model: str, text: str) -> object:
        return {"model": model, "message": {"role": "assistant", "content": text}, "done": False}

    def tool_call(self, model: str) -> object:
        call = {"function": {"name": "dice", "arguments": {"sides": 6}}}
        said = {"role": "assistant", "content": "", "tool_calls": [call]}
        return {"model": model, "message": said, "done": False}

    def end(self, model: str, reason: str, tokens: int | None) -> list[bytes]:
        counts = {} if tokens is None else {"prompt_eval_count": 11, "eval_count": tokens}
        said = {"role": "assistant", "content": ""}
        return [self.frame({"model": model, "message": said, "done": True, "done_reason": reason, **counts})]

    def frame(self, value: object) -> bytes:
        return (value.encode() if isinstance(value, str) else to_json(value)) + b"\n"


class OpenAI:
    models_path = "/v1/models"
    chat_path = "/v1/chat/completions"
    media_type = "text/event-stream; charset=utf-8"

    def max_tokens(self, body: dict[str, Any]) -> int:
        return int(body["max_tokens"])

    def models(self, names: tuple[str, ...]) -> object:
        return {"object": "list", "data": [{"id": name, "object": "model"} for name in names]}

    def error(self, text: str) -> object:
        return {"error": {"message": text, "type": "server_error", "code": None}}

    def token(self, model: str, text: str) -> object:
        return self._chunk(model, {"content": text}, None)

    def tool_call(self, model: str) -> object:
        call = {"index": 0, "id": "1", "type": "function", "function": {"name": "dice", "arguments": "{}"}}
        return self._chunk(model, {"content": None, "tool_calls": [call]}, None)

    def end(self, model: str, reason: str, tokens: int | None) -> list[bytes]:
        frames = [self.frame(self._chunk(model, {}, reason))]
        if tokens is not None:
            usage = {"prompt_tokens": 11, "completion_tokens": tokens, "total_tokens": 11 + tokens}
            frames.append(self.frame({"object": "chat.completion.chunk", "choices": [], "usage": usage}))
        return [*frames, b"data: [DONE]\n\n"]

    def frame(self, value: object) -> bytes:
        return b"data: " + (value.encode() if isinstance(value, str) else to_json(value)) + b"\n\n"

    def _chunk(self, model: str, delta: dict[str, Any], reason: str | None) -> object:
        choice = {"index": 0, "delta": delta, "finish_reason": reason}
        return {"object": "chat.completion.chunk", "model": model, "choices": [choice], "usage": None}


DIALECTS: dict[Kind, Dialect] = {"ollama": Ollama(), "openai": OpenAI()}
