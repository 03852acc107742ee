"""One run: the server it is against, the processes that load it, and the document that comes of it."""

import shlex
from collections.abc import Callable
from typing import Any

import attrs

from loadgen.driver import Driver, Hooks
from loadgen.link import Target
from loadgen.recorder import Second
from loadgen.results import Document, added, completed, measured
from loadgen.scenario import Arrivals, Scenario, load_scenario
from loadgen.servers import ServerProcess, running
from loadgen.serverwatch import ServerWatch
from loadgen.workers import Workers


@attrs.frozen(kw_only=True)
class Plan:
    """What to run. What is `None` is the scenario's own. Can be sent to another process: see `as_json`."""

    scenario: str
    connections: int | None = None
    seconds: float | None = None
    rate: float | None = None
    warm_up_s: float | None = None
    arrivals: Arrivals | None = None
    timeout_s: float = 60.0
    seed: int = 0
    token: str | None = attrs.field(default=None, repr=False)

    def load(self) -> Scenario:
        """The scenario, fitted. Raises `ScenarioError`."""
        return load_scenario(self.scenario).fitted(
            connections=self.connections,
            seconds=self.seconds,
            rate=self.rate,
            warm_up_s=self.warm_up_s,
            arrivals=self.arrivals,
        )

    def as_json(self) -> dict[str, Any]:
        """For `Plan(**...)` elsewhere."""
        return attrs.asdict(self)


def run(
    plan: Plan,
    *,
    url: str | None = None,
    server: str = "trio-websocket",
    workers: int = 1,
    command: str = "",
    on_second: Callable[[Second], None] = lambda _: None,
) -> Document:
    """Run it against `url`, or against a server of its own, of `servers.OURS` or `servers.PEERS`.

    Raises `ScenarioError`, `RuntimeError` where a process does not start, and `OSError` and `ValueError` for
    a URL that leads nowhere.
    """
    scenario = plan.load()
    exit_code: int | None = None
    if url is not None:
        document = _load(plan, scenario, url, None, workers, on_second)
    else:
        with running(server, scenario.server) as process:
            document = _load(plan, scenario, process.url, process, workers, on_second)
            exit_code = process.stop()
    return completed(
        document,
        scenario,
        command=command or f"loadgen run {shlex.quote(plan.scenario)}",
        server=url or server,
        exit_code=exit_code,
        # A peer has no drain to be judged by.
        owned=url is None and server in ("sansio", "trio-websocket"),
    )


def _load(
    plan: Plan,
    scenario: Scenario,
    url: str,
    process: ServerProcess | None,
    workers: int,
    on_second: Callable[[Second], None],
) -> Document:
    watch = ServerWatch(process)
    if workers > 1:
        with Workers(plan.as_json(), url, workers) as crowd:
            return added(crowd.run(watch.sample, on_second))
    driver = Driver(
        scenario,
        Target.of(url),
        timeout_s=plan.timeout_s,
        token=plan.token,
        seed=plan.seed,
        hooks=Hooks(on_second=on_second, sample_server=watch.sample, watch_script=watch.script),
    )
    driver.run()
    return measured(driver)
