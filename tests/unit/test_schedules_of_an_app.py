"""Schedules with a real app behind them: its zone, its clock, its deadline."""

from __future__ import annotations

import pickle
from datetime import UTC, datetime, timedelta

import celeriac
from celeriac import Celeriac, crontab, schedule
from celeriac.schedules import maybe_schedule


def test_the_apps_zone_counts() -> None:
    app = Celeriac("nepal", broker="memory://", set_as_current=False)
    app.conf.timezone = "Asia/Kathmandu"
    morning = maybe_schedule("0 9 * * *", app=app)
    assert morning.next_after(datetime(2026, 5, 13, 12, tzinfo=UTC)) == datetime(2026, 5, 14, 3, 15, tzinfo=UTC)
    assert morning.describe() == "every day at 09:00 Asia/Kathmandu"
    assert morning.now().utcoffset() == timedelta(hours=5, minutes=45)


def test_the_apps_deadline_counts() -> None:
    app = Celeriac("late", broker="memory://", set_as_current=False, beat_cron_starting_deadline=60)
    now = datetime(2026, 5, 13, 12, 5, tzinfo=UTC)
    assert crontab(0, app=app, nowfun=lambda: now).is_due(now - timedelta(minutes=10)) == (False, 3300)
    assert crontab(4, app=app, nowfun=lambda: now).is_due(now - timedelta(minutes=10)) == (True, 3540)


def test_a_schedule_is_pickled_with_the_app_that_it_was_given() -> None:
    app = Celeriac("pickled", broker="memory://", set_as_current=False)
    again = pickle.loads(pickle.dumps(crontab(0, 9, app=app)))
    assert again == crontab(0, 9) and again.app.main == "pickled"


def test_periodic_tasks_take_them() -> None:
    app = Celeriac("periodic", broker="memory://", set_as_current=False)

    @app.task
    def sweep() -> None: ...

    for when in (30, timedelta(hours=1), "@daily", crontab(0, 9), schedule(30)):
        name = app.add_periodic_task(when, sweep.s(), name=repr(when))
        assert maybe_schedule(app.periodic_tasks[name]["schedule"], app=app).next_occurrences(2)


def test_a_name_that_is_not_there() -> None:
    assert not hasattr(celeriac, "crontabs")
