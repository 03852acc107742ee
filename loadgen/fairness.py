"""`python -m loadgen.fairness`: how a real server shares the slots of its model between clients.

The model is the scripted one, and every answer has the same length, so every turn holds its slot for the same
time: what differs between clients is their place in the queue and nothing else. Clients ask again as soon
as they are answered. The wait is from asking to the first token, that of the model included. One round is as
many chats as there are equal clients. The mark is set on chats served meanwhile and not on seconds: a machine
that is slow for a moment makes one wait longer than another, but puts nobody before anybody else. The
differences in seconds are shown beside it.

First come, first served is measured on the same server: there all clients come with one token, so they are
one user, and the turns of one user are served as they came.
"""

import select
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack

import attrs
import click

from loadgen.servers import OURS, ServerProcess, running
from loadgen.wire import SILENCE_S, WireConnection, WrongAnswer, request_frame
from persona.transport.admission import token_hash

FIRST_TOKEN_S = 0.05
TOKENS_PER_S = 100
TOKENS = 10
"""Fewer than any answer of the script has, so each is cut to just as many."""
HELD_S = FIRST_TOKEN_S + (TOKENS - 1) / TOKENS_PER_S
TOKEN = "everybody"  # noqa: S105 - of a server that lives for this measurement


@attrs.frozen(kw_only=True)
class Crowd:
    """Who asks: `singles` with one chat at a time, each `turns` times, and `greedy` clients with `in_flight`
    chats each, in as many conversations, until the singles are done."""

    singles: int
    turns: int
    greedy: int = 0
    in_flight: int = 10


@attrs.frozen
class Turn:
    """One answered chat. `number` counts those of its chain, from 0; `served_meanwhile` is how many others
    got their first token while it waited for its own."""

    is_single: bool
    number: int
    wait_s: float
    served_meanwhile: int = 0


@attrs.frozen
class Run:
    """What a crowd met."""

    crowd: Crowd
    turns: tuple[Turn, ...]
    took_s: float

    @property
    def round_s(self) -> float:
        """As long as one turn of each single client took at the rate at which turns were served."""
        return self.took_s / len(self.turns) * self.crowd.singles

    def waits_s(self) -> list[float]:
        """Of the single clients."""
        return sorted(turn.wait_s for turn in self.turns if turn.is_single)

    def spreads_s(self) -> list[float]:
        """The most that the waits of two single clients differ: of their first chats, their second, ..."""
        return self._spreads(lambda turn: turn.wait_s)

    def rounds_apart(self) -> float:
        """The most that two single clients differ in what was served while their n-th chats waited."""
        return max(self._spreads(lambda turn: turn.served_meanwhile)) / self.crowd.singles

    def _spreads(self, value: Callable[[Turn], float]) -> list[float]:
        by_number: dict[int, list[float]] = {}
        for turn in self.turns:
            if turn.is_single:
                by_number.setdefault(turn.number, []).append(value(turn))
        return [max(values) - min(values) for _, values in sorted(by_number.items())]

    def greedy_share(self) -> float:
        """Of all turns served, those of greedy clients."""
        return Counter(turn.is_single for turn in self.turns)[False] / len(self.turns)


@attrs.define(eq=False)
class _Chain:
    """Chats asked one after the other, in one conversation."""

    connection: WireConnection
    request_id: int
    persona: str
    is_single: bool
    number: int = 0
    asked_at: float = 0.0
    first_at: float = 0.0
    served_before: int = 0
    served_meanwhile: int = 0

    def ask(self, served: int) -> None:
        """Ask, when so many chats were served in all."""
        params = {"message": "Tell me a long story", "persona_id": self.persona, "token_budget": TOKENS}
        self.asked_at, self.first_at, self.served_before = time.perf_counter(), 0.0, served
        self.connection.send(request_frame(self.request_id, "persona.chat_stream", params))

    def is_first_token(self, event: dict[str, object], served: int) -> bool:
        """Whether this is the first token of the chat."""
        if event["event_type"] != "stream_chunk" or self.first_at:
            return False
        self.first_at, self.served_meanwhile = time.perf_counter(), served - self.served_before
        return True

    def ended(self, event: dict[str, object]) -> Turn | None:
        """The turn, if this was its end."""
        if event["event_type"] != "stream_complete":
            return None
        turn = Turn(self.is_single, self.number, self.first_at - self.asked_at, self.served_meanwhile)
        self.number += 1
        return turn


def drive(url: str, crowd: Crowd, *, token: str = "") -> Run:
    """Let `crowd` loose on the server. Raises `WrongAnswer`."""
    with ExitStack() as stack:
        chains: dict[tuple[int, int], _Chain] = {}
        for index in range(crowd.greedy + crowd.singles):
            connection = stack.enter_context(WireConnection.open(url, token=token))
            # Who comes with a token would go on with that user's last conversation, all in the same one.
            connection.call("session.clear", {})
            is_single = index >= crowd.greedy
            for n in range(1 if is_single else crowd.in_flight):
                chain = _Chain(connection, n, "Aria" if is_single else f"Greed {n}", is_single)
                chains[connection.fileno(), n] = chain
        if crowd.greedy:
            first = next(iter(chains.values())).connection
            for n in range(crowd.in_flight):
                first.call("persona.create", {"name": f"Greed {n}", "description": "One of many."})
        return _drive(chains, crowd)


