"""Two years in six zones, against a clock on the wall that is read every minute."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from celeriac.core.schedules import crontab, schedule

from .brute_force import END, MINUTES, START, ZONES, Pattern, changes, instant, shown_at, walls

ALL_MINUTES, ALL_HOURS, ALL_WEEKDAYS = set(range(60)), set(range(24)), set(range(7))
ALL_DAYS, ALL_MONTHS = set(range(1, 32)), set(range(1, 13))

GOLDEN: dict[str, tuple[str, Pattern]] = {
    name: (text, Pattern(*sets))
    for name, text, sets in [
        ("each minute", "* * * * *", (ALL_MINUTES, ALL_HOURS, ALL_WEEKDAYS, ALL_DAYS, ALL_MONTHS)),
        ("each 20 minutes", "*/20 * * * *", ({0, 20, 40}, ALL_HOURS, ALL_WEEKDAYS, ALL_DAYS, ALL_MONTHS)),
        ("hourly", "@hourly", ({0}, ALL_HOURS, ALL_WEEKDAYS, ALL_DAYS, ALL_MONTHS)),
        ("hourly at 45", "45 * * * *", ({45}, ALL_HOURS, ALL_WEEKDAYS, ALL_DAYS, ALL_MONTHS)),
        ("nightly in the gap", "30 2 * * *", ({30}, {2}, ALL_WEEKDAYS, ALL_DAYS, ALL_MONTHS)),
        ("nightly, Lord Howe's gap", "15 2 * * *", ({15}, {2}, ALL_WEEKDAYS, ALL_DAYS, ALL_MONTHS)),
        ("nightly in the fold", "40 1 * * *", ({40}, {1}, ALL_WEEKDAYS, ALL_DAYS, ALL_MONTHS)),
        ("all through the night", "*/5 1-3 * * *", (set(range(0, 60, 5)), {1, 2, 3}, ALL_WEEKDAYS, ALL_DAYS, ALL_MONTHS)),
        ("every two hours", "0 */2 * * *", ({0}, set(range(0, 24, 2)), ALL_WEEKDAYS, ALL_DAYS, ALL_MONTHS)),
        ("office hours", "0,30 9-17 * * mon-fri", ({0, 30}, set(range(9, 18)), {1, 2, 3, 4, 5}, ALL_DAYS, ALL_MONTHS)),
        ("the night over the weekend", "10 22-2 * * fri-mon", ({10}, {22, 23, 0, 1, 2}, {5, 6, 0, 1}, ALL_DAYS, ALL_MONTHS)),
        ("month's end", "59 23 31 * *", ({59}, {23}, ALL_WEEKDAYS, {31}, ALL_MONTHS)),
        ("first Monday", "0 9 1-7 * mon", ({0}, {9}, {1}, set(range(1, 8)), ALL_MONTHS)),
        ("quarterly", "0 0 1 */3 *", ({0}, {0}, ALL_WEEKDAYS, {1}, {1, 4, 7, 10})),
        ("winter Sundays", "30 2,3 * nov-mar 7", ({30}, {2, 3}, {0}, ALL_DAYS, {11, 12, 1, 2, 3})),
        ("hourly on change days", "30 * 1-8,25-31 3,4,10,11 sun", ({30}, ALL_HOURS, {0}, {*range(1, 9), *range(25, 32)}, {3, 4, 10, 11})),
    ]
}  # fmt: skip


def _minute(moment: datetime) -> int:
    minutes, rest = divmod((moment - START).total_seconds(), 60)
    assert not rest
    return int(minutes)


def _first_difference(ours: Iterable[int], brute: Iterable[int], zone: str) -> str:
    odd = sorted(set(ours) ^ set(brute))
    return ", ".join(f"{instant(minute)} ({shown_at(zone, minute)})" for minute in odd[:5] if 0 <= minute < MINUTES)


@pytest.mark.parametrize("zone", ZONES)
def test_two_years(zone: str) -> None:
    for name, (text, pattern) in GOLDEN.items():
        periods = [(0, MINUTES)]
        if pattern.named.count(1) > 15_000:
            # Up to a million times: only the days on which anything can go wrong.
            reach = 7200 if pattern.a_day == 24 else 720
            periods = [(max(0, change - reach), change + reach) for change in changes(zone)] or [(0, 7200)]
        for first, last in periods:
            brute = pattern.occurrences(zone, first, last)
            ours = []
            for moment in crontab.from_string(text, tz=zone).occurrences(instant(first) - timedelta(seconds=1)):
                if moment >= instant(last):
                    break
                ours.append(_minute(moment))
            assert ours == brute, f"{name} in {zone}: {_first_difference(ours, brute, zone)}"
            assert len(ours) > 1


@pytest.mark.parametrize("zone", ZONES)
def test_two_years_backwards_around_changes(zone: str) -> None:
    periods = [(max(0, change - 3000), change + 3000) for change in changes(zone)] or [(0, 6000)]
    for name, (text, pattern) in GOLDEN.items():
        cron = crontab.from_string(text, tz=zone)
        for first, last in periods:
            if pattern.a_day > 24:
                first, last = first + 2800, last - 2800
            ours = []
            moment = cron.previous_occurrence(instant(last))
            while moment is not None and moment >= instant(first):
                ours.append(_minute(moment))
                moment = cron.previous_occurrence(moment)
            brute = pattern.occurrences(zone, first, last)
            assert ours[::-1] == brute, f"{name} in {zone}: {_first_difference(ours, brute, zone)}"


@pytest.mark.parametrize("zone", ZONES)
def test_an_interval_knows_no_daylight_saving(zone: str) -> None:
    for seconds in (60, 900, 3600, 86400):
        moments = schedule(seconds, tz=zone).next_occurrences(500, after=datetime(2026, 3, 1, tzinfo=UTC))
        assert moments == [datetime(2026, 3, 1, tzinfo=UTC) + timedelta(seconds=seconds * (k + 1)) for k in range(500)]


@pytest.mark.parametrize("zone", ZONES)
@pytest.mark.parametrize(("every", "unit"), [(timedelta(days=1), "0 0 * * *"), (timedelta(hours=1), "0 * * * *")])
def test_relative_intervals_of_one_unit_come_at_each_boundary(zone: str, every: timedelta, unit: str) -> None:
    brute = GOLDEN["hourly"][1] if every < timedelta(days=1) else Pattern({0}, {0}, ALL_WEEKDAYS, ALL_DAYS, ALL_MONTHS)
    found = []
    for moment in schedule(every, relative=True, tz=zone).occurrences(START - timedelta(seconds=1)):
        if moment >= END:
            break
        found.append(_minute(moment))
    assert found == brute.occurrences(zone), _first_difference(found, brute.occurrences(zone), zone)


# -- the table, as people read it ----------------------------------------------------------------------------------------

TABLE = [
    # zone, cron string, after (on the wall), the next ones in UTC
    ("America/New_York", "30 2 * * *", "2026-03-07 12:00", ["03-08 07:00", "03-09 06:30"]),  # skipped: right after the gap, at 03:00
    ("America/New_York", "30 1 * * *", "2026-10-31 12:00", ["11-01 05:30", "11-02 06:30"]),  # twice: the first
    ("America/New_York", "30 * * * *", "2026-11-01 00:00", ["11-01 04:30", "11-01 05:30", "11-01 06:30", "11-01 07:30"]),
    ("America/New_York", "30 * * * *", "2026-03-08 00:00", ["03-08 05:30", "03-08 06:30", "03-08 07:30", "03-08 08:30"]),
    ("Europe/Berlin", "0 */2 * * *", "2026-10-25 00:30", ["10-25 00:00", "10-25 03:00"]),  # 02:00 twice: the first; then 04:00
    ("Europe/Berlin", "15 2 29 3 *", "2026-03-28 00:00", ["03-29 01:00"]),
    ("Australia/Lord_Howe", "15 2 * * *", "2026-10-03 12:00", ["10-03 15:30", "10-04 15:15"]),  # 02:00 becomes 02:30
    ("Australia/Lord_Howe", "0 * * * *", "2026-10-04 00:30", ["10-03 14:30", "10-03 15:30", "10-03 16:00"]),
    ("Australia/Lord_Howe", "45 * * * *", "2026-04-05 00:50", ["04-04 14:45", "04-04 15:15", "04-04 16:15"]),  # 01:45, 01:45, 02:45
    ("Asia/Kathmandu", "0 9 * * mon-fri", "2026-03-06 09:00", ["03-09 03:15", "03-10 03:15"]),
    ("Africa/Casablanca", "30 2 * * *", "2026-02-14 12:00", ["02-15 01:30", "02-16 02:30"]),  # Ramadan begins: 03:00 becomes 02:00
    ("Africa/Casablanca", "30 2 * * *", "2026-03-21 12:00", ["03-22 02:00", "03-23 01:30"]),  # … and ends: 02:00 becomes 03:00
    ("UTC", "0 0 29 2 *", "2026-01-01 00:00", ["2028-02-29 00:00", "2032-02-29 00:00"]),
]


@pytest.mark.parametrize(("zone", "text", "after", "expected"), TABLE)
def test_table(zone: str, text: str, after: str, expected: list[str]) -> None:
    start = datetime.fromisoformat(after).replace(tzinfo=ZoneInfo(zone))
    found = crontab.from_string(text, tz=zone).next_occurrences(len(expected), after=start)
    assert [f"{moment:%Y-%m-%d %H:%M}" for moment in found] == [one if len(one) > 11 else f"2026-{one}" for one in expected]


# -- any crontab -----------------------------------------------------------------------------------------------------------


def _field(low: int, high: int) -> st.SearchStrategy[tuple[str, set[int]]]:
    """A field in cron's words, and the set it stands for."""
    everything = list(range(low, high + 1))
    number = st.integers(low, high)
    step = st.integers(1, high)

    def ranged(first: int, last: int) -> list[int]:
        return list(range(first, last + 1)) if first <= last else [*range(first, high + 1), *range(low, last + 1)]

    part = st.one_of(
        st.just(("*", set(everything))),
        number.map(lambda n: (str(n), {n})),
        step.map(lambda n: (f"*/{n}", set(everything[::n]))),
        st.tuples(number, number).map(lambda r: (f"{r[0]}-{r[1]}", set(ranged(*r)))),
        st.tuples(number, number, step).map(lambda r: (f"{r[0]}-{r[1]}/{r[2]}", set(ranged(r[0], r[1])[:: r[2]]))),
    )
    return st.lists(part, min_size=1, max_size=3).map(lambda parts: (",".join(p[0] for p in parts), set().union(*(p[1] for p in parts))))


