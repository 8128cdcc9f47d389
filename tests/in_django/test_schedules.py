"""Schedules in the project's database: rows that are saved are what beat sends."""

from __future__ import annotations

import pytest

from tests.support.django_project import DjangoProject, MakeDjangoProject
from tests.support.workers import until

from .test_admin import BEGIN, WITH_ADMIN

MODELS = """
from datetime import UTC, datetime, timedelta
from celeriac import current_app as app
from celeriac.django.models import *
from celeriac.django.models import ClockedSchedule, CrontabSchedule, IntervalSchedule, PeriodicTask, SolarSchedule
from celeriac.django.schedulers import SOURCE, agree
def states():
    return {state.name: state for state in app.schedules}
often = IntervalSchedule.objects.get_or_create(every=1, period="seconds")[0]
nightly = CrontabSchedule.objects.get_or_create(minute="30", hour="2", timezone="Asia/Kathmandu")[0]
"""


@pytest.fixture
def site(make_site: MakeDjangoProject) -> DjangoProject:
    return make_site()


def test_what_is_saved_changed_and_deleted_is_told_to_the_engine(site: DjangoProject) -> None:
    assert site.python(
        MODELS
        + """
row = PeriodicTask.objects.create(name="night", task="books.tasks.join", crontab=nightly, args='[["a"]]', queue="slow", priority=3, expire_seconds=60)
entry = states()["night"].entry
seen = [entry.schedule, entry.task, bytes(entry.args).decode() == '[["a"]]', json.loads(bytes(entry.options)), entry.expires_seconds, entry.source == SOURCE]
row.enabled = False; row.save()
seen.append(states()["night"].enabled)
row.enabled = True; row.save()
seen.append(states()["night"].enabled)
nightly.hour = "3"; nightly.save()
seen.append(json.loads(states()["night"].entry.schedule)["cron"])
row.delete()
seen.append(list(states()))
for kind in ({"solar": SolarSchedule.objects.create(event="sunset", latitude="27.7", longitude="85.3")}, {"clocked": ClockedSchedule.objects.create(clocked_time=datetime(2099, 1, 1, tzinfo=UTC))}, {"interval": often}):
    PeriodicTask.objects.create(name=next(iter(kind)), task="books.tasks.join", **kind)
seen.append(sorted(states()))
seen.append([str(state.planned_at)[:6] for state in app.schedules if state.name == "clocked"])
print(json.dumps(seen))"""
    ) == [
        '{"cron":"30 2 * * *","tz":"Asia/Kathmandu"}',
        "books.tasks.join",
        True,
        {"queue": "slow", "priority": 3},
        60.0,
        True,
        False,
        True,
        "30 3 * * *",
        [],
        ["clocked", "interval", "solar"],
        [str(4070908800.0)[:6]],
    ]


def test_a_rollback_tells_nothing_and_what_was_changed_behind_our_back_is_found(site: DjangoProject) -> None:
    assert site.python(
        MODELS
        + """
from django.db import connection, transaction
try:
    with transaction.atomic():
        PeriodicTask.objects.create(name="never", task="t", interval=often)
        raise ValueError
except ValueError:
    pass
seen = [list(states())]
row = PeriodicTask.objects.create(name="night", task="t", crontab=nightly)
PeriodicTask.objects.filter(pk=row.pk).update(task="other", enabled=False)
CrontabSchedule.objects.update(minute="31")
agree(app)
seen.append([states()["night"].entry.task, states()["night"].enabled, json.loads(states()["night"].entry.schedule)["cron"]])
version = states()["night"].version
agree(app)
seen.append(states()["night"].version == version)
with connection.cursor() as cursor:
    cursor.execute("DELETE FROM celeriac_periodictask")
app.schedules.put("stored", 60, "t")
agree(app)
seen.append(list(states()))
PeriodicTask.objects.create(name="stored", task="mine", interval=often)
seen.append(states()["stored"].entry.task)
print(json.dumps(seen))"""
    ) == [[], ["other", False, "31 2 * * *"], True, ["stored"], "t"]


