"""The schedules' own manners: what they accept, what they say, and how they compare. The times themselves: test_schedules_golden.py."""

from __future__ import annotations

import builtins
import pickle
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, timezone
from types import SimpleNamespace
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from celeriac.core.errors import ImproperlyConfigured
from celeriac.core.schedules import (
    NEVER_SECONDS,
    BaseSchedule,
    ParseException,
    clocked,
    crontab,
    crontab_parser,
    maybe_schedule,
    schedstate,
    schedule,
    solar,
)
from celeriac.core.settings import Settings

NOON = datetime(2026, 5, 13, 12, 0, tzinfo=UTC)  # a Wednesday
SECOND = timedelta(seconds=1)


def at(moment: datetime) -> Callable[[], datetime]:
    return lambda: moment


def an_app(zone: str = "UTC", deadline: float | None = None, now: datetime = NOON) -> Any:
    return SimpleNamespace(timezone=ZoneInfo(zone), conf=SimpleNamespace(beat_cron_starting_deadline=deadline), now=lambda: now)


def times(found: list[datetime]) -> list[str]:
    return [f"{moment:%m-%d %H:%M}" for moment in found]


class TestFields:
    @pytest.mark.parametrize(
        ("field", "spec", "expected"),
        [
            ("minute", 7, {7}),
            ("minute", "7", {7}),
            ("minute", "*/15", {0, 15, 30, 45}),
            ("minute", "1,13,30-32,50-59/4", {1, 13, 30, 31, 32, 50, 54, 58}),
            ("minute", "1, 2", {1, 2}),
            ("minute", [3, 4], {3, 4}),
            ("minute", {3, 4}, {3, 4}),
            ("minute", range(0, 60, 20), {0, 20, 40}),
            ("minute", "55-5", {55, 56, 57, 58, 59, 0, 1, 2, 3, 4, 5}),
            ("hour", "22-2", {22, 23, 0, 1, 2}),
            ("hour", "22-4/2", {22, 0, 2, 4}),
            ("hour", "0,8-17/2", {0, 8, 10, 12, 14, 16}),
            ("day_of_week", "mon-fri", {1, 2, 3, 4, 5}),
            ("day_of_week", "fri-mon", {5, 6, 0, 1}),
            ("day_of_week", "Monday,thurs", {1, 4}),
            ("day_of_week", "7", {0}),
            ("day_of_week", 7, {0}),
            ("day_of_week", "5-7", {5, 6, 0}),
            ("day_of_week", "0-7", set(range(7))),
            ("day_of_week", "sun-sat", set(range(7))),
            ("day_of_week", "sat-sun", {6, 0}),
            ("day_of_week", ["mon", 3], {1, 3}),
            ("day_of_week", "*/2", {0, 2, 4, 6}),
            ("day_of_month", "28-3", {28, 29, 30, 31, 1, 2, 3}),
            ("day_of_month", "*/3", set(range(1, 32, 3))),
            ("month_of_year", "*/3", {1, 4, 7, 10}),
            ("month_of_year", "nov-feb", {11, 12, 1, 2}),
            ("month_of_year", "sept", {9}),
            ("month_of_year", "2-12/2", {2, 4, 6, 8, 10, 12}),
        ],
    )
    def test_forms(self, field: str, spec: Any, expected: set[int]) -> None:
        assert getattr(crontab(**{field: spec}), field) == expected

    @pytest.mark.parametrize(
        ("field", "spec", "words"),
        [
            ("minute", "60", "minute is 0 to 59"),
            ("minute", -1, "minute is 0 to 59"),
            ("minute", "", "a part of it is empty"),
            ("minute", "1,,2", "a part of it is empty"),
            ("minute", "5/10", "as in '5-59/10'"),
            ("minute", "*/0", "a number above 0"),
            ("minute", "*/x", "a number above 0"),
            ("minute", "1-5-7", "not a value"),
            ("minute", [], "would never run"),
            ("hour", "mon", "not a value of hour"),
            ("hour", "24", "hour is 0 to 23"),
            ("day_of_week", "8", "0 to 6"),
            ("day_of_week", "mo", "sun … sat"),
            ("day_of_month", 0, "1 to 31"),
            ("month_of_year", "foo", "jan … dec"),
        ],
    )
    def test_what_cannot_be_read(self, field: str, spec: Any, words: str) -> None:
        with pytest.raises(ParseException, match=words):
            crontab(**{field: spec})
        assert issubclass(ParseException, ValueError)

    @pytest.mark.parametrize("spec", [1.5, True, [1.5]])
    def test_other_types(self, spec: Any) -> None:
        with pytest.raises(TypeError, match="minute"):
            crontab(minute=spec)

    def test_days_that_never_come(self) -> None:
        for day, month in (("31", "feb"), ("30", "2"), ("31", "4,6,9,11"), ([30, 31], [2])):
            with pytest.raises(ValueError, match="never occurs"):
                crontab(day_of_month=day, month_of_year=month)  # type: ignore[arg-type]
        assert crontab(0, 0, day_of_month="29", month_of_year="2").next_after(NOON) == datetime(2028, 2, 29, tzinfo=UTC)

    def test_the_parser_alone(self) -> None:
        assert crontab_parser(60).parse("*/15") == {0, 15, 30, 45}
        assert crontab_parser(31, 1).parse("*/10") == {1, 11, 21, 31}
        assert crontab_parser(7).parse("sat-mon") == {6, 0, 1}
        with pytest.raises(crontab_parser.ParseException):
            crontab_parser(24).parse("x")


