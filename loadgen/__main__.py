"""`python -m loadgen`: drive a server and print what it did."""

import ipaddress
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager
from urllib.parse import urlsplit

import click
import trio

from loadgen.closed import LoadClient, Plan, Report, run
from loadgen.workload import WORKLOADS
from persona.client import open_client

BUSY_SHARE = 0.9
"""From this share of a core on, the load generator is what the figures show."""

HINTS = {
    "rate_limited": "the server limits the messages of one connection; for a load test start it with "
    "PERSONA_LIMITS_RATE_LIMIT_PER_MINUTE=0",
    "overloaded": "the server refused what it had no room for; use fewer connections",
    "persona_unavailable": "personas tire of talking; they come back after a rest",
    "http_503": "the server is full; see limits.max_connections and limits.max_connections_per_address",
    "wrong_answer": "an answer did not belong to its request: this is a bug",
}


def is_loopback(url: str) -> bool:
    """Whether the URL names this machine, without asking a name server."""
    try:
        host = urlsplit(url).hostname or ""
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def lines(report: Report) -> Iterator[str]:
    """The report, for people."""
    yield f"connects   {report.connected} ok, {report.connect_failures.total()} failed"
    yield f"requests   {len(report.latencies_s)} answered, {report.errors.total()} failed"
    yield f"rate       {report.requests_per_s:.1f} req/s over {report.measured_s:.1f} s"
    if report.latencies_s:
        p50, p90, p99, highest = (f"{value * 1000:.2f}" for value in report.percentiles_s(0.5, 0.9, 0.99, 1))
        yield f"latency    p50 {p50}  p90 {p90}  p99 {p99}  max {highest} ms"
    for kind, count in (report.connect_failures + report.errors).most_common():
        yield f"error      {kind}: {count}" + (f" ({HINTS[kind]})" if kind in HINTS else "")
    if report.cpu_share > BUSY_SHARE:
        yield f"warning    the load generator used {report.cpu_share:.0%} of a core: it was the bottleneck"


@click.command(context_settings={"show_default": True})
@click.option("--url", default="ws://127.0.0.1:8000/mcp", help="Server to drive.")
@click.option("--connections", type=click.IntRange(1, 10_000), default=10, help="Clients at once.")
@click.option("--duration", type=click.FloatRange(0, min_open=True), default=10.0, help="Seconds measured.")
@click.option("--warmup", type=click.FloatRange(0), default=2.0, help="Seconds before that, not measured.")
@click.option("--timeout", type=click.FloatRange(0, min_open=True), default=60.0, help="Seconds per request.")
@click.option("--method", type=click.Choice(sorted(WORKLOADS)), default="system.ping", help="What to call.")
@click.option("--allow-remote", is_flag=True, help="Drive a server on another machine. Ask its owner first.")
def main(
    url: str,
    connections: int,
    duration: float,
    warmup: float,
    timeout: float,
    method: str,
    allow_remote: bool,
) -> None:
    """Closed-loop load: every client asks, waits for the answer, and asks again.

    Exits with 1 when anything failed, or nothing succeeded.
    """
    if not allow_remote and not is_loopback(url):
        raise click.UsageError(f"{url} is not this machine; --allow-remote drives it all the same")
    plan = Plan(connections=connections, duration_s=duration, warmup_s=warmup, timeout_s=timeout)

    def connect() -> AbstractAsyncContextManager[LoadClient]:
        return open_client(url)

    report: Report | None = None
    try:
        report = trio.run(run, plan, WORKLOADS[method](), connect)
    except* KeyboardInterrupt:
        pass  # Half a run is not reported: it would look like a whole one.
    if report is None:
        raise click.Abort
    for line in lines(report):
        click.echo(line)
    if not report.is_clean:
        raise SystemExit(1)


if __name__ == "__main__":
    main(prog_name="python -m loadgen")