def _drive(chains: dict[tuple[int, int], _Chain], crowd: Crowd) -> Run:
    turns: list[Turn] = []
    left, served = crowd.singles * crowd.turns, 0
    connections = {chain.connection.fileno(): chain.connection for chain in chains.values()}
    with select.epoll() as epoll:
        for fd in connections:
            epoll.register(fd, select.EPOLLIN)
        started = time.perf_counter()
        for chain in chains.values():
            chain.ask(served)
        while left:
            events = epoll.poll(SILENCE_S)
            if not events:
                raise WrongAnswer(f"nothing came for {SILENCE_S} s")
            for fd, _ in events:
                for message in connections[fd].receive():
                    if "result" not in message:
                        raise WrongAnswer(str(message))
                    chain = chains[fd, message["id"]]
                    served += chain.is_first_token(message["result"], served)
                    turn = chain.ended(message["result"])
                    if turn is None:
                        continue
                    turns.append(turn)
                    left -= turn.is_single
                    if not turn.is_single or chain.number < crowd.turns:
                        chain.ask(served)
        return Run(crowd, tuple(turns), time.perf_counter() - started)


def measure(engine: str, crowd: Crowd, *, slots: int, in_order_of_coming: bool = False) -> Run:
    """`crowd` on a server of its own. Raises `WrongAnswer`, `RuntimeError`."""
    settings: dict[str, object] = {
        "llm.max_concurrency": slots,
        "llm.max_queue": 10_000,
        "llm.scripted_first_token_s": FIRST_TOKEN_S,
        "llm.scripted_tokens_per_s": TOKENS_PER_S,
        "personas.recovery_s": 0,
    }
    if in_order_of_coming:
        settings["auth.tokens"] = f"everybody:admin:{token_hash(TOKEN)}"
    server: ServerProcess
    with running(engine, settings) as server:
        return drive(server.url, crowd, token=TOKEN if in_order_of_coming else "")


def equals_table(run: Run, slots: int) -> Iterator[str]:
    """Equal clients: how far apart they are."""
    waits, rounds = run.waits_s(), run.rounds_apart()
    spreads = ", ".join(f"{spread_s:.2f} s" for spread_s in run.spreads_s())
    yield "| clients | slots | one round | shortest wait | median | longest | apart, by chat | at most |"
    yield "|---|---|---|---|---|---|---|---|"
    yield (
        f"| {run.crowd.singles} | {slots} | {run.round_s:.2f} s | {waits[0]:.2f} s "
        f"| {statistics.median(waits):.2f} s | {waits[-1]:.2f} s | {spreads} "
        f"| {rounds:.2f} rounds (mark 1: {'ok' if rounds <= 1 else '**missed**'}) |"
    )


def greedy_table(rows: Sequence[tuple[Run, Run]]) -> Iterator[str]:
    """Greedy clients beside single ones, each crowd in turns and first come, first served."""
    yield "| crowd | | median wait of the single ones | longest | served to the greedy ones |"
    yield "|---|---|---|---|---|"
    for fair, fifo in rows:
        crowd = fair.crowd
        for run, name in ((fair, "clients in turn"), (fifo, "first come, first served")):
            waits = run.waits_s()
            yield (
                f"| {crowd.greedy} with {crowd.in_flight} in flight, {crowd.singles} with one | {name} "
                f"| {statistics.median(waits):.2f} s | {waits[-1]:.2f} s | {run.greedy_share():.0%} |"
            )


@click.command(context_settings={"show_default": True})
@click.option("--engine", type=click.Choice(OURS), default="sansio", help="The server's engine.")
@click.option("--clients", type=click.IntRange(2, 2000), default=500, help="Equal clients that queue.")
@click.option("--slots", type=click.IntRange(1), default=4, help="Slots of the model.")
@click.option("--turns", type=click.IntRange(1), default=2, help="Chats of each client.")
@click.option("--singles", type=click.IntRange(1), default=50, help="Clients beside a greedy one.")
def main(engine: str, clients: int, slots: int, turns: int, singles: int) -> None:
    """Measure how fairly the model's slots are shared, and print tables in Markdown.

    Exits with 1 when two equal clients were more than a round apart.
    """
    try:
        equal = measure(engine, Crowd(singles=clients, turns=turns), slots=slots)
        rows = []
        for crowd in (
            Crowd(singles=singles, turns=2 * turns, greedy=1),
            Crowd(singles=max(1, singles // 10), turns=2 * turns, greedy=10),
        ):
            fair = measure(engine, crowd, slots=slots)
            rows.append((fair, measure(engine, crowd, slots=slots, in_order_of_coming=True)))
    except (WrongAnswer, RuntimeError) as exc:
        raise click.ClickException(str(exc)) from None
    click.echo("\n".join((*equals_table(equal, slots), "", *greedy_table(rows))))
    if equal.rounds_apart() > 1:
        raise SystemExit(1)


if __name__ == "__main__":
    main(prog_name="python -m loadgen.fairness")
