"""Schedules as data: text that an engine keeps, and that people can write.

`30` every thirty seconds · `*/5 * * * *`, `@daily` a cron string · a JSON object for what has more to say:

    {"every": 86400, "relative": true, "tz": "Europe/Berlin"}     {"cron": "0 9 * * mon-fri", "tz": "Asia/Kathmandu"}
    {"solar": "sunset", "lat": 52.5, "lon": 13.4}                 {"once": "2026-05-18T03:15:00+00:00"}
    {"code": "<MySchedule>"}   one of a class of somebody's own: only those who have the app know it
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import Any

import msgspec

from . import maybe_schedule
from .clocked import clocked
from .cron import crontab
from .interval import schedule
from .recurrence import App, BaseSchedule
from .sun import solar

_KINDS = {"every": {"relative", "tz"}, "cron": {"tz"}, "solar": {"lat", "lon", "tz"}, "once": {"tz"}, "code": set[str]()}


def as_data(when: Any) -> str:
    """A schedule, or what stands for one (seconds, a timedelta, a cron string), as text. Equal schedules give equal text.

    Raises ValueError, TypeError: it is no schedule.
    """
    made = maybe_schedule(when)
    if not hasattr(made, "is_due") or isinstance(made, type):
        raise TypeError(f"A schedule is seconds, a timedelta, a cron string, or a crontab, schedule, solar or clocked, not {when!r}.")
    told = _told(made)
    if told is None:
        return _json({"code": repr(made)})
    zone = getattr(made, "own_zone", None)
    if zone is not None:
        name = zone if isinstance(zone, str) else getattr(zone, "key", None) or str(zone)
        told["tz"] = name
    if told.keys() == {"cron"}:
        return str(told["cron"])
    if told.keys() == {"every"}:
        seconds = told["every"]
        return str(int(seconds) if seconds == int(seconds) else seconds)
    return _json(told)


def from_data(text: str, app: App | None = None) -> BaseSchedule:
    """The schedule that the text stands for; `app` gives it a zone when it has none of its own.

    Raises ValueError: nobody can read it, or it never comes. LookupError: it is a class of somebody's own, which is not in the text.
    """
    given = text.strip()
    if not given.startswith("{"):
        try:
            seconds = float(given)
        except ValueError:
            return crontab.from_string(given, app=app)
        return schedule(seconds, app=app)
    try:
        told = msgspec.json.decode(given)
    except msgspec.DecodeError as problem:
        raise ValueError(f"The schedule {given!r} is not JSON: {problem}") from None
    kind = next((kind for kind in _KINDS if kind in told), None)
    if kind is None or not told.keys() <= {kind, *_KINDS[kind]}:
        raise ValueError(f"The schedule {given!r} should be one of {', '.join(_KINDS)}, with no more than what belongs to it.")
    if kind == "code":
        raise LookupError(f"The schedule {told['code']} is of a class of somebody's own; only the app that names it knows when it comes.")
    try:
        return _MAKERS[kind](told, app)
    except (KeyError, TypeError) as problem:
        raise ValueError(f"The schedule {given!r} cannot be read: {problem!r}") from None


def _told(when: Any) -> dict[str, Any] | None:
    """What a schedule says of itself; None for one that text cannot say."""
    zone = getattr(when, "own_zone", None)
    if zone is not None and not _can_be_named(zone):
        return None
    if type(when) is schedule:
        return {"every": when.seconds, "relative": True} if when.relative else {"every": when.seconds}
    if type(when) is crontab:
        return {"cron": when.to_string()}
    if type(when) is solar:
        return {"solar": when.event, "lat": when.lat, "lon": when.lon}
    if type(when) is clocked:
        return {"once": when.clocked_time.isoformat()}
    return None


def _can_be_named(zone: Any) -> bool:
    from .zones import zone_named

    if callable(zone):
        return False
    try:
        return zone_named(zone if isinstance(zone, str) else getattr(zone, "key", None) or str(zone)) is not None
    except ValueError:
        return False


def _json(told: dict[str, Any]) -> str:
    return msgspec.json.encode(told, order="sorted").decode()


_MAKERS: dict[str, Callable[[dict[str, Any], App | None], BaseSchedule]] = {
    "every": lambda told, app: schedule(told["every"], bool(told.get("relative")), app=app, tz=told.get("tz")),
    "cron": lambda told, app: crontab.from_string(told["cron"], app=app, tz=told.get("tz")),
    "solar": lambda told, app: solar(told["solar"], told["lat"], told["lon"], app=app, tz=told.get("tz")),
    "once": lambda told, app: clocked(datetime.fromisoformat(told["once"]), app=app, tz=told.get("tz")),
}