class TestCronStrings:
    @pytest.mark.parametrize(
        ("text", "same"),
        [
            ("30 7 1 */3 mon", crontab(30, 7, 1, 1, "*/3")),
            ("  0\t9 * * 1-5 ", crontab(0, 9, "mon-fri")),
            ("@yearly", crontab(0, 0, "*", 1, 1)),
            ("@annually", crontab(0, 0, "*", 1, 1)),
            ("@monthly", crontab(0, 0, "*", 1)),
            ("@weekly", crontab(0, 0, "sun")),
            ("@daily", crontab(0, 0)),
            ("@midnight", crontab(0, 0)),
            ("@Hourly", crontab(0)),
        ],
    )
    def test_forms(self, text: str, same: crontab) -> None:
        assert crontab.from_string(text) == same
        assert crontab.from_string(same.to_string()) == same

    @pytest.mark.parametrize("text", ["", "* * * *", "* * * * * *", "@reboot", "@fortnightly", "0 0 31 2 *"])
    def test_what_cannot_be_read(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"five fields|Unknown cron string|never occurs"):
            crontab.from_string(text)

    def test_lists_as_a_string(self) -> None:
        assert crontab([5, 10], 3, tz="UTC").to_string() == "5,10 3 * * *"


class TestZones:
    def test_its_own_then_the_apps_then_utc(self) -> None:
        cron = crontab(0, 9)
        assert cron.tz == UTC and times(cron.next_occurrences(1, NOON)) == ["05-14 09:00"]
        cron.app = an_app("Asia/Kathmandu")
        assert times(cron.next_occurrences(1, NOON)) == ["05-14 03:15"]
        cron = crontab(0, 9, app=an_app("Asia/Kathmandu"), tz="Europe/Berlin")
        assert times(cron.next_occurrences(1, NOON)) == ["05-14 07:00"]

    def test_a_zone_may_be_a_name_a_zone_or_a_function(self) -> None:
        for zone in ("Europe/Berlin", ZoneInfo("Europe/Berlin"), lambda: ZoneInfo("Europe/Berlin"), timezone(timedelta(hours=2))):
            assert times(crontab(0, 9, tz=zone).next_occurrences(1, NOON)) == ["05-14 07:00"]

    def test_an_unknown_zone(self) -> None:
        for name in ("Europe/Berln", "", "../etc"):
            with pytest.raises(ValueError, match="tzdata"):
                crontab(tz=name)

    def test_moments_are_utc_whatever_they_are_asked_with(self) -> None:
        for moment in (NOON, NOON.astimezone(ZoneInfo("America/New_York")), NOON.replace(tzinfo=None)):
            for any_schedule in (crontab(0, 9, tz="Asia/Kathmandu"), schedule(60), clocked(NOON + SECOND)):
                found = any_schedule.next_occurrences(1, moment)[0]
                assert found.tzinfo is UTC and found > NOON

    def test_now(self) -> None:
        assert crontab(nowfun=at(NOON), app=an_app(now=NOON - SECOND)).now() == NOON
        assert crontab(app=an_app(now=NOON)).now() == NOON
        assert abs(crontab(tz="Asia/Kathmandu").now() - datetime.now(UTC)) < timedelta(seconds=30)