def test_a_beat_sends_what_the_rows_say_and_the_rows_learn_of_it(make_site: MakeDjangoProject) -> None:
    site = make_site(CELERY_BEAT_SCHEDULER="django_celery_beat.schedulers:DatabaseScheduler", CELERY_RESULT_BACKEND="django-db")
    site.python(MODELS + "PeriodicTask.objects.create(name='often', task='books.tasks.join', interval=often, args='[[\"x\"]]')")
    site.worker("-c", "1", "-B")
    site.python(
        MODELS + "PeriodicTask.objects.create(name='just once', task='books.tasks.join', interval=often, args='[[\"y\"]]', one_off=True)"
    )
    counts = (
        MODELS + "print(json.dumps(dict(PeriodicTask.objects.filter(last_run_at__isnull=False).values_list('name', 'total_run_count'))))"
    )
    until(lambda: (found := site.python(counts)) and found.get("often", 0) >= 3 and found.get("just once") == 1, "the rows know of it")
    results = "from celeriac.django.models import TaskResult; print(json.dumps(list(TaskResult.objects.values_list('result', flat=True))))"
    until(lambda: (found := site.python(results)).count('"x"') >= 3 and '"y"' in found, "what was sent has run")
    found = site.python(
        MODELS
        + """
from celeriac.django.models import TaskResult
once = PeriodicTask.objects.get(name="just once")
line = app.schedules.history("often", limit=1)[0]
print(json.dumps([once.enabled, once.total_run_count, line.outcome, TaskResult.objects.filter(result='"y"').count()]))"""
    )
    assert found == [False, 1, "sent", 1]


def test_the_admin_checks_shows_and_runs_them(make_site: MakeDjangoProject) -> None:
    site = make_site(**WITH_ADMIN)
    assert site.python(
        BEGIN
        + MODELS
        + """
PAGE = "/admin/celeriac/periodictask/"
form = {"name": "night", "task": "books.tasks.join", "crontab": nightly.pk, "args": "[]", "kwargs": "{}", "headers": "{}", "misfire": "once", "overlap": "skip", "enabled": "on", "description": ""}
def said(**changed):
    return re.sub(r"<[^>]*>", "", page(PAGE + "add/", **{**form, **changed}))
seen = ["It is not JSON" in said(args="[1,"), "It must be a JSON object" in said(kwargs="[]"), "Choose one of" in said(interval=often.pk), "books.tasks.title" in page(PAGE + "add/")]
seen.append("was added successfully" in said())
row = PeriodicTask.objects.get()
detail, listed = page(f"{PAGE}{row.pk}/change/"), page(PAGE)
seen += ["02:30:00 +0545" in detail, "Asia/Kathmandu" in listed, "02:30" in listed]
ran = page(PAGE, action="run_now", _selected_action=[row.pk])
seen += ["1 task sent" in ran, app.broker.depth(["celery"])["celery"].ready, "by root" in page(f"{PAGE}{row.pk}/change/")]
page(PAGE, action="disable", _selected_action=[row.pk])
seen.append(states()["night"].enabled)
bad = page("/admin/celeriac/crontabschedule/add/", minute="99", hour="*", day_of_month="*", month_of_year="*", day_of_week="*", timezone="UTC")
seen.append("99" in bad and "errorlist" in bad)
seen.append("every second" in page("/admin/celeriac/intervalschedule/"))
print(json.dumps(seen))"""
    ) == [True, True, True, True, True, True, True, True, True, 1, True, False, True, True]


