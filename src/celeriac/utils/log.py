"""`get_task_logger`, where Celery's users look for it."""

from __future__ import annotations

import logging

__all__ = ["get_task_logger", "task_logger"]

task_logger = logging.getLogger("celeriac.task")
"""The parent of loggers that tasks use: its level and handlers apply to them (see the signal `after_setup_task_logger`)."""


def get_task_logger(name: str) -> logging.Logger:
    """The logger of a module of tasks: `logger = get_task_logger(__name__)`.

    A logger that the program has configured, itself or through a parent, stays where it is.
    """
    if name in ("celeriac", "celeriac.task"):
        raise RuntimeError(f"The logger name {name!r} is Celeriac's own. Use get_task_logger(__name__).")
    logger = logging.getLogger(name)
    if logger.parent is logging.root and not logger.handlers:
        logger.parent = task_logger
    return logger