class TestIsDue:
    """As Celery 5.7 answers."""

    @pytest.mark.parametrize(
        ("cron", "last", "due", "following"),
        [
            (crontab(), NOON - SECOND, True, 60),
            (crontab(), NOON, False, 60),
            (crontab(), NOON - timedelta(hours=5), True, 60),
            (crontab(minute=30), NOON - SECOND, False, 1800),
            (crontab(minute=30), NOON - timedelta(minutes=31), True, 1800),
            (crontab(0, 12), NOON - timedelta(minutes=1), True, 86400),
            (crontab(0, 12), NOON, False, 86400),
            (crontab(0, 0, "sun"), NOON, False, 3.5 * 86400),
        ],
    )
    def test_crontab(self, cron: crontab, last: datetime, due: bool, following: float) -> None:
        cron.nowfun = at(NOON)
        assert cron.is_due(last) == (due, following)
        assert isinstance(cron.is_due(last), schedstate)

    def test_interval(self) -> None:
        every = schedule(30, nowfun=at(NOON))
        assert every.is_due(NOON - timedelta(seconds=10)) == (False, 20)
        assert every.is_due(NOON - timedelta(seconds=30)) == (True, 30)
        assert every.is_due(NOON - timedelta(seconds=99)) == (True, 30)
        assert every.remaining_estimate(NOON - timedelta(seconds=40)) == timedelta(seconds=-10)

    def test_naive_moments_are_utc(self) -> None:
        every = schedule(30, nowfun=at(NOON.replace(tzinfo=None)))
        assert every.is_due(NOON.replace(tzinfo=None) - timedelta(seconds=10)) == (False, 20)

    def test_relative(self) -> None:
        hourly = schedule(3600, relative=True, nowfun=at(NOON + timedelta(minutes=10)))
        assert hourly.is_due(NOON + timedelta(minutes=5)) == (False, 3000)
        assert hourly.is_due(NOON - timedelta(minutes=5)) == (True, 3000)
        # 90 minutes after 11:05, rounded down to the hour.
        assert schedule(5400, relative=True).next_after(NOON - timedelta(minutes=55)) == NOON
        assert schedule(90, relative=True).next_after(NOON + timedelta(seconds=40)) == NOON + timedelta(minutes=2)
        assert schedule(1.5, relative=True).next_after(NOON + timedelta(milliseconds=700)) == NOON + timedelta(seconds=2)
        assert schedule(0.5, relative=True).next_after(NOON) == NOON + timedelta(seconds=0.5)
        daily = schedule(timedelta(days=1), relative=True, tz="Asia/Kathmandu")
        assert times(daily.next_occurrences(2, NOON)) == ["05-13 18:15", "05-14 18:15"]

    def test_relative_days_with_two_midnights(self) -> None:
        """In Havana 01:00 becomes 00:00 in November; in March 00:00 becomes 01:00."""
        daily = schedule(timedelta(days=1), relative=True, tz="America/Havana")
        assert times(daily.next_occurrences(3, datetime(2026, 10, 31, 12, tzinfo=UTC))) == ["11-01 04:00", "11-02 05:00", "11-03 05:00"]
        assert times(daily.next_occurrences(2, datetime(2026, 3, 7, 12, tzinfo=UTC))) == ["03-08 05:00", "03-09 04:00"]
        every_second = schedule(timedelta(days=2), relative=True, tz="America/Havana")
        assert times(every_second.next_occurrences(2, datetime(2026, 10, 30, 12, tzinfo=UTC))) == ["11-01 04:00", "11-03 05:00"]

    def test_deadline(self) -> None:
        """`beat_cron_starting_deadline`: what was missed by more is not made up."""
        hourly = crontab(0, app=an_app(deadline=60, now=NOON + timedelta(seconds=60)))
        assert hourly.is_due(NOON - SECOND) == (True, 3540)
        hourly.app = an_app(deadline=60, now=NOON + timedelta(seconds=61))
        assert hourly.is_due(NOON - SECOND) == (False, 3539)
        assert hourly.is_due(NOON - timedelta(days=3)) == (False, 3539)

    def test_once(self) -> None:
        once = clocked(NOON, nowfun=at(NOON))
        assert once.is_due(NOON - SECOND) == (True, NEVER_SECONDS)
        assert once.is_due(NOON) == (False, NEVER_SECONDS)
        once.nowfun = at(NOON - timedelta(seconds=9))
        assert once.is_due(NOON - timedelta(days=1)) == (False, 9)
        assert once.remaining_estimate(NOON - timedelta(days=1)) == timedelta(seconds=9)


