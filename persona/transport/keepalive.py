"""Asks every connection in turn whether its peer is still there."""

from typing import Protocol

import trio

from persona.timeouts import TimeoutQueue


class Peer(Protocol):
    """Somebody to be asked. Compared by identity."""

    def ask(self) -> None:
        """See whether it is there; never waits."""
        ...


class Keepalive:
    """`run` is the service. An interval of 0 asks nobody."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        self._peers = TimeoutQueue[Peer](interval_s, self._ask)

    def add(self, peer: Peer) -> None:
        """Ask `peer` each interval from now on."""
        self._peers.add(peer)

    def remove(self, peer: Peer) -> None:
        """Ask `peer` no more."""
        self._peers.remove(peer)

    def _ask(self, peer: Peer) -> None:
        # Listed again first: it may leave when it is asked.
        self._peers.add(peer)
        peer.ask()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask until cancelled."""
        if self._interval_s:
            await self._peers.run(task_status=task_status)
        else:
            task_status.started()
