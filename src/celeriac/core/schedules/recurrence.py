"""What every schedule is: a function from a moment to the next one, with Celery's questions answered from it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any, NamedTuple, Protocol

from .zones import Zone, same_zone, zone_named

NEVER_SECONDS = 1e8
"""What `is_due` gives as the time to the next look when nothing will ever be due again: three years."""

Now = Callable[[], datetime]


class App(Protocol):
    """What a schedule asks of an app, when it has no zone or clock of its own."""

    @property
    def timezone(self) -> Any: ...

    @property
    def conf(self) -> Any: ...

    def now(self) -> Any: ...


class schedstate(NamedTuple):
    """Whether to run now, and in how many seconds to ask again."""

    is_due: bool
    next: float


class BaseSchedule:
    """When something happens, again and again.

    A schedule holds no state: where it stands is told by the moment that it is asked about. Moments come back in UTC; a naive one is taken
    for UTC, as Celery takes it. `tz` is the zone whose clocks count: a name, a tzinfo, or a function that gives one; without it the
    app's zone, and without an app UTC.

    A subclass says what follows a moment (`next_after`) and what is before one (`previous_occurrence`).
    """

    def __init__(self, nowfun: Now | None = None, app: App | None = None, tz: Zone | None = None) -> None:
        self.nowfun = nowfun
        self.app = app
        self._given_app = app  # what is set later, by whoever uses the schedule, is not pickled with it
        self.tz = tz

    # -- the zone and the clock ----------------------------------------------------------------------------------------

    @property
    def tz(self) -> tzinfo:
        """The zone whose clocks count."""
        zone = self._zone
        if zone is not None:
            return zone() if callable(zone) else zone
        if self.app is not None:
            found: tzinfo = self.app.timezone
            return found
        return UTC

    @tz.setter
    def tz(self, zone: Zone | None) -> None:
        self._zone: tzinfo | Callable[[], tzinfo] | None = zone_named(zone) if isinstance(zone, str) else zone

    @property
    def own_zone(self) -> Zone | None:
        """The zone that was given to this schedule itself, if any."""
        return self._zone

    def now(self) -> datetime:
        if self.nowfun is not None:
            return self.nowfun()
        if self.app is not None:
            told: datetime = self.app.now()
            return told
        return datetime.now(self.tz)

    # -- occurrences ---------------------------------------------------------------------------------------------------

    def next_after(self, moment: datetime) -> datetime | None:
        """The first occurrence after `moment`, in UTC; None: there is none.

        `moment` is aware. For an interval it is the occurrence before: its phase is nowhere else.
        """
        raise NotImplementedError

    def previous_occurrence(self, before: datetime | None = None, *, after: datetime | None = None) -> datetime | None:
        """The last occurrence before `before` (now), in UTC, of those after `after`; None: there is none.

        An interval counts from `after`; without it, one interval before `before`.
        """
        raise NotImplementedError

    def occurrences(self, after: datetime | None = None) -> Iterator[datetime]:
        """The occurrences after `after` (now), in UTC, until there are no more."""
        moment = self.next_after(self._moment(after))
        while moment is not None:
            yield moment
            moment = self.next_after(moment)

    def next_occurrences(self, n: int, after: datetime | None = None) -> list[datetime]:
        """The next `n` occurrences after `after` (now), in UTC; fewer when there are no more."""
        found: list[datetime] = []
        if n > 0:
            for moment in self.occurrences(after):
                found.append(moment)
                if len(found) == n:
                    break
        return found

    def remark(self, occurrence: datetime) -> str:
        """What is unusual about an occurrence because clocks are set forward or back there; mostly nothing."""
        return ""

    def describe(self) -> str:
        """In plain words: every weekday at 09:00 Asia/Kathmandu."""
        raise NotImplementedError

    # -- Celery's questions --------------------------------------------------------------------------------------------

    def remaining_estimate(self, last_run_at: datetime) -> timedelta:
        """From now until the occurrence that follows `last_run_at`; negative when it is over."""
        moment = self.next_after(self._moment(last_run_at))
        return timedelta(seconds=NEVER_SECONDS) if moment is None else moment - self._moment()

    def is_due(self, last_run_at: datetime) -> schedstate:
        """Whether an occurrence has passed since `last_run_at`, and in how many seconds to ask again."""
        now = self._moment()
        moment = self.next_after(self._moment(last_run_at))
        if moment is None:
            return schedstate(False, NEVER_SECONDS)
        if moment > now:
            return schedstate(False, (moment - now).total_seconds())
        following = self.next_after(now)
        return schedstate(True, NEVER_SECONDS if following is None else (following - now).total_seconds())

    def maybe_make_aware(self, dt: datetime, naive_as_utc: bool = True) -> datetime:
        """`dt` with a zone: UTC for a naive one, or ours."""
        if dt.tzinfo is not None:
            return dt
        return dt.replace(tzinfo=UTC if naive_as_utc else self.tz)

    def _moment(self, moment: datetime | None = None) -> datetime:
        """Aware and in UTC, so that differences are real time."""
        if moment is None:
            moment = self.now()
        return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)

    # -- identity ------------------------------------------------------------------------------------------------------

    def __eq__(self, other: object) -> bool:
        if isinstance(other, BaseSchedule):
            return self.nowfun == other.nowfun and same_zone(self._zone, other._zone)
        return NotImplemented

    def __hash__(self) -> int:
        return hash(type(self))