class TestOccurrences:
    def test_next(self) -> None:
        assert times(crontab(0, 9, "mon-fri").next_occurrences(3, NOON)) == ["05-14 09:00", "05-15 09:00", "05-18 09:00"]
        assert crontab(0, 9, nowfun=at(NOON)).next_occurrences(1) == [datetime(2026, 5, 14, 9, tzinfo=UTC)]
        assert crontab().next_occurrences(0) == []
        assert clocked(NOON).next_occurrences(5, NOON - SECOND) == [NOON]

    def test_previous(self) -> None:
        daily = crontab(0, 9)
        assert daily.previous_occurrence(NOON) == datetime(2026, 5, 13, 9, tzinfo=UTC)
        assert daily.previous_occurrence(datetime(2026, 5, 13, 9, tzinfo=UTC)) == datetime(2026, 5, 12, 9, tzinfo=UTC)
        assert daily.previous_occurrence(NOON, after=datetime(2026, 5, 13, 9, tzinfo=UTC)) is None
        assert clocked(NOON).previous_occurrence(NOON + SECOND) == NOON
        assert clocked(NOON).previous_occurrence(NOON) is None
        assert clocked(NOON).previous_occurrence(NOON + SECOND, after=NOON) is None

    def test_previous_of_an_interval_counts_from_the_one_before(self) -> None:
        every = schedule(10)
        assert every.previous_occurrence(NOON + timedelta(seconds=35), after=NOON) == NOON + timedelta(seconds=30)
        assert every.previous_occurrence(NOON + timedelta(seconds=30), after=NOON) == NOON + timedelta(seconds=20)
        assert every.previous_occurrence(NOON + timedelta(seconds=10), after=NOON) is None
        assert every.previous_occurrence(NOON) == NOON - timedelta(seconds=10)
        relative = schedule(3600, relative=True)
        assert relative.previous_occurrence(NOON + timedelta(minutes=20), after=NOON - timedelta(hours=3)) == NOON
        assert relative.previous_occurrence(NOON + timedelta(minutes=20)) == NOON

    def test_an_interval_finds_its_place_after_years(self) -> None:
        assert schedule(1).previous_occurrence(NOON, after=NOON - timedelta(days=3000)) == NOON - SECOND

    def test_the_end_of_time(self) -> None:
        end = datetime(9999, 12, 31, 23, 59, 30, tzinfo=UTC)
        assert [
            one.next_after(end) for one in (crontab(), crontab(tz="America/New_York"), schedule(60), schedule(86400, relative=True))
        ] == [None] * 4

    @given(
        st.datetimes(datetime(2000, 1, 1), datetime(2060, 1, 1)),
        st.sampled_from(["15 4 * * *", "*/7 * * * *", "0 0 29 2 *", "0 2 * * sun"]),
    )
    def test_neighbours(self, naive: datetime, text: str) -> None:
        moment = naive.replace(tzinfo=UTC)
        cron = crontab.from_string(text, tz="Europe/Berlin")
        following, previous = cron.next_after(moment), cron.previous_occurrence(moment)
        assert following is not None and previous is not None
        assert previous < moment < following
        assert cron.previous_occurrence(following) in (previous, moment)
        assert cron.next_after(previous) in (following, moment)


