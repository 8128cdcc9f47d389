"""What is sent within a transaction is published exactly when that commits: whatever is rolled back, killed, or away."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from typing import Any

import pytest

from tests.support.django_project import DjangoProject, MakeDjangoProject
from tests.support.workers import until

DEPTH = """
from celeriac import current_app as app
from celeriac.django.models import OutboxParcel
"""
STATE = "print(json.dumps([app.broker.depth(['celery'])['celery'].ready, OutboxParcel.objects.count()]))"


@pytest.fixture
def site(make_site: MakeDjangoProject) -> DjangoProject:
    return make_site()


def test_a_commit_publishes_and_a_rollback_takes_the_message_along(site: DjangoProject) -> None:
    assert site.python(
        DEPTH
        + """
from django.db import transaction
from books.tasks import title
seen = []
with transaction.atomic():
    result = title.delay(1)
    seen += [result.state, app.broker.depth(['celery'])['celery'].ready, OutboxParcel.objects.count()]
seen += [app.broker.find([result.id])[result.id].state, OutboxParcel.objects.count()]
try:
    with transaction.atomic():
        title.delay(2)
        raise ValueError
except ValueError:
    pass
with transaction.atomic():
    title.delay(3)
    try:
        with transaction.atomic():
            title.delay(4)
            raise ValueError
    except ValueError:
        pass
try:
    with transaction.atomic():
        with transaction.atomic():
            title.delay(5)
        raise ValueError
except ValueError:
    pass
title.delay(6)
sent = [w.message.argsrepr for w in app.broker.peek('celery')]
print(json.dumps([seen, sent, OutboxParcel.objects.count()]))"""
    ) == [["PENDING", 0, 1, "ready", 0], ["(1,)", "(3,)", "(6,)"], 0]


def test_a_chord_of_a_transaction_is_published_with_its_join(site: DjangoProject) -> None:
    site.worker("-c", "1")
    assert (
        site.python(
            """
from django.db import transaction
from celeriac import chord
from books.models import Book
from books.tasks import join, title
with transaction.atomic():
    books = [Book.objects.create(title=t) for t in "abc"]
    result = chord([title.s(book.pk) for book in books], join.s()).delay()
print(json.dumps(result.get(timeout=40)))"""
        )
        == "abc"
    )


def test_tasks_find_the_row_that_the_transaction_has_made(site: DjangoProject) -> None:
    site.worker("-c", "2")
    assert site.python(
        """
from django.db import transaction
from books.models import Book
from books.tasks import title
results = []
for number in range(300):
    with transaction.atomic():
        book = Book(title=str(number))
        book.save()
        results.append(title.delay(book.pk))
print(json.dumps([result.get(timeout=60) for result in results]))"""
    ) == [str(number) for number in range(300)]


def test_what_was_committed_while_the_broker_was_away_runs_when_it_is_back(redis_servers: Any, make_site: MakeDjangoProject) -> None:
    port = redis_servers.start()
    site = make_site(CELERY_BROKER_URL=f"redis://127.0.0.1:{port}/0", CELERY_BROKER_PUBLISH_TIMEOUT=1)
    site.worker("-c", "1")
    redis_servers.stop_one(port)
    took = site.python(
        """
import time
from django.db import transaction
from books.models import Book
from books.tasks import buy
book = Book.objects.create(title="Momo")
took = []
for _ in range(10):
    start = time.monotonic()
    with transaction.atomic():
        buy.delay(book.pk)
    took.append(time.monotonic() - start)
from celeriac.django.models import OutboxParcel
print(json.dumps([max(took) < 10.0, OutboxParcel.objects.count()]))"""
    )
    assert took == [True, 10]
    redis_servers.start(port=port)
    copies = "from books.models import Book; print(Book.objects.get().copies)"
    until(lambda: site.python(copies) == 10, "all ten have run")
    until(lambda: site.python(DEPTH + STATE) == [0, 0], "the outbox is empty")
    assert site.python(copies) == 10, "each of them once"


KILLED = """
import sys
from django.db import transaction
from books.models import Book
from books.tasks import buy
number = 0
while True:
    number += 1
    if number == 5:  # all is imported and connected by now
        print("up", flush=True)
    try:
        with transaction.atomic():
            book = Book.objects.create(title=f"{sys.argv[1]}-{number}")
            buy.delay(book.pk)
            if number % 3 == 0:
                raise ValueError
    except ValueError:
        pass
