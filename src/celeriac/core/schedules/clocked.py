"""Once, at a given time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from .recurrence import App, BaseSchedule, Now
from .words import zone_words
from .zones import Zone, first_instant, gap, repeated


class clocked(BaseSchedule):
    """Once, at `clocked_time`. A naive one is a time on the clocks of the zone: skipped by them, right after the gap; shown twice, the first."""

    def __init__(self, clocked_time: datetime, *, nowfun: Now | None = None, app: App | None = None, tz: Zone | None = None) -> None:
        if not isinstance(clocked_time, datetime):
            raise TypeError(f"clocked_time must be a datetime, not {clocked_time!r}.")
        self.clocked_time = clocked_time
        super().__init__(nowfun=nowfun, app=app, tz=tz)

    @property
    def instant(self) -> datetime:
        """The one occurrence, in UTC."""
        if self.clocked_time.tzinfo is None:
            return first_instant(self.clocked_time.replace(fold=0), self.tz)
        return self.clocked_time.astimezone(UTC)

    def next_after(self, moment: datetime) -> datetime | None:
        instant = self.instant
        return instant if instant > moment else None

    def previous_occurrence(self, before: datetime | None = None, *, after: datetime | None = None) -> datetime | None:
        instant = self.instant
        if instant >= self._moment(before) or (after is not None and instant <= self._moment(after)):
            return None
        return instant

    def remark(self, occurrence: datetime) -> str:
        if self.clocked_time.tzinfo is None:
            if gap(self.clocked_time, self.tz) > timedelta(0):
                return f"{self.clocked_time:%H:%M} does not exist: it runs right after the gap"
            if repeated(self.clocked_time, self.tz):
                return f"{self.clocked_time:%H:%M} comes twice, and this is the first: it runs once"
        return ""

    def describe(self) -> str:
        local = self.instant.astimezone(self.tz)
        return f"once, on {local:%Y-%m-%d} at {local:%H:%M:%S}".removesuffix(":00") + zone_words(self.tz)

    def __repr__(self) -> str:
        return f"<clocked: {self.clocked_time}>"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, clocked):
            return self.clocked_time == other.clocked_time and BaseSchedule.__eq__(self, other) is True
        return NotImplemented

    def __hash__(self) -> int:
        return hash(self.clocked_time)

    def __reduce__(self) -> tuple[Any, ...]:
        state = {"nowfun": self.nowfun, "app": self._given_app, "tz": self.own_zone}
        return type(self), (self.clocked_time,), {name: value for name, value in state.items() if value is not None} or None

    def __setstate__(self, state: dict[str, Any]) -> None:
        BaseSchedule.__init__(self, **state)
