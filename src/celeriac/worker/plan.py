"""What a process of a worker has to know. It travels as JSON to a spawned process."""

from __future__ import annotations

from msgspec import Struct


class Plan(Struct, frozen=True, kw_only=True):
    """The same for all processes of a worker, but for `process`. A changed plan reaches processes when they are replaced."""

    app_path: str = ""
    """What `-A` said; a spawned process imports it."""
    node: str
    hostname: str
    process: int = 0
    supervisor_pid: int
    queues: list[str]
    pool: str
    places: int = 1
    """How many tasks a process runs at once."""
    start_method: str = "fork"
    time_limit: float | None = None
    soft_time_limit: float | None = None
    max_tasks: int | None = None
    task_limits: dict[str, tuple[float | None, float | None]] = {}
    """(hard, soft) set by remote control, by task name."""
    rate_limits: dict[str, str | None] = {}
    """Set by remote control, by task name."""
    audit_seconds: float = 0.0
    """How often a process asks an engine that forgets what it is thought to hold; 0.0: never."""
    rates_fd: int
    """The descriptor of the rate limits' buckets, which all processes share."""
    loglevel: str = "WARNING"
    logfile: str | None = None
    include: list[str] = []
