"""Schedules, where Celery's users look for them."""

from __future__ import annotations

from .core.schedules import (
    BaseSchedule,
    ParseException,
    clocked,
    crontab,
    crontab_parser,
    maybe_schedule,
    schedstate,
    schedule,
    solar,
)

__all__ = [
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
