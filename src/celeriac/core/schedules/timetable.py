"""A schedule between its limits, as those see it who count in seconds since 1970: engines and beats."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from .clocked import clocked
from .interval import schedule

MOST_COUNTED = 100_000
"""Of more occurrences than this nobody needs the number."""

_TICK = timedelta(microseconds=1)


class Timetable:
    """When an entry comes. Pure: the same questions have the same answers, whoever asks."""

    def __init__(
        self, when: Any, *, name: str = "", starts_at: float | None = None, ends_at: float | None = None, jitter_seconds: float = 0.0
    ) -> None:
        self.when = when
        self.name = name
        self.starts_at = starts_at
        self.ends_at = ends_at
        self.jitter_seconds = jitter_seconds
        # What counts from nothing but itself can be computed at once, however long ago it began.
        self._every = when.run_every if isinstance(when, schedule) and not when.relative else None

    def first(self, now: float) -> float | None:
        """The first occurrence of an entry that begins now: after `now`; of a `clocked` one its only one, also when it is over."""
        if isinstance(self.when, clocked):
            return self._unless_over(self.when.instant)
        if self.starts_at is None:
            return self._after(_moment(now))
        begin = _moment(self.starts_at)
        if self._every is not None:
            missed = max(0, (_moment(now) - begin) // self._every + 1) if now >= self.starts_at else 0
            return self._unless_over(begin + missed * self._every)
        return self._after(max(_moment(now), begin - _TICK))

    def after(self, planned_at: float) -> float | None:
        """The occurrence that follows the one at `planned_at`."""
        return None if isinstance(self.when, clocked) else self._after(_moment(planned_at))

    def occurrences(self, planned_at: float | None) -> Iterator[float]:
        """From the one at `planned_at` on."""
        while planned_at is not None:
            yield planned_at
            planned_at = self.after(planned_at)

    def until(self, planned_at: float, end: float) -> tuple[int, float]:
        """How many there are from the one at `planned_at` up to those before `end`, and the last of them. The number may be too small beyond 100,000."""
        if planned_at >= end:
            return 0, planned_at
        if self._every is not None and not self._ends_before(end):
            begin = _moment(planned_at)
            count = -((begin - _moment(end)) // self._every)
            last = (begin + (count - 1) * self._every).timestamp()
            return count, last
        count, last = 0, planned_at
        for found in self.occurrences(planned_at):
            if found >= end:
                break
            count, last = count + 1, found
            if count == MOST_COUNTED:
                return count, self._last_before(end, last)
        return count, last

    def due_at(self, planned_at: float) -> float:
        """When the occurrence is to be sent: up to `jitter_seconds` later, but not after the next is planned."""
        if not self.jitter_seconds:
            return planned_at
        from hashlib import blake2b

        dice = int.from_bytes(blake2b(f"{self.name}\0{planned_at!r}".encode(), digest_size=6).digest())
        due_at = planned_at + self.jitter_seconds * dice / 2**48
        following = self.after(planned_at)
        return due_at if following is None else min(due_at, following)

    def _after(self, moment: datetime) -> float | None:
        next_after = getattr(self.when, "next_after", None)
        if next_after is not None:
            return self._unless_over(next_after(moment))
        # A schedule of somebody's own that only answers Celery's questions.
        now = self.when.now()
        return self._unless_over(max(moment + _TICK, now + self.when.remaining_estimate(moment)))

    def _last_before(self, end: float, found: float) -> float:
        earlier: datetime | None = self.when.previous_occurrence(_moment(end), after=_moment(found))
        return found if earlier is None else max(found, earlier.timestamp())

    def _ends_before(self, end: float) -> bool:
        return self.ends_at is not None and self.ends_at < end

    def _unless_over(self, moment: datetime | None) -> float | None:
        if moment is None:
            return None
        planned_at = moment.timestamp()
        return None if self.ends_at is not None and planned_at > self.ends_at else planned_at


def _moment(seconds: float) -> datetime:
    return datetime.fromtimestamp(seconds, UTC)
