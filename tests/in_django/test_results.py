"""Results in the project's database and cache."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.django_project import DjangoProject, MakeDjangoProject, close_all

FULL = """
from datetime import UTC, datetime
from msgspec import Raw
from celeriac import current_app as app
from celeriac.core.message import Attempt, Record
full = Record(task_id="é", status="FAILURE", result=Raw(b'{"exc_type":"ValueError","exc_message":["x",123456789012345678901234567890],"exc_module":"builtins"}'),
    traceback="Traceback é", date_done=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC), children=[[["child", None], None]], name="t.é",
    args="('é',)", kwargs="{}", worker="celeriac@é", queue="q", retries=3, root_id="root", parent_id="parent", group_id="group",
    attempts=[Attempt(worker="w", started_at=datetime(2026, 1, 1, tzinfo=UTC), runtime_seconds=0.5, state="RETRY", error="é")])
backend = app.backend
"""


@pytest.fixture(params=["django-db", "django-db on PostgreSQL", "django-cache"])
def site(request: pytest.FixtureRequest, make_site: MakeDjangoProject) -> DjangoProject:
    name = request.param.partition(" ")[0]
    settings = {"CELERY_RESULT_BACKEND": name, "CELERY_CACHE_BACKEND": "default"}
    if "PostgreSQL" in request.param:
        settings["DATABASES"] = {"default": request.getfixturevalue("postgresql_database")}
    if name == "django-cache":
        settings["CACHES"] = {"default": {"BACKEND": "django.core.cache.backends.filebased.FileBasedCache", "LOCATION": "cache"}}
    return make_site(**settings)


def test_records_come_back_whole_and_an_end_stays_the_end(site: DjangoProject) -> None:
    assert site.python(
        FULL
        + """
from msgspec.structs import replace
seen = [backend.store([full]), backend.fetch(["é", "nothing"]) == {"é": full}]
started = replace(full, status="STARTED", date_done=None, attempts=[])
seen += [backend.store([started, replace(started, task_id="b")]), backend.fetch(["é"])["é"].status, backend.fetch(["b"])["b"].status]
seen += [backend.store([replace(full, task_id="b", result=Raw(b'"' + b"x" * 3_000_000 + b'"'))]), len(backend.fetch(["b"])["b"].result)]
strange = ["a/b", "'; --", "%_*", "line break", "x" * 250]
backend.store([replace(full, task_id=id) for id in strange])
seen += [sorted(backend.fetch(strange)) == sorted(strange)]
backend.forget(["é"])
seen += [list(backend.fetch(["é"]))]
print(json.dumps(seen))"""
    ) == [[], True, ["é"], "FAILURE", "STARTED", [], 3_000_002, True, []]


def test_tasks_write_their_results_there_and_get_waits_for_them(site: DjangoProject) -> None:
    site.worker("-c", "1")
    assert site.python(
        """
import asyncio
from celeriac import chord, group
from celeriac.result import GroupResult
from books.models import Book
from books.tasks import buy, join, title
book = Book.objects.create(title="Momo")
failing = title.delay(-1)
waiting = title.delay(book.pk)
seen = [waiting.get(timeout=40), failing.get(timeout=40, propagate=False).__class__.__name__, waiting.successful(), failing.failed()]
async def wait():
    return await title.delay(book.pk).aget(timeout=40)
seen.append(asyncio.run(wait()))
seen.append(chord([title.s(book.pk)] * 3, join.s()).delay().get(timeout=40))
saved = group(title.s(book.pk), title.s(book.pk)).delay()
saved.save()
seen.append(GroupResult.restore(saved.id).get(timeout=40))
print(json.dumps(seen))"""
    ) == ["Momo", "DoesNotExist", True, True, "Momo", "MomoMomoMomo", ["Momo", "Momo"]]


def test_a_worker_goes_on_when_the_database_of_its_results_was_away(
    make_site: MakeDjangoProject, postgresql_database: dict[str, Any]
) -> None:
    database = {**postgresql_database, "CONN_MAX_AGE": None}
    site = make_site(DATABASES={"default": database}, CELERY_RESULT_BACKEND="django-db")
    site.worker("-c", "1")
    send = """
from books.tasks import join
print(json.dumps([join.delay([str(number)]).get(timeout=40) for number in range(5)]))"""
    numbers = ["0", "1", "2", "3", "4"]
    assert site.python(send) == numbers
    close_all(database)
    assert site.python(send) == numbers


def test_old_results_are_pruned_by_workers(make_site: MakeDjangoProject) -> None:
    site = make_site(CELERY_RESULT_BACKEND="django-db", CELERY_RESULT_EXPIRES=3600)
    assert site.python(
        """
from datetime import timedelta
from django.utils import timezone
from celeriac import current_app as app
from celeriac.django.models import GroupResult, TaskResult
now = timezone.now()
for number, age in enumerate([0, 10, 3500, 3700, 90000]):
    TaskResult.objects.create(task_id=str(number), stored_at=now - timedelta(seconds=age))
GroupResult.objects.create(group_id="g", date_done=now - timedelta(days=2))
seen = [app.backend.prune(2), app.backend.prune(10), app.backend.prune(10)]
print(json.dumps([seen, sorted(TaskResult.objects.values_list("task_id", flat=True)), GroupResult.objects.count()]))"""
    ) == [[2, 1, 0], ["0", "1", "2"], 0]


def test_without_the_line_in_installed_apps_the_error_says_what_to_do(make_site: MakeDjangoProject) -> None:
    assert "INSTALLED_APPS" in make_site(migrated=False).python(
        """
from celeriac import Celeriac
try:
    Celeriac("other", broker="memory://", backend="django-db").backend
except Exception as error:
    print(json.dumps(str(error)))"""
    )