_FIELDS = st.tuples(
    _field(0, 59), st.one_of(st.just(("*", ALL_HOURS)), _field(0, 23)), _field(0, 6),
    st.one_of(st.just(("*", ALL_DAYS)), _field(1, 31)), st.one_of(st.just(("*", ALL_MONTHS)), _field(1, 12)),
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(_FIELDS, st.sampled_from(ZONES), st.data())
@example((("45", {45}), ("*", ALL_HOURS), ("*", ALL_WEEKDAYS), ("*", ALL_DAYS), ("*", ALL_MONTHS)), "Australia/Lord_Howe", None)
def test_any_crontab_around_any_minute(fields: tuple[tuple[str, set[int]], ...], zone: str, data: st.DataObject | None) -> None:
    (minute, hour, weekday, day, month) = fields
    if all(number > (29 if which == 2 else 30 if which in (4, 6, 9, 11) else 31) for which in month[1] for number in day[1]):
        with pytest.raises(ValueError, match="never occurs"):
            crontab(minute[0], hour[0], weekday[0], day[0], month[0])
        return
    cron = crontab(minute[0], hour[0], weekday[0], day[0], month[0], tz=zone)
    pattern = Pattern(minute[1], hour[1], weekday[1], day[1], month[1])
    near = [change + shift for change in changes(zone) for shift in (-61, -30, -1, 0, 1, 29, 61)] or [0]
    minutes = st.one_of(st.sampled_from(near), st.integers(0, MINUTES - 1))
    for start in near if data is None else [data.draw(minutes), data.draw(minutes)]:
        first, last = max(0, start - 3000), min(MINUTES, start + 3000)
        brute = pattern.occurrences(zone, first, last)
        after = next((one for one in brute if one > start), None)
        before = next((one for one in reversed(brute) if one < start), None)
        following, previous = cron.next_after(instant(start)), cron.previous_occurrence(instant(start))
        if after is not None:
            assert following == instant(after)
        else:
            assert following is None or following >= instant(last)
        if before is not None:
            assert previous == instant(before)
        else:
            assert previous is None or previous < instant(first)
        # Moments between two minutes belong to the earlier one.
        assert cron.next_after(instant(start) + timedelta(seconds=59)) == following


def test_the_brute_force_sees_what_the_zones_do() -> None:
    """The tests above prove nothing where no clock is ever changed."""
    jumps = {zone: sorted({walls(zone)[m] - walls(zone)[m - 1] - 1 for m in changes(zone)}) for zone in ZONES}
    assert jumps == {
        "UTC": [], "Asia/Kathmandu": [], "America/New_York": [-60, 60], "Europe/Berlin": [-60, 60], "Australia/Lord_Howe": [-30, 30],
        "Africa/Casablanca": [-60, 60],
    }  # fmt: skip