class TestIdentity:
    ALL: tuple[BaseSchedule, ...] = (
        crontab("*/5", "9-17", "mon-fri", tz="Asia/Kathmandu", nowfun=datetime.now),
        crontab([1, 2], 3),
        schedule(30),
        schedule(timedelta(days=1), relative=True, tz="Europe/Berlin"),
        clocked(NOON, tz="UTC"),
        solar("sunset", 52.5, 13.4, tz="Europe/Berlin"),
    )

    @pytest.mark.parametrize("one", ALL, ids=repr)
    def test_pickling(self, one: BaseSchedule) -> None:
        again = pickle.loads(pickle.dumps(one))
        assert again == one and hash(again) == hash(one) and type(again) is type(one)
        assert (repr(again), again.describe(), again.tz, again.nowfun) == (repr(one), one.describe(), one.tz, one.nowfun)
        assert again.next_occurrences(3, NOON) == one.next_occurrences(3, NOON)

    def test_an_app_that_was_set_later_is_not_pickled(self) -> None:
        cron = crontab(0, 9)
        cron.app = an_app()
        assert pickle.loads(pickle.dumps(cron)).app is None

    def test_repr(self) -> None:
        assert repr(crontab(0, "*/2", "mon", 1, "jan")) == "<crontab: 0 */2 1 jan mon (m/h/dM/MY/d)>"
        assert repr(crontab.from_string("@hourly")) == "<crontab: 0 * * * * (m/h/dM/MY/d)>"
        texts = {30: "30.00 seconds", 1: "1.00 second", 90: "1.50 minutes", 3600: "1.00 hour", 172800: "2.00 days", 0.5: "now"}
        assert {seconds: repr(schedule(seconds)) for seconds in texts} == {seconds: f"<freq: {text}>" for seconds, text in texts.items()}
        assert repr(solar("sunset", -37, 144)) == "<solar: sunset at latitude -37, longitude: 144>"
        assert repr(clocked(NOON)) == "<clocked: 2026-05-13 12:00:00+00:00>"

    def test_equality(self) -> None:
        assert crontab(minute="0", hour="*/12") == crontab(minute=0, hour=[0, 12])
        assert crontab(minute=0) != crontab(minute=1)
        assert crontab(tz="Europe/Berlin") == crontab(tz=ZoneInfo("Europe/Berlin")) != crontab(tz="UTC")
        assert crontab(tz="UTC") != crontab()
        assert crontab(nowfun=datetime.now) != crontab()
        assert schedule(10) == schedule(timedelta(seconds=10)) == timedelta(seconds=10)
        assert schedule(10) != schedule(11) and schedule(10) != 10 and schedule(10) != crontab() and crontab() != 1
        assert solar("sunset", 1, 2) == solar("sunset", 1, 2) != solar("sunset", 1, 3)
        assert clocked(NOON) == clocked(NOON) != clocked(NOON + SECOND)
        assert len({crontab(0), crontab("0"), schedule(1), timedelta(seconds=1)}) == 2

    def test_subclasses_as_django_celery_beat_has_them(self) -> None:
        class TzAwareCrontab(crontab):
            def __init__(self, minute: Any = "*", hour: Any = "*", tz: Any = UTC, app: Any = None) -> None:
                super().__init__(minute=minute, hour=hour, nowfun=self.nowfunc, app=app)
                self.tz = tz

            def nowfunc(self) -> datetime:
                return NOON.astimezone(self.tz)

        cron = TzAwareCrontab(0, 9, ZoneInfo("Asia/Kathmandu"))
        assert cron.is_due(NOON - timedelta(days=1)) == (True, (15 * 60 + 15) * 60)

    def test_many_share_their_fields(self) -> None:
        assert crontab("*/5", 3).minute is crontab("*/5", 4).minute


