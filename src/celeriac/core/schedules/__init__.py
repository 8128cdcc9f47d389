"""When something happens next: pure functions of time. They read no clock unless asked about now, and do no I/O.

`schedule` every so many seconds · `crontab` at times that clocks and calendars show · `solar` at events of the sun · `clocked` once.
"""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from .clocked import clocked
from .cron import ParseException, crontab, crontab_parser
from .interval import schedule
from .recurrence import NEVER_SECONDS, App, BaseSchedule, schedstate
from .sun import solar

__all__ = [
    "NEVER_SECONDS",
    "BaseSchedule",
    "ParseException",
    "clocked",
    "crontab",
    "crontab_parser",
    "maybe_schedule",
    "schedstate",
    "schedule",
    "solar",
]


def maybe_schedule(s: Any, relative: bool = False, app: App | None = None) -> Any:
    """The schedule that `s` stands for: seconds, a timedelta, a cron string, or a schedule, which is then told its app.

    None, and what is none of these, is given back as it is: a scheduler of somebody else's may know it.
    """
    if s is None or isinstance(s, bool):
        return s
    if isinstance(s, int | float | timedelta):
        return schedule(s, relative, app=app)
    if isinstance(s, str):
        return crontab.from_string(s, app=app)
    if app is not None:
        s.app = app
    return s
