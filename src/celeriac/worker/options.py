"""What a worker is started with. Data only, so that the command line, tests and `--reload` build the same thing without importing a worker."""

from __future__ import annotations

from msgspec import Struct


class WorkerOptions(Struct, frozen=True, kw_only=True):
    """One start of a worker, fully spelled out. What is None is left to the settings, or to the machine."""

    app_path: str | None = None
    """How to find the app again in a process that inherits nothing (`spawn`, reload): the value of `-A`."""
    hostname: str = ""
    """The node's name with everything expanded: `celeriac@host`."""
    queues: list[str] | None = None
    """None: those that the settings name."""
    exclude_queues: list[str] = []
    pool: str = "prefork"
    concurrency: int | None = None
    """How many tasks may run at once; None: `worker_concurrency`, or one for each processor."""
    processes: int | None = None
    """How many processes share that work, for pools that run several tasks in one; None: one."""
    max_tasks_per_child: int | None = None
    max_memory_per_child: int | None = None
    """KiB of resident memory."""
    autoscale: tuple[int, int] | None = None
    """The most and the fewest processes."""
    time_limit: float | None = None
    soft_time_limit: float | None = None
    start_method: str = "fork"
    loglevel: str = "WARNING"
    logfile: str | None = None
    purge: bool = False
    task_events: bool = False
    beat: bool = False
    include: list[str] = []
    soft_shutdown_timeout: float | None = None
    reload: bool = False
