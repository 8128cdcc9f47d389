"""Every so many seconds."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from .cron import crontab
from .recurrence import App, BaseSchedule, Now
from .words import duration, zone_words
from .zones import Zone, first_instant, repeated

_DAY = timedelta(days=1)
_HOUR = timedelta(hours=1)
_MINUTE = timedelta(minutes=1)
_TICK = timedelta(microseconds=1)


class schedule(BaseSchedule):
    """Every `run_every` seconds (or timedelta) of real time, counted from the occurrence before; daylight saving changes nothing.

    With `relative=True` rounded down to the unit of the interval: to midnight, the hour, the minute or the second, as the clocks of the
    zone show them; days are then counted by the calendar.
    """

    def __init__(
        self,
        run_every: float | timedelta,
        relative: bool = False,
        nowfun: Now | None = None,
        app: App | None = None,
        tz: Zone | None = None,
    ) -> None:
        self.run_every = run_every if isinstance(run_every, timedelta) else timedelta(seconds=run_every)
        if self.run_every <= timedelta(0):
            raise ValueError(f"An interval must be longer than 0 seconds, not {self.run_every.total_seconds():g}.")
        self.relative = relative
        super().__init__(nowfun=nowfun, app=app, tz=tz)

    @property
    def seconds(self) -> float:
        return self.run_every.total_seconds()

    @property
    def human_seconds(self) -> str:
        """As Celery writes it: 1.00 day, 30.00 seconds."""
        for unit, size in (("day", 86400.0), ("hour", 3600.0), ("minute", 60.0), ("second", 1.0)):
            if self.seconds >= size:
                count = self.seconds / size
                return f"{count:.2f} {unit if count == 1 else unit + 's'}"
        return "now"

    def next_after(self, moment: datetime) -> datetime | None:
        moment = moment.astimezone(UTC)
        try:
            if not self.relative:
                return moment + self.run_every
            if self.run_every >= _DAY:
                return self._midnight_after(moment)
            return self._boundary_after(moment)
        except OverflowError:
            return None

    def previous_occurrence(self, before: datetime | None = None, *, after: datetime | None = None) -> datetime | None:
        end = self._moment(before)
        if after is None:
            after = self._last_start(end)
        start = after.astimezone(UTC)
        if not self.relative:
            count = -((start - end) // self.run_every) - 1
            return start + count * self.run_every if count > 0 else None
        # Rounding makes the steps uneven, so they are taken one by one, from as near as their phase allows.
        found = None
        moment = self.next_after(start)
        while moment is not None and moment < end:
            found, moment = moment, self.next_after(moment)
        return found

    def _last_start(self, end: datetime) -> datetime:
        """Where an interval is begun whose first occurrence is the last one before `end`, when nothing else tells its phase."""
        if not self.relative:
            return end - 2 * self.run_every
        return end - self.run_every - min(self.run_every, _DAY)

    # -- relative ------------------------------------------------------------------------------------------------------

    def _midnight_after(self, moment: datetime) -> datetime:
        """The midnight that begins the day to which the calendar comes in `run_every`."""
        zone = self.tz
        wall = moment.astimezone(zone).replace(tzinfo=None, fold=0) + self.run_every
        wall = wall.replace(hour=0, minute=0, second=0, microsecond=0)
        found = first_instant(wall, zone)
        if found <= moment and repeated(wall, zone):
            found = wall.replace(tzinfo=zone, fold=1).astimezone(UTC)
        return found if found > moment else first_instant(wall + _DAY, zone)

    def _boundary_after(self, moment: datetime) -> datetime:
        """The last full hour, minute or second until `run_every` from `moment`; the first after `moment` when there is none."""
        end = moment + self.run_every
        if self.run_every < _MINUTE:
            second = end.replace(microsecond=0)
            return second if second > moment else end
        boundaries = crontab(minute=0 if self.run_every >= _HOUR else "*", tz=self.tz)
        found = boundaries.previous_occurrence(end + _TICK, after=moment)
        return found or boundaries.next_after(moment) or end

    # -- words and identity --------------------------------------------------------------------------------------------

    def describe(self) -> str:
        words = f"every {duration(self.run_every)}"
        if not self.relative:
            return words
        if self.run_every >= _HOUR:
            return f"{words}, {'at midnight' if self.run_every >= _DAY else 'on the hour'}{zone_words(self.tz)}"
        return f"{words}, on the {'minute' if self.run_every >= _MINUTE else 'second'}"

    def __repr__(self) -> str:
        return f"<freq: {self.human_seconds}>"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, schedule):
            return self.run_every == other.run_every
        return self.run_every == other

    def __hash__(self) -> int:
        return hash(self.run_every)

    def __reduce__(self) -> tuple[Any, ...]:
        zone = self.own_zone
        return type(self), (self.run_every, self.relative, self.nowfun), {"tz": zone} if zone is not None else None

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.tz = state["tz"]