def test_the_tables_of_the_celery_packages_are_taken_over(site: DjangoProject) -> None:
    said = site.python(
        """
from django.db import connection
with connection.cursor() as cursor:
    for statement in '''
        CREATE TABLE django_celery_beat_crontabschedule (id INTEGER PRIMARY KEY, minute TEXT, hour TEXT, day_of_week TEXT, day_of_month TEXT, month_of_year TEXT, timezone TEXT);
        CREATE TABLE django_celery_beat_intervalschedule (id INTEGER PRIMARY KEY, every INTEGER, period TEXT);
        CREATE TABLE django_celery_beat_periodictask (id INTEGER PRIMARY KEY, name TEXT, task TEXT, args TEXT, kwargs TEXT, queue TEXT, exchange TEXT, routing_key TEXT, expires TEXT, enabled bool, last_run_at TEXT, total_run_count INTEGER, date_changed TEXT, description TEXT, crontab_id INTEGER, interval_id INTEGER, solar_id INTEGER, clocked_id INTEGER, one_off bool, start_time TEXT, priority INTEGER, headers TEXT, expire_seconds INTEGER);
        CREATE TABLE django_celery_results_taskresult (id INTEGER PRIMARY KEY, task_id TEXT, status TEXT, content_type TEXT, content_encoding TEXT, result TEXT, date_done TEXT, traceback TEXT, meta TEXT, task_args TEXT, task_kwargs TEXT, task_name TEXT, worker TEXT, date_created TEXT, periodic_task_name TEXT, date_started TEXT);
        CREATE TABLE django_celery_results_groupresult (id INTEGER PRIMARY KEY, group_id TEXT, date_created TEXT, date_done TEXT, content_type TEXT, content_encoding TEXT, result TEXT);
        INSERT INTO django_celery_beat_crontabschedule VALUES (7, '0', '4', '*', '*', '*', 'Europe/Berlin');
        INSERT INTO django_celery_beat_intervalschedule VALUES (3, 10, 'minutes');
        INSERT INTO django_celery_beat_periodictask VALUES (1, 'celery.backend_cleanup', 'celery.backend_cleanup', '[]', '{}', NULL, NULL, NULL, NULL, 1, NULL, 0, '2026-01-01', '', 7, NULL, NULL, NULL, 0, NULL, NULL, '{}', 43200);
        INSERT INTO django_celery_beat_periodictask VALUES (2, 'digest', 'shop.digest', '[1]', '{"a": 2}', 'mail', NULL, NULL, NULL, 1, '2026-01-02 03:04:05', 5, '2026-01-01', 'weekly', NULL, 3, NULL, NULL, 0, NULL, 4, '{}', NULL);
        INSERT INTO django_celery_beat_periodictask VALUES (3, 'clean', 'shop.clean', '[]', '{}', NULL, NULL, NULL, NULL, 0, NULL, 0, '2026-01-01', '', 7, NULL, NULL, NULL, 0, NULL, NULL, '{}', NULL);
        INSERT INTO django_celery_results_taskresult VALUES (1, 'one', 'SUCCESS', 'application/json', 'utf-8', '3', '2026-01-02 03:04:05', NULL, '{"children": []}', '(1, 2)', '{}', 'shop.add', 'w@h', '2026-01-02 03:04:00', NULL, NULL);
        INSERT INTO django_celery_results_groupresult VALUES (1, 'g', '2026-01-01', '2026-01-02 00:00:00', 'application/json', 'utf-8', '[["g", null], []]');
    '''.split(";"):
        if statement.strip():
            cursor.execute(statement)
print(1)"""
    )
    assert said == 1
    assert "Nothing was changed" in site.run("celeriac_import", "--dry-run")
    told = site.run("celeriac_import")
    assert "2 periodic tasks" in told and "1 results" in told
    assert "0 periodic tasks" in site.run("celeriac_import")
    rows = site.python(
        MODELS
        + """
from celeriac.django.models import GroupResult, TaskResult
digest, clean = PeriodicTask.objects.get(name="digest"), PeriodicTask.objects.get(name="clean")
one = TaskResult.objects.get(task_id="one")
print(json.dumps([str(digest.interval), digest.kwargs, digest.total_run_count, digest.priority, str(clean.crontab), clean.enabled,
    one.task_name, one.date_created.isoformat(), one.date_done.isoformat(), GroupResult.objects.get().group_id, sorted(states())]))"""
    )
    assert rows == [
        "every 10 minutes", '{"a": 2}', 5, 4, "0 4 * * * Europe/Berlin", False,
        "shop.add", "2026-01-02T03:04:00+00:00", "2026-01-02T03:04:05+00:00", "g", ["clean", "digest"],
    ]  # fmt: skip


def test_without_their_tables_the_import_says_so(site: DjangoProject) -> None:
    assert "--database" in site.run("celeriac_import", fails=True)
