"""Logging of a worker. Whoever has configured logging keeps it; whoever has not gets a good default.

Every record made while a task runs carries `task_id` and `task_name`, also in the user's own handlers and formats.
"""

from __future__ import annotations

import logging
import os
import sys
import threading
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any, TextIO

from ..core import events
from ..tasks.request import current_request

if TYPE_CHECKING:
    from ..app import Celeriac

_process_name = "MainProcess"

_COLOURS = {logging.DEBUG: "\033[34m", logging.WARNING: "\033[33m", logging.ERROR: "\033[31m", logging.CRITICAL: "\033[35m"}
_PLAIN = "\033[0m"
LONGEST_LINE = 65536
"""What is printed without a line's end is logged in pieces of this many characters."""


def setup_logging(app: Celeriac, loglevel: str, logfile: str | None = None) -> None:
    """Names the task in records, and adds a handler to the root logger if nobody else has, or if `worker_hijack_root_logger` says so.

    A logfile gets a handler in any case; a root logger that somebody has configured keeps its level and its handlers beside it.
    A receiver of the signal `setup_logging` takes over all of it but the naming.
    """
    _name_tasks_in_records()
    level = int(loglevel) if loglevel.isdigit() else logging.getLevelNamesMapping()[loglevel.upper()]
    conf = app.conf
    stream = None if logfile else sys.stderr
    colorize = _colorizes(conf.worker_log_color, stream)
    details = {"loglevel": level, "logfile": logfile, "format": conf.worker_log_format, "colorize": colorize}
    if events.setup_logging.send(sender=None, **details):
        return
    root = logging.getLogger()
    if conf.worker_hijack_root_logger:
        for handler in root.handlers[:]:
            root.removeHandler(handler)
    configured = bool(root.handlers)
    if configured and logfile is None:
        return
    handler = logging.FileHandler(_expand(logfile), encoding="utf-8") if logfile else logging.StreamHandler(stream)
    plain = logging.Formatter(conf.worker_log_format, conf.worker_log_datefmt)
    in_task = logging.Formatter(conf.worker_task_log_format, conf.worker_task_log_datefmt)
    handler.setFormatter(TaskFormatter(plain, in_task, colorize))
    root.addHandler(handler)
    if configured:
        handler.setLevel(level)
        logging.getLogger("celeriac").setLevel(level)
    else:
        root.setLevel(level)
    events.after_setup_logger.send(sender=None, logger=root, **details)
    events.after_setup_task_logger.send(sender=None, logger=logging.getLogger("celeriac.task"), **details)


def name_process(name: str) -> None:
    """What `%(processName)s` says in this process from now on."""
    global _process_name
    _process_name = name


def redirect_prints(level: str) -> None:
    """What is printed in this process goes to the log from now on, line by line."""
    number = logging.getLevelNamesMapping()[level]
    logger = logging.getLogger("celeriac.redirected")
    sys.stdout = Printed(sys.stdout, logger, number)
    sys.stderr = Printed(sys.stderr, logger, number)


def stop_redirecting() -> None:
    """Prints go where they went before."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, Printed):
            stream.finish()
            setattr(sys, name, stream.stream)


_busy = threading.local()


class Printed:
    """Stands for a stream: each line that is written becomes a log record. All else (`fileno`, `buffer`, `encoding`) is the stream's own.

    What logging itself prints while it handles such a line goes to the stream, so that nothing turns in circles.
    """

    def __init__(self, stream: TextIO, logger: logging.Logger, level: int) -> None:
        self.stream = stream
        self._logger = logger
        self._level = level
        self._local = threading.local()

    def write(self, text: str) -> int:
        local = self._local
        if getattr(_busy, "logging", False):
            return self.stream.write(text)
        waiting = getattr(local, "waiting", "") + text
        if "\n" not in text and len(waiting) < LONGEST_LINE:
            local.waiting = waiting
            return len(text)
        *lines, local.waiting = waiting.split("\n") if "\n" in text else (waiting, "")
        self._log(lines)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Half a line waits for its other half."""
        self.stream.flush()

    def finish(self) -> None:
        """Logs half a line that nobody will end any more."""
        waiting, self._local.waiting = getattr(self._local, "waiting", ""), ""
        self._log([waiting])

    def isatty(self) -> bool:
        return False

    def _log(self, lines: list[str]) -> None:
        _busy.logging = True
        try:
            for line in lines:
                if line and not line.isspace():
                    self._logger.log(self._level, "%s", line)
        finally:
            _busy.logging = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


class TaskFormatter(logging.Formatter):
    """One format for records of a running task, another for all others."""

    def __init__(self, plain: logging.Formatter, in_task: logging.Formatter, colorize: bool = False) -> None:
        super().__init__()
        self._plain = plain
        self._in_task = in_task
        self._colorize = colorize

    def format(self, record: logging.LogRecord) -> str:
        # what the worker itself says of a task names it already
        is_task = getattr(record, "task_id", None) and record.name != "celeriac.worker"
        text = (self._in_task if is_task else self._plain).format(record)
        colour = _COLOURS.get(record.levelno) if self._colorize else None
        return f"{colour}{text}{_PLAIN}" if colour else text


def _colorizes(wanted: bool | None, stream: TextIO | None) -> bool:
    if wanted is not None:
        return wanted and stream is not None
    return stream is not None and stream.isatty() and "NO_COLOR" not in os.environ


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
