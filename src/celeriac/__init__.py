"""Celeriac: background tasks for Python and Django, with Celery's API."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from .app import Celeriac, current_app, current_task, shared_task
from .canvas import Signature, chain, chord, chunks, group, maybe_signature, signature, subtask, xmap, xstarmap
from .core import states
from .core.ids import new_id as uuid
from .tasks.groups import GroupResult
from .tasks.result import AsyncResult, EagerResult
from .tasks.task import Task

if TYPE_CHECKING:
    from .core.schedules import crontab, schedule, solar

__version__ = "0.1.0"

Celery = Celeriac

__all__ = [
    "AsyncResult",
    "Celeriac",
    "Celery",
    "EagerResult",
    "GroupResult",
    "Signature",
    "Task",
    "__version__",
    "chain",
    "chord",
    "chunks",
    "crontab",
    "current_app",
    "current_task",
    "group",
    "maybe_signature",
    "schedule",
    "shared_task",
    "signature",
    "solar",
    "states",
    "subtask",
    "uuid",
    "xmap",
    "xstarmap",
]


if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        # A web process that only calls delay() has no schedules to read.
        if name in ("crontab", "schedule", "solar"):
            from .core import schedules

            return getattr(schedules, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