class TestMaybeSchedule:
    def test_what_stands_for_a_schedule(self) -> None:
        assert maybe_schedule(30) == maybe_schedule(30.0) == maybe_schedule(timedelta(seconds=30)) == schedule(30)
        assert maybe_schedule(3600, relative=True).relative
        assert maybe_schedule("@daily") == crontab(0, 0)
        assert maybe_schedule(None) is None

    def test_a_schedule_learns_its_app(self) -> None:
        app, cron = an_app("Asia/Kathmandu"), crontab(0, 9)
        assert maybe_schedule(cron, app=app) is cron and cron.app is app
        assert maybe_schedule("0 9 * * *", app=app).tz == ZoneInfo("Asia/Kathmandu")

    def test_intervals_go_forward(self) -> None:
        for nothing in (0, -1, timedelta(0)):
            with pytest.raises(ValueError, match="longer than 0"):
                maybe_schedule(nothing)


class TestSettings:
    @pytest.mark.parametrize("when", [30, 0.5, timedelta(days=1), "*/5 * * * *", "@daily", crontab(0, 9), schedule(30), clocked(NOON)])
    def test_what_an_entry_may_give(self, when: Any) -> None:
        assert Settings.build({"beat_schedule": {"x": {"task": "t", "schedule": when}}}).beat_schedule["x"]["schedule"] is when

    @pytest.mark.parametrize(
        ("when", "words"),
        [
            (0, "longer than 0"),
            (timedelta(seconds=-1), "longer than 0"),
            ("5/10 * * * *", r"entry 'x': .* as in '5-59/10'"),
            ("daily", "five fields"),
            (None, "cron string"),
            (True, "cron string"),
            (crontab, "cron string"),
        ],
    )
    def test_what_never_comes(self, when: Any, words: str) -> None:
        with pytest.raises(ImproperlyConfigured, match=words):
            Settings.build({"beat_schedule": {"x": {"task": "t", "schedule": when}}})


