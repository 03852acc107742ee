"""What is asked, and whether an answer is right."""

import uuid
from typing import Any, ClassVar, Protocol

import attrs


class Workload(Protocol):
    """A method, its params for the `n`-th request of a connection, and the check of its answer."""

    @property
    def method(self) -> str:
        """The method called."""
        ...

    def params(self, connection: int, n: int) -> dict[str, Any]:
        """What to ask. `connection` and `n` count from 0."""
        ...

    def is_right(self, params: dict[str, Any], answer: Any) -> bool:
        """Whether `answer` is one to `params` and not, say, to another connection's."""
        ...


def _new_nonce() -> str:
    return uuid.uuid4().hex[:8]


@attrs.frozen
class Ping:
    """`system.ping`: everything but the model and the disk."""

    method: ClassVar[str] = "system.ping"

    nonce: str = attrs.field(factory=_new_nonce)
    """Tells this run's payloads from those of another one against the same server."""

    def params(self, connection: int, n: int) -> dict[str, Any]:
        """A payload no other request has, so that a mixed-up answer shows."""
        return {"payload": f"{self.nonce}-{connection}-{n}"}

    def is_right(self, params: dict[str, Any], answer: Any) -> bool:
        """The payload came back as sent."""
        if not isinstance(answer, dict):
            return False
        return answer.get("pong") is True and answer.get("payload") == params["payload"]


@attrs.frozen
class Chat:
    """`persona.chat`: a whole turn, model and disk included."""

    method: ClassVar[str] = "persona.chat"

    personas: tuple[str, ...] = ("Aria", "Kira")
    """Names; connections take turns. These exist on a fresh database."""
    token_budget: int = 50

    def params(self, connection: int, n: int) -> dict[str, Any]:
        """One line to this connection's persona."""
        return {
            "message": f"Line {n} of guest {connection}: what is new?",
            "persona_id": self.personas[connection % len(self.personas)],
            "token_budget": self.token_budget,
        }

    def is_right(self, params: dict[str, Any], answer: Any) -> bool:
        """Something was said, and by the persona that was asked."""
        if not isinstance(answer, dict):
            return False
        response = answer.get("response")
        return (
            isinstance(response, str)
            and bool(response)
            and answer.get("persona_name") == params["persona_id"]
        )


WORKLOADS: dict[str, type[Ping] | type[Chat]] = {Ping.method: Ping, Chat.method: Chat}
