"""Asks every connection in turn whether its peer is still there. One task for all of them.

A task for each would cost some 3 kB a connection, to sleep. All have the same interval, so who was asked
last is asked last again, and a queue is all the schedule there is.
"""

from typing import Protocol

import trio

BURST = 50
"""Asked without letting anybody else run. A thousand clients may have come at one moment."""


class Peer(Protocol):
    """Somebody to be asked. Compared by identity."""

    def ask(self) -> None:
        """See whether it is there; never waits."""
        ...


class Keepalive:
    """`run` is the service. An interval of 0 asks nobody."""

    def __init__(self, interval_s: float) -> None:
        self._interval_s = interval_s
        # In the order in which they are due: a dict, because peers also leave from the middle.
        self._due: dict[Peer, float] = {}
        self._somebody = trio.lowlevel.ParkingLot()

    def add(self, peer: Peer) -> None:
        """Ask `peer` each interval from now on."""
        self._due[peer] = trio.current_time() + self._interval_s
        self._somebody.unpark()

    def remove(self, peer: Peer) -> None:
        """Ask `peer` no more."""
        self._due.pop(peer, None)

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Ask until cancelled."""
        task_status.started()
        if not self._interval_s:
            return
        while True:
            while not self._due:
                await self._somebody.park()
            await trio.sleep_until(next(iter(self._due.values())))
            self._ask_due()

    def _ask_due(self) -> None:
        now = trio.current_time()
        for _ in range(BURST):
            peer = next(iter(self._due), None)
            if peer is None or self._due[peer] > now:
                return
            del self._due[peer]
            self._due[peer] = now + self._interval_s
            peer.ask()
