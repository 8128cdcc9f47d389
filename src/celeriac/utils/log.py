"""`get_task_logger`, where Celery's users look for it."""

from __future__ import annotations

import logging

__all__ = ["get_task_logger", "task_logger"]

task_logger = logging.getLogger("celeriac.task")
"""The parent of all loggers that tasks use: its level and handlers apply to them."""


def get_task_logger(name: str) -> logging.Logger:
    """The logger of a module of tasks: `logger = get_task_logger(__name__)`."""
    if name in ("celeriac", "celeriac.task"):
        raise RuntimeError(f"The logger name {name!r} is Celeriac's own. Use get_task_logger(__name__).")
    logger = logging.getLogger(name)
    parent = logger
    while parent.parent is not None:
        if parent is task_logger:
            return logger
        parent = parent.parent
    logger.parent = task_logger
    return logger
