"""When the sun rises, sets, or is somewhere in between."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

from ..errors import ImproperlyConfigured
from .recurrence import App, BaseSchedule, Now
from .zones import Zone

EVENTS = {
    # event: the sun's height in degrees (Celery's), whether it counts for the sun's centre, the direction, the words
    "dawn_astronomical": ("-18", True, "rising", "astronomical dawn"),
    "dawn_nautical": ("-12", True, "rising", "nautical dawn"),
    "dawn_civil": ("-6", True, "rising", "civil dawn"),
    "sunrise": ("-0:34", False, "rising", "sunrise"),
    "solar_noon": ("0", False, "transit", "solar noon"),
    "sunset": ("-0:34", False, "setting", "sunset"),
    "dusk_civil": ("-6", True, "setting", "civil dusk"),
    "dusk_nautical": ("-12", True, "setting", "nautical dusk"),
    "dusk_astronomical": ("-18", True, "setting", "astronomical dusk"),
}

_DAY = timedelta(days=1)
_APART = timedelta(minutes=1)
_FIRST_DAY = datetime(2000, 1, 1, tzinfo=UTC)


class solar(BaseSchedule):
    """At an event of the sun, at a latitude and longitude in degrees (north and east are positive), to the second.

    Where it does not happen on a day (polar day and night), that day is left out. ValueError for an event or a place that does not exist;
    ImproperlyConfigured when the library that knows the sun is not installed.
    """

    max_search_days = 366
    """An event that does not come for so long never comes."""

    def __init__(
        self, event: str, lat: float, lon: float, *, nowfun: Now | None = None, app: App | None = None, tz: Zone | None = None
    ) -> None:
        if event not in EVENTS:
            raise ValueError(f"Argument event {event!r} is invalid, must be one of {', '.join(EVENTS)}.")
        if not -90 <= lat <= 90:
            raise ValueError(f"Argument latitude {lat} is invalid, must be between -90 and 90.")
        if not -180 <= lon <= 180:
            raise ValueError(f"Argument longitude {lon} is invalid, must be between -180 and 180.")
        try:
            import ephem
        except ImportError:
            raise ImproperlyConfigured(
                "Schedules by the sun need the library ephem. Install it with: pip install 'celeriac[solar]'"
            ) from None
        self._ephem = ephem
        self.event, self.lat, self.lon = event, lat, lon
        # A day for the sun begins at midnight by its own clock, here.
        self._first_day = _FIRST_DAY - _DAY * (lon / 360)
        super().__init__(nowfun=nowfun, app=app, tz=tz)

    def next_after(self, moment: datetime) -> datetime | None:
        moment = moment.astimezone(UTC)
        today = (moment - self._first_day) // _DAY
        try:
            for day in range(today, today + self.max_search_days + 1):
                for found in self._on_day(day):
                    if found > moment:
                        return found
        except OverflowError:
            pass
        return None

    def previous_occurrence(self, before: datetime | None = None, *, after: datetime | None = None) -> datetime | None:
        end = self._moment(before)
        today = (end - self._first_day) // _DAY
        for day in range(today, today - self.max_search_days - 1, -1):
            earlier = [found for found in self._on_day(day) if found < end]
            if earlier:
                return earlier[-1] if after is None or earlier[-1] > self._moment(after) else None
        return None

    def _on_day(self, day: int) -> Iterator[datetime]:
        """The events of one of the sun's days, mostly one. Found from its beginning, so that an event has one time, whoever asks, and when."""
        ephem = self._ephem
        height, centre, direction, _ = EVENTS[self.event]
        place = ephem.Observer()
        place.lat, place.lon, place.horizon, place.pressure = str(self.lat), str(self.lon), height, 0
        start = self._first_day + _DAY * day
        end = start + _DAY
        while start < end:
            place.date = ephem.Date(start.replace(tzinfo=None))
            try:
                if direction == "transit":
                    date = place.next_transit(ephem.Sun())
                elif direction == "rising":
                    date = place.next_rising(ephem.Sun(), use_center=centre)
                else:
                    date = place.next_setting(ephem.Sun(), use_center=centre)
            except ephem.CircumpolarError:
                # Not between this midnight and the next, as the sun has them: they are minutes away from ours.
                start = max(_rounded(place.next_antitransit(ephem.Sun()).datetime()), start + _APART)
                continue
            found = _rounded(date.datetime())
            if found >= end:
                return
            yield found
            start = found + _APART

    def describe(self) -> str:
        north = f"{abs(self.lat):g}°{'N' if self.lat >= 0 else 'S'}"
        east = f"{abs(self.lon):g}°{'E' if self.lon >= 0 else 'W'}"
        return f"at {EVENTS[self.event][3]} at {north} {east}"

    def __repr__(self) -> str:
        return f"<solar: {self.event} at latitude {self.lat}, longitude: {self.lon}>"

    def __eq__(self, other: object) -> bool:
        if isinstance(other, solar):
            return (self.event, self.lat, self.lon) == (other.event, other.lat, other.lon)
        return NotImplemented

    def __hash__(self) -> int:
        return hash((self.event, self.lat, self.lon))

    def __reduce__(self) -> tuple[Any, ...]:
        state = {"nowfun": self.nowfun, "app": self._given_app, "tz": self.own_zone}
        return type(self), (self.event, self.lat, self.lon), {name: value for name, value in state.items() if value is not None} or None

    def __setstate__(self, state: dict[str, Any]) -> None:
        BaseSchedule.__init__(self, **state)


def _rounded(moment: datetime) -> datetime:
    """To the second, in UTC."""
    return (moment + timedelta(milliseconds=500)).replace(microsecond=0, tzinfo=UTC)
