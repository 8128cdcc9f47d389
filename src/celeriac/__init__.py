"""Celeriac: background tasks for Python and Django, with Celery's API."""

from __future__ import annotations

from .app import Celeriac, current_app, current_task, shared_task
from .canvas.signature import Signature, maybe_signature, signature, subtask
from .core import states
from .core.ids import new_id as uuid
from .tasks.result import AsyncResult, EagerResult
from .tasks.task import Task

__version__ = "0.1.0"

Celery = Celeriac

__all__ = [
    "AsyncResult",
    "Celeriac",
    "Celery",
    "EagerResult",
    "Signature",
    "Task",
    "__version__",
    "current_app",
    "current_task",
    "maybe_signature",
    "shared_task",
    "signature",
    "states",
    "subtask",
    "uuid",
]
