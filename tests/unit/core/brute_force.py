"""The clocks of six zones, minute by minute, and what a crontab means on them. Nothing of ours is used here.

Read as: at every real minute of two years, look at the clock on the wall.
"""

from __future__ import annotations

from array import array
from datetime import UTC, date, datetime, timedelta
from functools import cache
from itertools import compress, pairwise
from zoneinfo import ZoneInfo

ZONES = ("UTC", "America/New_York", "Europe/Berlin", "Australia/Lord_Howe", "Asia/Kathmandu", "Africa/Casablanca")
START, END = datetime(2026, 1, 1, tzinfo=UTC), datetime(2028, 1, 1, tzinfo=UTC)
MINUTES = int((END - START).total_seconds()) // 60

_EPOCH_WALL = datetime(2025, 12, 30)  # before the first local time, in whole days
_DAYS = 740


@cache
def walls(zone: str) -> array[int]:
    """For each real minute from START: what the wall clock shows, in minutes since `_EPOCH_WALL`."""
    info = ZoneInfo(zone)
    first_day = _EPOCH_WALL.toordinal()
    start = int(START.timestamp()) // 60

    def look(minute: int) -> int:
        clock = datetime.fromtimestamp(60 * (start + minute), info)
        return (clock.toordinal() - first_day) * 1440 + clock.hour * 60 + clock.minute

    shown = array("l")
    for minute in range(0, MINUTES, 15):
        now, later = look(minute), look(minute + 15)
        # Where a quarter of an hour passes on the wall as it does in the world, there is nothing to look at in between.
        shown.extend(range(now, later) if later == now + 15 else (look(minute + more) for more in range(15)))
    return shown


def instant(minute: int) -> datetime:
    return START + timedelta(minutes=minute)


def shown_at(zone: str, minute: int) -> datetime:
    """The wall clock at a real minute."""
    return _EPOCH_WALL + timedelta(minutes=walls(zone)[minute])


class Pattern:
    """A crontab as plain sets; which minutes on the wall it names."""

    def __init__(self, minutes: set[int], hours: set[int], weekdays: set[int], days: set[int], months: set[int]) -> None:
        time_of_day = bytes(hour in hours and minute in minutes for hour in range(24) for minute in range(60))
        named = []
        for number in range(_DAYS):
            day = date.fromordinal(_EPOCH_WALL.toordinal() + number)
            fits = day.month in months and day.day in days and day.isoweekday() % 7 in weekdays
            named.append(time_of_day if fits else bytes(1440))
        self.named = b"".join(named)
        self.a_day = len(minutes) * len(hours)
        self.every_hour = hours == set(range(24))

    def occurrences(self, zone: str, first: int = 0, last: int = MINUTES) -> list[int]:
        """The real minutes in [first, last) at which it comes."""
        shown, named = walls(zone), self.named
        found = set(compress(range(first, last), map(named.__getitem__, shown[first:last])))
        for minute in _changes(zone):
            jump = shown[minute] - shown[minute - 1] - 1
            if jump > 0:
                # A time that does not exist comes right after the gap; what follows real time misses nothing when the jump is whole hours.
                skipped = any(named[wall] for wall in range(shown[minute - 1] + 1, shown[minute]))
                if skipped and first <= minute < last and (not self.every_hour or jump % 60):
                    found.add(minute)
            elif not self.every_hour:
                # A time that exists twice comes once, first.
                for again in range(minute, minute - jump):
                    if again < MINUTES and shown[again] <= shown[minute - 1]:
                        found.discard(again)
        return sorted(found)


@cache
def _changes(zone: str) -> list[int]:
    """The real minutes at which the clock shows anything but the minute that follows the one before."""
    return [number for number, (one, other) in enumerate(pairwise(walls(zone)), start=1) if other != one + 1]


def changes(zone: str) -> list[int]:
    return _changes(zone)
