"""Logging of a worker. Whoever has configured logging keeps it; whoever has not gets a good default.

Every record made while a task runs carries `task_id` and `task_name`, also in the user's own handlers and formats.
"""

from __future__ import annotations

import logging
import os
import sys
from typing import TYPE_CHECKING

from ..core import events
from ..tasks.request import current_request

if TYPE_CHECKING:
    from ..app import Celeriac

_process_name = "MainProcess"

FORMAT = "[%(asctime)s: %(levelname)s/%(processName)s] %(message)s"
TASK_FORMAT = "[%(asctime)s: %(levelname)s/%(processName)s] %(task_name)s[%(task_id)s]: %(message)s"


def setup_logging(app: Celeriac, loglevel: str, logfile: str | None = None) -> None:
    """Names the task in records, and adds a handler to the root logger if nobody else has.

    A receiver of the signal `setup_logging` takes over all of it but the naming.
    """
    _name_tasks_in_records()
    level = logging.getLevelName(loglevel.upper()) if not loglevel.isdigit() else int(loglevel)
    conf = app.conf
    details = {"loglevel": level, "logfile": logfile, "format": conf.worker_log_format or FORMAT, "colorize": False}
    if events.setup_logging.send(sender=None, **details):
        return
    root = logging.getLogger()
    if root.handlers and not conf.worker_hijack_root_logger and logfile is None:
        return
    if root.handlers and logfile is None:
        return
    handler: logging.Handler = logging.FileHandler(_expand(logfile), encoding="utf-8") if logfile else logging.StreamHandler(sys.stderr)
    handler.setFormatter(TaskFormatter(conf.worker_log_format or FORMAT, conf.worker_task_log_format or TASK_FORMAT))
    root.addHandler(handler)
    root.setLevel(level)
    events.after_setup_logger.send(sender=None, logger=root, **details)
    events.after_setup_task_logger.send(sender=None, logger=logging.getLogger("celeriac.task"), **details)


def name_process(name: str) -> None:
    """What `%(processName)s` says in this process from now on."""
    global _process_name
    _process_name = name


class TaskFormatter(logging.Formatter):
    """One format for records of a running task, another for all others."""

    def __init__(self, plain: str, in_task: str) -> None:
        super().__init__(plain)
        self._in_task = logging.Formatter(in_task)

    def format(self, record: logging.LogRecord) -> str:
        if getattr(record, "task_id", None) and record.name != "celeriac.worker":
            return self._in_task.format(record)
        return super().format(record)


def _name_tasks_in_records() -> None:
    make = logging.getLogRecordFactory()
    if getattr(make, "names_tasks", False):
        return

    def make_record(*args: object, **kwargs: object) -> logging.LogRecord:
        record = make(*args, **kwargs)
        request = current_request()
        record.processName = _process_name
        record.task_id = request.id if request is not None else None
        record.task_name = request.task if request is not None else None
        return record

    make_record.names_tasks = True  # type: ignore[attr-defined]
    logging.setLogRecordFactory(make_record)


def _expand(logfile: str) -> str:
    return logfile.replace("%p", str(os.getpid()))
