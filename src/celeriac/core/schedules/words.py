"""Schedules in plain words."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import timedelta, tzinfo

from .zones import name_of

WEEKDAYS = ("Sunday", "Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday")
MONTHS = ("January", "February", "March", "April", "May", "June", "July", "August", "September", "October", "November", "December")

_MOST_TIMES = 6
"""More times of the day than these are told as minutes and hours."""


def duration(length: timedelta) -> str:
    """2 days · 90 minutes · 1 hour 30 minutes · second (for a single one, after `every`)."""
    seconds = length.total_seconds()
    if seconds != int(seconds):
        return f"{seconds:g} seconds"
    parts = []
    rest = int(seconds)
    for unit, size in (("day", 86400), ("hour", 3600), ("minute", 60), ("second", 1)):
        count, rest = divmod(rest, size)
        if count:
            parts.append((count, unit))
    if len(parts) == 1 and parts[0][0] == 1:
        return parts[0][1]
    return " ".join(f"{count} {unit}{'' if count == 1 else 's'}" for count, unit in parts)


def zone_words(zone: tzinfo) -> str:
    return f" {name_of(zone)}"


def listed(words: Iterable[object]) -> str:
    """a, b and c"""
    told = [str(word) for word in words]
    return told[0] if len(told) == 1 else f"{', '.join(told[:-1])} and {told[-1]}"


def cron_words(
    minutes: Sequence[int], hours: Sequence[int], weekdays: frozenset[int], days: Sequence[int], months: Sequence[int], zone: tzinfo
) -> str:
    """The words for the expanded, sorted fields of a crontab."""
    which = _days(weekdays, days, months)
    if len(minutes) * len(hours) <= _MOST_TIMES:
        times = f"at {listed(f'{hour:02}:{minute:02}' for hour in hours for minute in minutes)}"
        return f"{which}{',' if ', if ' in which else ''} {times}{zone_words(zone)}"
    times = _hourly(minutes) if len(hours) == 24 else _at_hours(minutes, hours)
    if which != "every day":
        return f"{which}, {times}{zone_words(zone)}"
    same_everywhere = len(hours) == 24 and (len(minutes) == 60 or minutes[0] == 0 and (len(minutes) == 1 or _step(minutes, 60)))
    return times if same_everywhere else times + zone_words(zone)


def _hourly(minutes: Sequence[int]) -> str:
    if tuple(minutes) == (0,):
        return "every hour"
    if len(minutes) == 1:
        return f"every hour at minute {minutes[0]}"
    return _minutes(minutes) or f"at minutes {_ranges(minutes)} of every hour"


def _at_hours(minutes: Sequence[int], hours: Sequence[int]) -> str:
    in_a_row = len(hours) > 1 and hours[-1] - hours[0] == len(hours) - 1
    if len(minutes) == 1:
        if in_a_row:
            return f"every hour from {hours[0]:02}:{minutes[0]:02} to {hours[-1]:02}:{minutes[0]:02}"
        if step := _step(hours, 24):
            return f"every {step} hours from 00:{minutes[0]:02}"
        return f"at minute {minutes[0]} of the hours {_ranges(hours)}"
    times = _minutes(minutes) or f"at minutes {_ranges(minutes)}"
    if in_a_row:
        return f"{times} from {hours[0]:02}:00 to {hours[-1]:02}:59"
    return f"{times} of the hour{'s' if len(hours) > 1 else ''} {_ranges(hours)}"


def _minutes(minutes: Sequence[int]) -> str:
    if len(minutes) == 60:
        return "every minute"
    return f"every {step} minutes" if (step := _step(minutes, 60)) else ""


def _days(weekdays: frozenset[int], days: Sequence[int], months: Sequence[int]) -> str:
    every_day, every_month = len(days) == 31, len(months) == 12
    if every_day:
        words = "every day" if len(weekdays) == 7 else _weekdays(weekdays)
        if every_month:
            return words
        return f"{words} in {_months(months)}"
    numbers = f"day {days[0]}" if len(days) == 1 else f"days {_ranges(days)}"
    words = f"on {numbers} of {'every month' if every_month else _months(months)}"
    if len(weekdays) < 7:
        words += f", if {'it is' if len(days) == 1 else 'they are'} {_weekdays(weekdays).removeprefix('every ')}"
    return words


def _weekdays(weekdays: frozenset[int]) -> str:
    if weekdays == frozenset(range(1, 6)):
        return "every weekday"
    if weekdays == frozenset((0, 6)):
        return "every Saturday and Sunday"
    return f"every {listed(WEEKDAYS[day % 7] for day in sorted(weekdays, key=lambda day: day or 7))}"


def _months(months: Sequence[int]) -> str:
    if len(months) > 2 and months[-1] - months[0] == len(months) - 1:
        return f"{MONTHS[months[0] - 1]} to {MONTHS[months[-1] - 1]}"
    return listed(MONTHS[month - 1] for month in months)


def _step(numbers: Sequence[int], size: int) -> int | None:
    """n, when these are 0, n, 2n … and come round evenly."""
    if len(numbers) < 2 or size % len(numbers):
        return None
    step = size // len(numbers)
    return step if step > 1 and tuple(numbers) == tuple(range(0, size, step)) else None


def _ranges(numbers: Sequence[int]) -> str:
    """0, 5–10 and 30"""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    told: list[str] = []
    for run in runs:
        told.extend([f"{run[0]}–{run[-1]}"] if len(run) > 2 else map(str, run))
    return listed(told)