class TestWords:
    @pytest.mark.parametrize(
        ("text", "words"),
        [
            ("0 9 * * mon-fri", "every weekday at 09:00 Asia/Kathmandu"),
            ("* * * * *", "every minute"),
            ("*/15 * * * *", "every 15 minutes"),
            ("0 * * * *", "every hour"),
            ("@daily", "every day at 00:00 Asia/Kathmandu"),
            ("30 9,17 * * *", "every day at 09:30 and 17:30 Asia/Kathmandu"),
            ("0 9 * * sun", "every Sunday at 09:00 Asia/Kathmandu"),
            ("0 9 * * sat,7", "every Saturday and Sunday at 09:00 Asia/Kathmandu"),
            ("0 9 * * fri-mon", "every Monday, Friday, Saturday and Sunday at 09:00 Asia/Kathmandu"),
            ("0 9 1 * *", "on day 1 of every month at 09:00 Asia/Kathmandu"),
            ("0 9 1-7 * mon", "on days 1–7 of every month, if they are Monday, at 09:00 Asia/Kathmandu"),
            ("0 0 1 1 *", "on day 1 of January at 00:00 Asia/Kathmandu"),
            ("0 0 1 jun-aug *", "on day 1 of June to August at 00:00 Asia/Kathmandu"),
            ("0 9 * 12 mon-fri", "every weekday in December at 09:00 Asia/Kathmandu"),
            ("45 * * * *", "every hour at minute 45 Asia/Kathmandu"),
            ("1,2,3,30 * * * *", "at minutes 1–3 and 30 of every hour Asia/Kathmandu"),
            ("*/15 9-17 * * mon-fri", "every weekday, every 15 minutes from 09:00 to 17:59 Asia/Kathmandu"),
            ("0 9-17 * * *", "every hour from 09:00 to 17:00 Asia/Kathmandu"),
            ("30 9-17 * * *", "every hour from 09:30 to 17:30 Asia/Kathmandu"),
            ("0 */2 * * *", "every 2 hours from 00:00 Asia/Kathmandu"),
            ("10,40 */4 * * *", "at minutes 10 and 40 of the hours 0, 4, 8, 12, 16 and 20 Asia/Kathmandu"),
            ("* 22-2 * * *", "every minute of the hours 0–2, 22 and 23 Asia/Kathmandu"),
            ("0 * * * mon", "every Monday, every hour Asia/Kathmandu"),
        ],
    )
    def test_crontab(self, text: str, words: str) -> None:
        assert crontab.from_string(text, tz="Asia/Kathmandu").describe() == words

    def test_the_rest(self) -> None:
        assert schedule(30).describe() == "every 30 seconds"
        assert schedule(1).describe() == "every second"
        assert schedule(0.5).describe() == "every 0.5 seconds"
        assert schedule(5400).describe() == "every 1 hour 30 minutes"
        assert schedule(86400, relative=True).describe() == "every day, at midnight UTC"
        assert schedule(7200, relative=True).describe() == "every 2 hours, on the hour UTC"
        assert clocked(NOON, tz="Asia/Kathmandu").describe() == "once, on 2026-05-13 at 17:45 Asia/Kathmandu"
        assert solar("sunset", 52.5, -13.4).describe() == "at sunset at 52.5°N 13.4°W"
        assert solar("dawn_civil", -37, 144).describe() == "at civil dawn at 37°S 144°E"


class TestRemarks:
    """What a preview says beside an occurrence."""

    @pytest.mark.parametrize(
        ("zone", "text", "after", "remarks"),
        [
            ("Europe/Berlin", "30 2 * * *", "2026-03-28", ["", "02:30 does not exist: it runs right after the gap", ""]),
            ("Europe/Berlin", "*/20 2 * * *", "2026-03-29", ["02:00 to 02:40 do not exist: it runs right after the gap", "", ""]),
            ("Europe/Berlin", "30 2 * * *", "2026-10-25", ["02:30 comes twice, and this is the first: it runs once", "", ""]),
            ("Europe/Berlin", "30 * * * *", "2026-10-25T01:00", [
                "", "02:30 comes twice, and this is the first: it runs every real hour",
                "02:30 comes twice, and this is the second: it runs every real hour"]),
            ("Europe/Berlin", "30 * * * *", "2026-03-29T01:00", ["", "", ""]),
            ("Australia/Lord_Howe", "0 * * * *", "2026-10-04T00:30", ["", "02:00 does not exist: it runs right after the gap", ""]),
        ],
    )  # fmt: skip
    def test_crontab(self, zone: str, text: str, after: str, remarks: list[str]) -> None:
        cron = crontab.from_string(text, tz=zone)
        start = datetime.fromisoformat(after).replace(tzinfo=ZoneInfo(zone))
        assert [cron.remark(one) for one in cron.next_occurrences(3, start)] == remarks

    def test_others(self) -> None:
        assert schedule(3600).remark(NOON) == solar("sunset", 1, 1).remark(NOON) == clocked(NOON).remark(NOON) == ""
        skipped = clocked(datetime(2026, 3, 29, 2, 30), tz="Europe/Berlin")
        assert skipped.next_after(NOON - timedelta(days=99)) == datetime(2026, 3, 29, 1, 0, tzinfo=UTC)
        assert "does not exist" in skipped.remark(skipped.instant)
        twice = clocked(datetime(2026, 10, 25, 2, 30), tz="Europe/Berlin")
        assert twice.instant == datetime(2026, 10, 25, 0, 30, tzinfo=UTC)
        assert "comes twice" in twice.remark(twice.instant)