"""


@pytest.mark.parametrize(
    ("broker", "kills"),
    [("redis", 10), *(pytest.param(broker, kills, marks=pytest.mark.chaos) for broker, kills in (("redis", 200), ("database", 50)))],
)
@pytest.mark.timeout(900)
def test_each_committed_row_has_its_task_and_no_other_whenever_the_sender_is_killed(
    request: pytest.FixtureRequest, broker: str, kills: int
) -> None:
    dice = random.Random(5)
    url = request.getfixturevalue("redis_url") if broker == "redis" else None
    site = request.getfixturevalue("make_site")(CELERY_BROKER_URL=url)
    site.worker("-c", "2")
    prelude = "import os, json, django; os.environ.setdefault('DJANGO_SETTINGS_MODULE', 'config.settings'); django.setup()\n"
    for number in range(kills):
        sender = subprocess.Popen(
            [sys.executable, "-c", prelude + KILLED, str(number)],
            cwd=site.directory,
            env=site.environment(),
            stdout=subprocess.PIPE,
        )
        assert sender.stdout is not None and sender.stdout.readline() == b"up\n"
        time.sleep(dice.random() * 0.1)  # the random moment
        os.kill(sender.pid, signal.SIGKILL)
        sender.wait()
        sender.stdout.close()
    bought = """
from books.models import Book
from celeriac.django.models import OutboxParcel
print(json.dumps([Book.objects.count(), Book.objects.filter(copies=0).count(), Book.objects.filter(copies__gt=1).count(), OutboxParcel.objects.count()]))"""
    until(lambda: site.python(bought)[1::2] == [0, 0], "each row has its task")
    books, _, twice, _ = site.python(bought)
    assert books > kills and twice == 0
    failed = site.python(DEPTH + "print(json.dumps([w.reason for w in app.broker.peek('celery', state='dead')]))")
    assert failed == [], "no task of a row that was rolled back"
    assert "DoesNotExist" not in site.log()


def test_tests_see_tasks_when_they_capture_what_is_called_on_commit(site: DjangoProject) -> None:
    (site.directory / "books" / "tests.py").write_text(
        """
from celeriac import current_app as app
from celeriac.worker.inline import InlineWorker
from django.db import transaction
from django.test import TestCase
from books.models import Book
from books.tasks import buy, title


class Sending(TestCase):
    def test_on_commit(self):
        with self.captureOnCommitCallbacks(execute=True):
            title.delay(1)
            self.assertEqual(app.broker.depth(["celery"])["celery"].ready, 0)
        self.assertEqual(app.broker.depth(["celery"])["celery"].ready, 1)

    def test_with_a_worker_of_the_testing_kit(self):
        book = Book.objects.create(title="Momo")
        with InlineWorker(app) as worker:
            try:
                with transaction.atomic():
                    buy.delay(book.pk)
                    raise ValueError
            except ValueError:
                pass
            worker.assert_not_enqueued(buy)
            with transaction.atomic():
                buy.delay(book.pk)
            worker.assert_enqueued(buy, args=(book.pk,))
            worker.run_all()
        book.refresh_from_db()
        self.assertEqual(book.copies, 1)

    def test_without(self):
        title.delay(1)
        app.broker.purge(["celery"])
"""
    )
    assert "OK" in site.run("test", "books")


def test_without_the_table_the_error_says_what_to_do(make_site: MakeDjangoProject) -> None:
    site = make_site(migrated=False)
    site.run("migrate", "books", "-v", "0")
    said = site.python(
        """
from django.db import transaction
from books.models import Book
from books.tasks import title
try:
    with transaction.atomic():
        title.delay(1)
except Exception as error:
    said = str(error)
from celeriac import current_app as app
app.close()
print(json.dumps(said))"""
    )
    assert "manage.py migrate" in said
    without = make_site(migrated=False, CELERY_TASK_OUTBOX=False)
    without.run("migrate", "books", "-v", "0")
    assert (
        without.python(
            """
from django.db import transaction
from books.tasks import title
with transaction.atomic():
    title.delay(1)
    from celeriac import current_app as app
    print(app.broker.depth(['celery'])['celery'].ready)"""
        )
        == 1
    )
