"""Wall clocks and instants: what a zone does to a time when its clocks are set forward or back."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from typing import TypeAlias

Zone: TypeAlias = "str | tzinfo | Callable[[], tzinfo]"

_NOTHING = timedelta(0)


def zone_named(zone: str | tzinfo) -> tzinfo:
    """The zone of that name. Raises ValueError for a name that this machine does not know."""
    if not isinstance(zone, str):
        return zone
    from zoneinfo import ZoneInfo

    try:
        return ZoneInfo(zone)
    except (LookupError, ValueError, OSError):
        raise ValueError(
            f"Unknown time zone {zone!r}. Give a name such as 'Europe/Berlin' or 'UTC'; a machine without time zones needs the package tzdata."
        ) from None


def name_of(zone: tzinfo) -> str:
    """As people write it: Asia/Kathmandu."""
    return getattr(zone, "key", None) or str(zone)


def same_zone(one: Zone | None, other: Zone | None) -> bool:
    if one == other:
        return True
    # A name and the zone of that name are the same, however often either was pickled.
    names = [zone if isinstance(zone, str) else getattr(zone, "key", None) for zone in (one, other)]
    return names[0] is not None and names[0] == names[1]


def offset(instant: datetime, zone: tzinfo) -> timedelta:
    """What the clocks of `zone` are ahead of UTC at `instant`."""
    return instant.astimezone(zone).utcoffset() or _NOTHING


def first_instant(wall: datetime, zone: tzinfo) -> datetime:
    """When the clocks of `zone` show `wall` (naive) for the first time, in UTC; for a time that they skip, the end of the gap."""
    before, after = offsets(wall, zone)
    return instant_of(wall, before, after, zone)


def instant_of(wall: datetime, before: timedelta, after: timedelta, zone: tzinfo) -> datetime:
    """`first_instant`, for one who has the `offsets` already."""
    if after <= before:
        return (wall - before).replace(tzinfo=UTC)
    return transition((wall - after).replace(tzinfo=UTC), (wall - before).replace(tzinfo=UTC), zone)


def gap(wall: datetime, zone: tzinfo) -> timedelta:
    """By how much the clocks jump over `wall`; 0 when they show it."""
    before, after = offsets(wall, zone)
    return max(after - before, _NOTHING)


def repeated(wall: datetime, zone: tzinfo) -> bool:
    """Whether the clocks show `wall` twice."""
    before, after = offsets(wall, zone)
    return after < before


def transition(low: datetime, high: datetime, zone: tzinfo) -> datetime:
    """The first instant after `low` whose offset differs from that at `low`. At `high` it does, and there is one change between them."""
    before = offset(low, zone)
    first, last = 0, int((high - low).total_seconds())
    while last - first > 1:
        middle = (first + last) // 2
        if offset(low + timedelta(seconds=middle), zone) == before:
            first = middle
        else:
            last = middle
    return low + timedelta(seconds=last)


def offsets(wall: datetime, zone: tzinfo) -> tuple[timedelta, timedelta]:
    """The offsets by which `wall` may be read. The first is the greater in a repeated hour, the smaller in a skipped one (PEP 495)."""
    local = wall.replace(tzinfo=zone)
    before = local.utcoffset() or _NOTHING
    return before, local.replace(fold=1).utcoffset() or _NOTHING
