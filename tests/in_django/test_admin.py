"""The admin's pages of results."""

from __future__ import annotations

import pytest

from tests.support.django_project import DjangoProject, MakeDjangoProject

WITH_ADMIN = {
    "INSTALLED_APPS": [
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.sessions",
        "django.contrib.messages",
        "django.contrib.staticfiles",
        "celeriac.django",
        "books",
    ],
    "MIDDLEWARE": [
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    "TEMPLATES": [
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ],
    "STATIC_URL": "/static/",
    "CELERY_RESULT_BACKEND": "django-db",
}
BEGIN = """
import re
from django.contrib.auth.models import User
from django.test import Client
from celeriac import current_app as app, group
from celeriac.django.models import GroupResult, TaskResult
from books.models import Book
from books.tasks import join, title
client = Client(raise_request_exception=True)
client.force_login(User.objects.get_or_create(username="root", is_staff=True, is_superuser=True)[0])
def page(path, **form):
    response = client.post(path, form, follow=True) if form else client.get(path)
    assert response.status_code == 200, (path, response.status_code)
    return re.sub(r"\\s+", " ", response.content.decode())
LIST = "/admin/celeriac/taskresult/"
"""


@pytest.fixture
def site(make_site: MakeDjangoProject) -> DjangoProject:
    return make_site(**WITH_ADMIN)


def test_results_are_listed_filtered_searched_and_shown_whole(site: DjangoProject) -> None:
    site.worker("-c", "1")
    assert (
        site.python(
            BEGIN
            + """
book = Book.objects.create(title="<Momo>")
done, failed = title.delay(book.pk), title.delay(-1)
done.get(timeout=40); failed.get(timeout=40, propagate=False)
row = TaskResult.objects.get(task_id=done.id)
bad = TaskResult.objects.get(task_id=failed.id)
all, failures, found, day = page(LIST), page(LIST + "?status__exact=FAILURE"), page(LIST + "?q=" + done.id), page(LIST + f"?date_done__year={row.date_done.year}")
detail, trouble = page(f"{LIST}{row.pk}/change/"), page(f"{LIST}{bad.pk}/change/")
group(title.s(book.pk)).delay().save()
print(json.dumps([
    done.id in all and failed.id in all and "DoesNotExist" in all and "&lt;Momo&gt;" in all and "<Momo>" not in all,
    failed.id in failures and done.id not in failures,
    done.id in found and failed.id not in found,
    done.id in day,
    "&lt;Momo&gt;" in detail and "SUCCESS" in detail and row.worker in detail and "runtime" not in detail,
    "Traceback (most recent call last)" in trouble and "Book matching query does not exist" in trouble,
    "_save" not in detail,
    GroupResult.objects.get().group_id in page("/admin/celeriac/groupresult/")]))"""
        )
        == [True] * 8
    )


def test_tasks_are_run_again_revoked_and_deleted_from_the_list(site: DjangoProject) -> None:
    site.worker("-c", "1")
    assert site.python(
        BEGIN
        + """
book = Book.objects.create(title="Momo")
first, second = title.delay(book.pk), join.delay(["x" * 3000])
first.get(timeout=40); second.get(timeout=40)
def act(action, *results):
    return page(LIST, action=action, _selected_action=[TaskResult.objects.get(task_id=r.id).pk for r in results], post="yes")
again = act("retry", first, second)
import time
deadline = time.monotonic() + 40
while TaskResult.objects.filter(task_name="books.tasks.title", status="SUCCESS").count() < 2 and time.monotonic() < deadline:
    time.sleep(0.02)
twice = TaskResult.objects.filter(task_name="books.tasks.title", status="SUCCESS").count()
app.broker.pause(["celery"], by="the test")
waiting = title.delay(book.pk)
app.backend.store([__import__("celeriac").core.message.Record(task_id=waiting.id, status="PENDING", name="books.tasks.title")])
revoked = act("revoke", waiting)
gone = app.broker.find([waiting.id])
act("delete_selected", first)
print(json.dumps(["1 task runs again." in again, "cannot be sent again" in again and second.id in again, twice,
    "1 task is revoked." in revoked, list(gone), waiting.state, TaskResult.objects.filter(task_id=first.id).count()]))"""
    ) == [True, True, 2, True, [], "REVOKED", 0]
