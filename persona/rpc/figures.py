"""What `system.metrics` answers, and the topic of that name publishes once a second.

Base units throughout: seconds, bytes, shares from 0 to 1. What is not known is null.
"""

from typing import Any

import attrs


@attrs.frozen(kw_only=True, slots=False)
class LatencyFigures:
    """Seconds; the percentiles are known to one bucket of the histogram."""

    avg: float | None
    p50: float | None
    p95: float | None
    p99: float | None


@attrs.frozen(kw_only=True, slots=False)
class MethodFigures:
    """One method's calls in the window."""

    count: int
    per_second: float
    p50: float | None
    p95: float | None
    p99: float | None


@attrs.frozen(kw_only=True, slots=False)
class ConnectionFigures:
    """Refused and closed are counted since the start, by reason and by cause."""

    open: int
    half_open: int
    max: int
    refused: dict[str, int]
    closed: dict[str, int]


@attrs.frozen(kw_only=True, slots=False)
class RequestFigures:
    """`total` is since the start; everything else is of the window. `error_ratio` is the share of calls that
    failed by no fault of the client's."""

    total: int
    per_second: float
    error_ratio: float
    latency_s: LatencyFigures
    by_method: dict[str, MethodFigures]


@attrs.frozen(kw_only=True, slots=False)
class Holding:
    """What is held for one client: answers it has not taken, and requests not yet answered."""

    session_id: str
    user: str
    bytes: int
    outbox_bytes: int
    requests_bytes: int


@attrs.frozen(kw_only=True, slots=False)
class MemoryFigures:
    """The resident set. A limit of 0 is off. `heaviest` is for admins."""

    resident_bytes: int | None
    growth_bytes_per_s: float | None
    soft_limit_bytes: int
    hard_limit_bytes: int
    held_bytes: int
    heaviest: list[Holding]


@attrs.frozen(kw_only=True, slots=False)
class LoopFigures:
    """How late the event loop came to what was due: in the last second, and at worst in the window."""

    lag_s: float
    max_lag_s: float


@attrs.frozen(kw_only=True, slots=False)
class HandlerFigures:
    """The handler pool."""

    running: int
    limit: int


@attrs.frozen(kw_only=True, slots=False)
class DatabaseFigures:
    """Calls that wait for the writer and for the readers, and writes in a commit."""

    write_queue: int
    read_queue: int
    readers_busy: int
    readers: int
    mean_batch: float


@attrs.frozen(kw_only=True, slots=False)
class BackgroundFigures:
    """Jobs; `dropped` since the start."""

    queued: int
    limit: int
    dropped: int


@attrs.frozen(kw_only=True, slots=False)
class PercentileFigures:
    """Seconds; known to one bucket of the histogram."""

    p50: float | None
    p95: float | None
    p99: float | None


@attrs.frozen(kw_only=True, slots=False)
class Bucket:
    """How many took longer than the bucket before, and at most `le` seconds; null is no bound."""

    le: float | None
    count: int


@attrs.frozen(kw_only=True, slots=False)
class DistributionFigures(PercentileFigures):
    """And how they are spread. `buckets` count for themselves, not cumulated."""

    buckets: list[Bucket]


@attrs.frozen(kw_only=True, slots=False)
class ModelFigures:
    """`available` is null until it is known. `seconds` is how long slots were held."""

    running: int
    slots: int
    queued: int
    limit: int
    tokens_per_second: float
    available: bool | None
    first_token_s: PercentileFigures
    seconds: DistributionFigures


@attrs.frozen(kw_only=True, slots=False)
class MonitorFigures:
    """What the monitor's own looks took, since the start."""

    samples: int
    sample_s: PercentileFigures


@attrs.frozen(kw_only=True, slots=False)
class AlertView:
    """An alert that is raised."""

    name: str
    since: str
    value: float
    threshold: float
    text: str


@attrs.frozen(kw_only=True, slots=False)
class SystemMetrics:
    """Answer of `system.metrics`. `covered_s` is what there is of the window."""

    time: str
    window_s: float
    covered_s: float
    uptime_seconds: float
    status: str
    connections: ConnectionFigures
    requests: RequestFigures
    errors: dict[str, int]
    memory: MemoryFigures
    loop: LoopFigures
    handlers: HandlerFigures
    database: DatabaseFigures
    background: BackgroundFigures
    model: ModelFigures
    monitor: MonitorFigures
    alerts: list[AlertView]


@attrs.frozen(kw_only=True, slots=False)
class SystemTasks:
    """Answer of `system.tasks`. `tasks` is how many there are; `tree` and `text` show the same ones."""

    tasks: int
    tree: dict[str, Any]
    text: str
