"""What a worker says of itself before it starts: Celery's headings, so that tools find them, and no more than fits a glance."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ..core.settings import mask_url
from ..tasks.control import known_queues
from .session import Session, plural

if TYPE_CHECKING:
    from ..app import Celeriac
    from ..worker.options import WorkerOptions

_MOST_TASKS = 30


def banner(session: Session, app: Celeriac, options: WorkerOptions, version: str) -> str:
    """Several lines, with the passwords of URLs hidden."""
    queues = options.queues or known_queues(app.conf)
    queues = [name for name in queues if name not in options.exclude_queues]
    tasks = sorted(name for name in app.tasks if not name.startswith(("celery.", "celeriac.")))
    results = (
        "disabled"
        if app.backend.url.startswith("disabled")
        else f"{mask_url(app.backend.url)} (with the messages)"
        if app.results_with_broker
        else mask_url(app.backend.url)
    )
    shown = tasks[:_MOST_TASKS]
    title = session.style(options.hostname, fg="cyan", bold=True)
    lines = [
        "",
        f"{title} v{version}",
        "",
        session.style("[config]", bold=True),
        f".> app:         {app.main or 'app'}{f' ({options.app_path})' if options.app_path else ''}",
        f".> transport:   {mask_url(app.broker.url)}",
        f".> results:     {results}",
        f".> concurrency: {_concurrency(app, options)} ({options.pool})",
        "",
        session.style("[queues]", bold=True),
        *(f".> {name}" for name in queues),
        "",
        session.style(f"[tasks] {plural(len(tasks), 'task')}", bold=True),
        *(f"  . {name}" for name in shown),
    ]
    if len(tasks) > len(shown):
        lines.append(f"  … and {len(tasks) - len(shown)} more (`celeriac list tasks`)")
    return "\n".join([*lines, ""])


def _concurrency(app: Celeriac, options: WorkerOptions) -> str:
    if options.pool == "solo":
        return "1"
    if options.autoscale is not None:
        most, fewest = options.autoscale
        return f"{fewest} to {most}, as needed"
    each = options.concurrency or app.conf.worker_concurrency
    text = str(each) if each else str(_processors()) if options.pool == "prefork" else "as the pool decides"
    return f"{options.processes} × {text}" if options.processes and options.processes > 1 else text


def _processors() -> int:
    import os

    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
