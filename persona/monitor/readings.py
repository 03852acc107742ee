"""What `app` hands the monitor to look at."""

import attrs


@attrs.frozen(kw_only=True)
class Readings:
    """What there is at this moment. `app` reads it off the services."""

    draining: bool
    connections: int
    half_open: int
    outbox_bytes: int
    requests_bytes: int
    handlers_running: int
    write_queue: int
    read_queue: int
    readers_busy: int
    mean_batch: float
    background_queued: int
    llm_running: int
    llm_queued: int
    llm_available: bool | None


@attrs.frozen(kw_only=True)
class Capacities:
    """How much there may be of it; 0 where there is no limit."""

    max_connections: int
    handler_pool_size: int
    max_personas: int
    memory_soft_limit_bytes: int
    memory_limit_bytes: int
    database_readers: int
    background_queue_size: int
    llm_max_concurrency: int
    llm_max_queue: int

    def by_name(self) -> dict[str, int]:
        """For the metric `persona_limit`."""
        return attrs.asdict(self)
