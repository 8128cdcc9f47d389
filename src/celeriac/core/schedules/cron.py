"""Times that a wall clock and a calendar show: crontab.

Daylight saving. A crontab of single hours (`30 2 * * *`) follows the calendar: each time of the pattern comes once. One that the clocks skip
comes at the end of the gap; one that they show twice comes the first time. A crontab of all 24 hours (`30 * * * *`) follows real
time: it comes each time the clocks show it, so that an hour that is repeated is a second hour. When clocks are set forward by whole
hours, nothing of it is missing; when by less (Lord Howe: half an hour), what was skipped comes at the end of the gap.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping
from datetime import UTC, date, datetime, timedelta, tzinfo
from functools import lru_cache
from typing import Any, ClassVar, TypeAlias

from .recurrence import App, BaseSchedule, Now, schedstate
from .words import MONTHS, WEEKDAYS, cron_words
from .zones import Zone, instant_of, offset, offsets, repeated, transition

Cronspec: TypeAlias = "int | str | Iterable[int | str]"

_MINUTE = timedelta(minutes=1)
_HOUR = timedelta(hours=1)
_DAY = timedelta(days=1)
_TICK = timedelta(microseconds=1)
_NOTHING = timedelta(0)

_LONGEST = (0, 31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)

_NICKNAMES = {
    "@yearly": "0 0 1 1 *",
    "@annually": "0 0 1 1 *",
    "@monthly": "0 0 1 * *",
    "@weekly": "0 0 * * 0",
    "@daily": "0 0 * * *",
    "@midnight": "0 0 * * *",
    "@hourly": "0 * * * *",
}


class ParseException(ValueError):
    """A field of a crontab cannot be read."""


class crontab_parser:
    """Expands one field of a crontab: `crontab_parser(60).parse('*/15')` is {0, 15, 30, 45}.

    `max_` is how many values there are, `min_` the least. A field is a list, with commas, of `*`, `a` or `a-b`, the first and the last of
    which may have a step: `*/n`, `a-b/n`. A range may wrap around: `22-2`, `fri-mon`. `names` are accepted for numbers, from three letters on.
    """

    ParseException: ClassVar = ParseException

    def __init__(self, max_: int = 60, min_: int = 0, names: Mapping[str, int] | None = None, field: str = "") -> None:
        self.max_ = max_
        self.min_ = min_
        self._last = min_ + max_ - 1
        self._names = names if names is not None else _NAMES.get((max_, min_), {})
        self._field = field or _FIELDS.get((max_, min_), "this field")
        # Cron counts Sunday as 0 and as 7.
        self._week = (max_, min_) == (7, 0)

    def parse(self, spec: str) -> set[int]:
        found: set[int] = set()
        for part in spec.split(","):
            found.update(self._part(part.strip(), spec))
        return found

    def number(self, value: int | str) -> int:
        """A single value, in range."""
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise TypeError(f"{self._field} must be a number, a string or a list of them, not {value!r}.")
        if isinstance(value, str):
            text = value.strip()
            number = int(text) if text.isascii() and text.isdigit() else self._named(text)
        else:
            number = value
        if self._week and number == 7:
            return 0
        if not self.min_ <= number <= self._last:
            raise ParseException(f"Invalid crontab pattern: {self._field} is {self.min_} to {self._last}, not {value!r}.")
        return number

    def _part(self, part: str, spec: str) -> list[int]:
        if not part:
            raise ParseException(f"Invalid crontab pattern {spec!r} for {self._field}: a part of it is empty.")
        span, slash, steps = part.partition("/")
        first, dash, last = span.partition("-")
        if span == "*":
            values = list(range(self.min_, self._last + 1))
        elif dash:
            values = self._range(first, last)
        elif slash:
            raise ParseException(
                f"Invalid crontab pattern {spec!r} for {self._field}: a step needs a range, as in '{span}-{self._last}/{steps}'."
            )
        else:
            values = [self.number(span)]
        if not slash:
            return values
        if not (steps.isascii() and steps.isdigit() and int(steps) > 0):
            raise ParseException(f"Invalid crontab pattern {spec!r} for {self._field}: a step is a number above 0, as in '{span}/2'.")
        return values[:: int(steps)]

    def _range(self, first: str, last: str) -> list[int]:
        start, end = self.number(first), self.number(last)
        if self._week and end == 0 and start > 0:
            return [*range(start, 7), 0]
        if end < start:
            return [*range(start, self._last + 1), *range(self.min_, end + 1)]
        if self._week and start == 0 and end == 0 and first.strip() != last.strip():
            return list(range(7))  # 0-7
        return list(range(start, end + 1))

    def _named(self, text: str) -> int:
        key = text.lower()
        if len(key) >= 3:
            for name, number in self._names.items():
                if name.startswith(key):
                    return number
        raise ParseException(
            f"Invalid crontab pattern: {text!r} is not a value of {self._field} ({self.min_} to {self._last}{self._or_names()})."
        )

    def _or_names(self) -> str:
        names = [name[:3] for name in self._names]
        return f", or {names[0]} … {names[-1]}" if names else ""


_NAMES: dict[tuple[int, int], dict[str, int]] = {
    (7, 0): {name.lower(): number for number, name in enumerate(WEEKDAYS)},
    (12, 1): {name.lower(): number for number, name in enumerate(MONTHS, start=1)},
}
_FIELDS = {(60, 0): "minute", (24, 0): "hour", (7, 0): "day_of_week", (31, 1): "day_of_month", (12, 1): "month_of_year"}


class crontab(BaseSchedule):
    """When the clocks of the zone show a minute, hour and day of this pattern.

    Each field is a number, a pattern such as `'*/15'`, `'1,13,30-45,50-59/2'`, `'mon-fri'` or `'nov-feb'`, or a list of numbers. A day must match
    `day_of_week`, `day_of_month` and `month_of_year`, all three; Sunday is 0 or 7. ValueError when a field cannot be read or no such day exists.

    At daylight saving a time that does not exist comes once, right after the gap, and one that exists twice comes once, first; a crontab
    of every hour comes every real hour.
    """

    def __init__(
        self,
        minute: Cronspec = "*",
        hour: Cronspec = "*",
        day_of_week: Cronspec = "*",
        day_of_month: Cronspec = "*",
        month_of_year: Cronspec = "*",
        *,
        nowfun: Now | None = None,
        app: App | None = None,
        tz: Zone | None = None,
    ) -> None:
        given = ((minute, 60, 0), (hour, 24, 0), (day_of_week, 7, 0), (day_of_month, 31, 1), (month_of_year, 12, 1))
        self._given = tuple("*" if spec is None else list(spec) if isinstance(spec, Iterator) else spec for spec, _, _ in given)
        sets = [_expanded(spec, max_, min_) for spec, (_, max_, min_) in zip(self._given, given, strict=True)]
        self.minute, self.hour, self.day_of_week, self.day_of_month, self.month_of_year = sets
        if not any(day <= _LONGEST[month] for month in self.month_of_year for day in self.day_of_month):
            raise ValueError(f"Invalid crontab: day_of_month {self._given[3]!r} never occurs in month_of_year {self._given[4]!r}.")
        self._minutes, self._hours = _ascending(self.minute), _ascending(self.hour)
        self._every_hour = len(self.hour) == 24
        self._days = _days_by_month(self.day_of_week, self.day_of_month)
        super().__init__(nowfun=nowfun, app=app, tz=tz)

    @classmethod
    def from_string(cls, crontab: str, *, nowfun: Now | None = None, app: App | None = None, tz: Zone | None = None) -> crontab:
        """From a cron string, `minute hour day_of_month month_of_year day_of_week`, or @yearly, @monthly, @weekly, @daily or @hourly."""
        text = crontab.strip()
        if text.startswith("@"):
            known = _NICKNAMES.get(text.lower())
            if known is None:
                also = " Beat has no start-up of a machine to react to." if text.lower() == "@reboot" else ""
                raise ParseException(f"Unknown cron string {crontab!r}; known are {', '.join(_NICKNAMES)}.{also}")
            text = known
        fields = text.split()
        if len(fields) != 5:
            raise ParseException(
                f"A cron string has five fields (minute, hour, day of month, month, day of week), not {len(fields)}: {crontab!r}."
            )
        minute, hour, day_of_month, month_of_year, day_of_week = fields
        return cls(minute, hour, day_of_week, day_of_month, month_of_year, nowfun=nowfun, app=app, tz=tz)

    # -- occurrences ---------------------------------------------------------------------------------------------------

    def next_after(self, moment: datetime) -> datetime | None:
        zone = self.tz
        local = moment.astimezone(zone)
        wall: datetime | None = local.replace(tzinfo=None, fold=0)
        try:
            while (wall := self._wall_after(wall)) is not None:
                found = self._first_coming(wall, zone)
                if found is not None and found > moment:
                    break
            else:
                return None
            if not self._every_hour:
                return found
            if not local.fold and found - moment <= _DAY and wall.replace(tzinfo=UTC) - found == local.utcoffset():
                return found  # the clocks are not changed until then
            return self._second_coming(moment.astimezone(UTC), local, found) or found
        except OverflowError:
            return None

    def previous_occurrence(self, before: datetime | None = None, *, after: datetime | None = None) -> datetime | None:
        end = self._moment(before)
        try:
            found = self._first_coming_before(end)
        except OverflowError:
            return None
        if self._every_hour and found is not None:
            following = self.next_after(found)
            while following is not None and following < end:
                found, following = following, self.next_after(following)
        return found if found is None or after is None or found > self._moment(after) else None

    def remark(self, occurrence: datetime) -> str:
        zone = self.tz
        moment = occurrence.astimezone(UTC)
        local = moment.astimezone(zone)
        wall = local.replace(tzinfo=None, fold=0)
        if repeated(wall, zone):
            if self._every_hour:
                return f"{wall:%H:%M} comes twice, and this is the {'second' if local.fold else 'first'}: it runs every real hour"
            return f"{wall:%H:%M} comes twice, and this is the first: it runs once"
        skipped = offset(moment, zone) - offset(moment - timedelta(seconds=1), zone)
        if skipped <= _NOTHING or (self._every_hour and not skipped % _HOUR):
            return ""
        missing = []
        last = self._wall_before(wall)
        while last is not None and last >= wall - skipped:
            missing.append(last)
            last = self._wall_before(last)
        if not missing:
            return ""
        times = f"{missing[-1]:%H:%M}" if len(missing) == 1 else f"{missing[-1]:%H:%M} to {missing[0]:%H:%M}"
        return f"{times} {'does' if len(missing) == 1 else 'do'} not exist: it runs right after the gap"

    def _first_coming(self, wall: datetime, zone: tzinfo) -> datetime | None:
        """When a time of the pattern comes first; None: the clocks skip it, and that is all right."""
        before, after = offsets(wall, zone)
        if self._every_hour and after > before and not (after - before) % _HOUR:
            return None
        return instant_of(wall, before, after, zone)

    def _second_coming(self, moment: datetime, local: datetime, limit: datetime) -> datetime | None:
        """A time between `moment` and `limit` that comes again because the clocks were, or will be, set back."""
        zone = self.tz
        if local.fold:
            wall, end = local.replace(tzinfo=None, fold=0), None
            after = local.utcoffset() or _NOTHING
        else:
            # A time that comes again came not long ago, so the change is near.
            horizon = min(limit, moment + _DAY)
            before = local.utcoffset() or _NOTHING
            if offset(horizon, zone) >= before:
                return None
            change = transition(moment, horizon, zone)
            after = offset(change, zone)
            wall, end = (change + after).replace(tzinfo=None) - _MINUTE, (change + before).replace(tzinfo=None)
        again = self._wall_after(wall)
        if again is None or (end is not None and again >= end) or not repeated(again, zone):
            return None
        found = (again - after).replace(tzinfo=UTC)
        return found if found < limit else None

    def _first_coming_before(self, moment: datetime) -> datetime | None:
        zone = self.tz
        local = moment.astimezone(zone)
        wall: datetime | None = local.replace(tzinfo=None, fold=0)
        if local.fold and wall is not None:
            # All that the clocks showed before they were set back is over, too.
            wall += (local.replace(fold=0).utcoffset() or _NOTHING) - (local.utcoffset() or _NOTHING)
        while wall is not None:
            wall = self._wall_before(wall)
            if wall is None:
                return None
            found = self._first_coming(wall, zone)
            if found is not None and found < moment:
                return found
        return None

    def is_due(self, last_run_at: datetime) -> schedstate:
        """As for every schedule; an occurrence that was missed by more than the app's `beat_cron_starting_deadline` is not due any more."""
        state = super().is_due(last_run_at)
        deadline = self.app.conf.beat_cron_starting_deadline if state.is_due and self.app is not None else None
        if deadline is None:
            return state
        now = self._moment()
        since = max(self._moment(last_run_at), now - timedelta(seconds=deadline) - _TICK)
        return state if self.previous_occurrence(now + _TICK, after=since) is not None else schedstate(False, state.next)

    # -- the pattern on the wall ---------------------------------------------------------------------------------------

    def _wall_after(self, wall: datetime | None) -> datetime | None:
        """The first time of the pattern in a later minute than `wall`."""
        if wall is None:
            return None
        year, month, day, hour = wall.year, wall.month, wall.day, wall.hour
        days = self._days_in(year, month)
        if day in days:
            if hour in self.hour:
                at = bisect_right(self._minutes, wall.minute)
                if at < len(self._minutes):
                    return datetime(year, month, day, hour, self._minutes[at])
            at = bisect_right(self._hours, hour)
            if at < len(self._hours):
                return datetime(year, month, day, self._hours[at], self._minutes[0])
        at = bisect_right(days, day)
        while at == len(days):
            year, month = (year, month + 1) if month < 12 else (year + 1, 1)
            if year > 9999:
                return None
            days, at = self._days_in(year, month), 0
        return datetime(year, month, days[at], self._hours[0], self._minutes[0])

    def _wall_before(self, wall: datetime) -> datetime | None:
        """The last time of the pattern before `wall`."""
        year, month, day, hour = wall.year, wall.month, wall.day, wall.hour
        days = self._days_in(year, month)
        if day in days:
            if hour in self.hour:
                at = bisect_left(self._minutes, wall.minute + (1 if wall.second or wall.microsecond else 0))
                if at:
                    return datetime(year, month, day, hour, self._minutes[at - 1])
            at = bisect_left(self._hours, hour)
            if at:
                return datetime(year, month, day, self._hours[at - 1], self._minutes[-1])
        at = bisect_left(days, day)
        while not at:
            year, month = (year, month - 1) if month > 1 else (year - 1, 12)
            if year < 1:
                return None
            days = self._days_in(year, month)
            at = len(days)
        return datetime(year, month, days[at - 1], self._hours[-1], self._minutes[-1])

    def _days_in(self, year: int, month: int) -> tuple[int, ...]:
        """The days of a month that match. There are 28 kinds of months."""
        if month not in self.month_of_year:
            return ()
        length = _LONGEST[month]
        if month == 2 and (year % 4 or (not year % 100 and year % 400)):
            length = 28
        first = date(year, month, 1).isoweekday()
        days = self._days.get((first, length))
        if days is None:
            days = self._days[first, length] = tuple(
                day for day in range(1, length + 1) if day in self.day_of_month and (first + day - 1) % 7 in self.day_of_week
            )
        return days

    # -- words and identity --------------------------------------------------------------------------------------------

    def describe(self) -> str:
        return cron_words(self._minutes, self._hours, self.day_of_week, sorted(self.day_of_month), sorted(self.month_of_year), self.tz)

    def to_string(self) -> str:
        """As a cron string: five fields."""
        minute, hour, day_of_week, day_of_month, month_of_year = (
            spec if isinstance(spec, str) else ",".join(map(str, [spec] if isinstance(spec, int) else _in_order(spec)))
            for spec in self._given
        )
        return " ".join(field.replace(" ", "") for field in (minute, hour, day_of_month, month_of_year, day_of_week))

    def __repr__(self) -> str:
        minute, hour, day_of_week, day_of_month, month_of_year = self._given
        return f"<crontab: {minute} {hour} {day_of_month} {month_of_year} {day_of_week} (m/h/dM/MY/d)>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, crontab):
            return NotImplemented
        return self._sets() == other._sets() and BaseSchedule.__eq__(self, other) is True

    def __hash__(self) -> int:
        return hash(self._sets())

    def _sets(self) -> tuple[frozenset[int], ...]:
        return self.minute, self.hour, self.day_of_week, self.day_of_month, self.month_of_year

    def __reduce__(self) -> tuple[Any, ...]:
        state = {"nowfun": self.nowfun, "app": self._given_app, "tz": self.own_zone}
        return type(self), self._given, {name: value for name, value in state.items() if value is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        BaseSchedule.__init__(self, **state)


def _in_order(values: Iterable[int | str]) -> Iterable[int | str]:
    """A set of words has another order in each process."""
    return sorted(values, key=str) if isinstance(values, set | frozenset) else values


# Tens of thousands of entries share a few hundred different fields, and hold each of them once.


def _expanded(spec: Cronspec, max_: int, min_: int) -> frozenset[int]:
    if isinstance(spec, str):
        return _parsed(spec, max_, min_)
    parser = crontab_parser(max_, min_)
    if not isinstance(spec, Iterable):
        return _shared(frozenset((parser.number(spec),)))
    values: set[int] = set()
    for value in spec:
        values |= parser.parse(value) if isinstance(value, str) else {parser.number(value)}
    if not values:
        raise ParseException(f"Invalid crontab pattern: {_FIELDS[max_, min_]} is an empty list, so it would never run.")
    return _shared(frozenset(values))


@lru_cache(4096)
def _parsed(spec: str, max_: int, min_: int) -> frozenset[int]:
    return _shared(frozenset(crontab_parser(max_, min_).parse(spec)))


@lru_cache(4096)
def _shared(values: frozenset[int]) -> frozenset[int]:
    return values


@lru_cache(4096)
def _ascending(values: frozenset[int]) -> tuple[int, ...]:
    return tuple(sorted(values))


@lru_cache(1024)
def _days_by_month(weekdays: frozenset[int], days: frozenset[int]) -> dict[tuple[int, int], tuple[int, ...]]:
    """Filled as months are met: the days that match, by the weekday on which a month begins and its length."""
    return {}