class TestSolar:
    def test_known_times(self) -> None:
        """Berlin, 13 May 2026, from a table of sunrises: 05:08 and 20:56 summer time."""
        day = datetime(2026, 5, 13, tzinfo=UTC)
        for event, expected in (("sunrise", day + timedelta(hours=3, minutes=11)), ("sunset", day + timedelta(hours=18, minutes=52))):
            found = solar(event, 52.52, 13.405).next_after(day)
            assert found is not None and abs(found - expected) < timedelta(minutes=5)

    def test_events_come_in_their_order(self) -> None:
        day = datetime(2026, 3, 20, tzinfo=UTC)
        events = [
            "dawn_astronomical", "dawn_nautical", "dawn_civil", "sunrise", "solar_noon", "sunset", "dusk_civil", "dusk_nautical",
            "dusk_astronomical",
        ]  # fmt: skip
        found = [solar(event, 51.5, 0).next_occurrences(1, day)[0] for event in events]
        assert found == sorted(found) and found[-1] - found[0] < timedelta(hours=20)

    def test_an_occurrence_has_one_time_whoever_asks(self) -> None:
        for lat, lon in ((52.5, 13.4), (-62.0, 179.9), (69.6, 18.9), (0, -180)):
            for event in ("sunrise", "dusk_nautical"):
                one = solar(event, lat, lon)
                found = one.next_occurrences(40, NOON)
                assert all(later - earlier > timedelta(hours=20) for earlier, later in zip(found, found[1:], strict=False))
                for earlier, later in zip(found, found[1:], strict=False):
                    for moment in (earlier, earlier + SECOND, earlier + (later - earlier) / 2, later - SECOND):
                        assert one.next_after(moment) == later
                    assert one.previous_occurrence(later) == earlier
                    assert one.previous_occurrence(later, after=earlier) is None

    def test_polar_nights_are_left_out(self) -> None:
        tromso = solar("sunrise", 69.65, 18.96)
        found = tromso.next_occurrences(300, datetime(2026, 1, 1, tzinfo=UTC))
        assert f"{found[0]:%m-%d}" in {"01-14", "01-15", "01-16"}
        gaps = [later - earlier for earlier, later in zip(found, found[1:], strict=False) if later - earlier > timedelta(days=2)]
        assert [gap.days // 10 for gap in gaps] == [6, 4]  # the midnight sun, and the polar night

    def test_what_never_happens(self) -> None:
        dusk = solar("dusk_astronomical", 69.65, 18.96, nowfun=at(NOON))
        dusk.max_search_days = 10
        assert dusk.next_after(NOON) is None and dusk.previous_occurrence(NOON) is None
        assert dusk.is_due(NOON) == (False, NEVER_SECONDS)

    @pytest.mark.parametrize(("event", "lat", "lon"), [("noon", 0, 0), ("sunset", 91, 0), ("sunset", -91, 0), ("sunset", 0, 181)])
    def test_events_and_places_that_do_not_exist(self, event: str, lat: float, lon: float) -> None:
        with pytest.raises(ValueError, match="is invalid"):
            solar(event, lat, lon)

    def test_without_the_library(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real = builtins.__import__

        def absent(name: str, *rest: Any) -> Any:
            if name == "ephem":
                raise ImportError(name)
            return real(name, *rest)

        monkeypatch.setattr(builtins, "__import__", absent)
        with pytest.raises(ImproperlyConfigured, match=r"pip install 'celeriac\[solar\]'"):
            solar("sunset", 0, 0)
