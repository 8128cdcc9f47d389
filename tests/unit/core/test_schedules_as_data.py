"""Schedules as text and back, and a schedule between its limits."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone
from itertools import islice
from typing import Any

import pytest

from celeriac import crontab, schedule, solar
from celeriac.core.schedules import BaseSchedule, clocked
from celeriac.core.schedules.data import as_data, from_data
from celeriac.core.schedules.timetable import Timetable

NOON = datetime(2026, 5, 13, 12, 0, tzinfo=UTC)
AT = NOON.timestamp()


@pytest.mark.parametrize(
    ("when", "text"),
    [
        (30, "30"),
        (0.1, "0.1"),
        (timedelta(minutes=1.5), "90"),
        (schedule(86400, relative=True, tz="Europe/Berlin"), '{"every":86400.0,"relative":true,"tz":"Europe/Berlin"}'),
        ("*/5 9-17 * * mon-fri", "*/5 9-17 * * mon-fri"),
        ("@daily", "0 0 * * *"),
        (crontab(minute=[0, 30], hour="*/2", day_of_week={"sun", "mon", "fri"}), "0,30 */2 * * fri,mon,sun"),
        (crontab(0, 9, tz="Asia/Kathmandu"), '{"cron":"0 9 * * *","tz":"Asia/Kathmandu"}'),
        (crontab(0, 9, tz="UTC"), '{"cron":"0 9 * * *","tz":"UTC"}'),
        (solar("sunset", 52.5, 13.4), '{"lat":52.5,"lon":13.4,"solar":"sunset"}'),
        (clocked(NOON), '{"once":"2026-05-13T12:00:00+00:00"}'),
        (clocked(datetime(2026, 5, 13, 12), tz="Europe/Berlin"), '{"once":"2026-05-13T12:00:00","tz":"Europe/Berlin"}'),
    ],
)
def test_there_and_back(when: Any, text: str) -> None:
    assert as_data(when) == text
    again = from_data(text)
    assert as_data(again) == text
    made = when if isinstance(when, BaseSchedule) else from_data(text)
    assert again == made and again.tz == made.tz
    assert again.next_occurrences(5, after=NOON) == made.next_occurrences(5, after=NOON)


class Own(BaseSchedule):
    def next_after(self, moment: datetime) -> datetime:
        return moment + timedelta(hours=1)


@pytest.mark.parametrize("when", [Own(), crontab(tz=timezone(timedelta(hours=2))), crontab(tz=lambda: UTC)])
def test_what_text_cannot_say(when: Any) -> None:
    assert as_data(when).startswith('{"code"')
    with pytest.raises(LookupError, match="only the app that names it knows"):
        from_data(as_data(when))


@pytest.mark.parametrize(
    "text", ["", "61 * * * *", "0", "-5", "{", '{"every":0}', '{"cron":"* * * *"}', '{"cron":"* * * * *","hour":3}', "[]", '{"once":"x"}',
             '{"solar":"sunset"}', '{"cron":"* * * * *","tz":"Nowhere"}', '{"every":"x"}', "nan"],
)  # fmt: skip
def test_what_nobody_can_read(text: str) -> None:
    with pytest.raises(ValueError):
        from_data(text)


@pytest.mark.parametrize("when", [None, True, crontab, object()])
def test_what_is_no_schedule(when: Any) -> None:
    with pytest.raises(TypeError):
        as_data(when)


# -- timetables ------------------------------------------------------------------------------------------------------------


def seconds(table: Timetable, now: float = AT, count: int = 4) -> list[float]:
    return [found - AT for found in islice(table.occurrences(table.first(now)), count)]


def test_the_first_occurrence() -> None:
    assert seconds(Timetable(schedule(10))) == [10, 20, 30, 40]
    assert seconds(Timetable(schedule(10), starts_at=AT + 33)) == [33, 43, 53, 63]
    assert seconds(Timetable(schedule(10), starts_at=AT)) == [10, 20, 30, 40]
    assert seconds(Timetable(schedule(10), starts_at=AT - 33)) == [7, 17, 27, 37]
    assert seconds(Timetable(crontab(), starts_at=AT + 120)) == [120, 180, 240, 300]
    assert seconds(Timetable(crontab(), starts_at=AT - 120)) == [60, 120, 180, 240]
    assert seconds(Timetable(crontab(), ends_at=AT + 120)) == [60, 120]
    assert seconds(Timetable(clocked(NOON))) == [0]
    assert seconds(Timetable(clocked(NOON)), now=AT + 1e6) == [0]
    assert seconds(Timetable(clocked(NOON), ends_at=AT - 1)) == []


@pytest.mark.parametrize("when", [schedule(7), crontab("*/7"), schedule(90, relative=True)])
@pytest.mark.parametrize("end", [0, 1, 7, 7.5, 420, 421, 3600, 86400])
def test_how_many_until(when: Any, end: float) -> None:
    table = Timetable(when)
    first = table.first(AT)
    assert first is not None
    found = []
    for planned_at in table.occurrences(first):
        if planned_at >= AT + end:
            break
        found.append(planned_at)
    assert table.until(first, AT + end) == (len(found), found[-1] if found else first)


def test_how_many_until_with_an_end() -> None:
    table = Timetable(schedule(10), ends_at=AT + 55)
    assert table.until(AT + 10, AT + 1000) == (5, AT + 50)


def test_far_behind_the_number_is_not_counted_to_its_end() -> None:
    table = Timetable(crontab())
    count, last = table.until(AT + 60, AT + 400 * 86400)
    assert (count, last) == (100_000, AT + 400 * 86400 - 60)


def test_jitter_is_always_the_same_and_ends_at_the_next() -> None:
    table, same, other = (Timetable(schedule(10), name=name, jitter_seconds=5) for name in ("a", "a", "b"))
    delays = [table.due_at(AT + 10 * number) - (AT + 10 * number) for number in range(100)]
    assert delays == [same.due_at(AT + 10 * number) - (AT + 10 * number) for number in range(100)]
    assert delays != [other.due_at(AT + 10 * number) - (AT + 10 * number) for number in range(100)]
    assert 0 <= min(delays) < 1 and 4 < max(delays) <= 5
    assert max(Timetable(schedule(1), jitter_seconds=100).due_at(AT + number) - (AT + number) for number in range(50)) == 1


def test_a_schedule_that_only_answers_celerys_questions() -> None:
    class Celerys:
        def now(self) -> datetime:
            return NOON

        def remaining_estimate(self, last_run_at: datetime) -> timedelta:
            return last_run_at + timedelta(seconds=20) - NOON

        def is_due(self, last_run_at: datetime) -> tuple[bool, float]:
            return False, 1.0

    assert seconds(Timetable(Celerys())) == [20, 40, 60, 80]
