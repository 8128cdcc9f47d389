"""`django://ALIAS`: messages in Django's own database commit, and roll back, with the data they are about."""

from __future__ import annotations

import sqlite3
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from msgspec import Raw

from celeriac.core.message import Message
from celeriac.engines.sqlite import SQLiteEngine
from tests.support.django_project import DjangoProject, MakeDjangoProject, administer
from tests.support.workers import until

COUNT = """
from celeriac import current_app as app
from celeriac.django.models import OutboxParcel
def count():
    return [app.broker.depth(["celery"])["celery"].ready, OutboxParcel.objects.count()]
"""


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest) -> dict[str, Any]:
    """Settings: no broker is named."""
    if request.param == "sqlite":
        return {"CELERY_BROKER_URL": None}
    return {"CELERY_BROKER_URL": None, "DATABASES": {"default": request.getfixturevalue("postgresql_database")}}


@pytest.fixture
def site(database: dict[str, Any], make_site: MakeDjangoProject) -> DjangoProject:
    return make_site(**database)


def test_without_a_broker_url_messages_are_part_of_the_transaction(site: DjangoProject) -> None:
    assert site.python(
        COUNT
        + """
from django.db import transaction
from books.tasks import title, join
from celeriac import chord
with transaction.atomic():
    first = title.delay(1)
seen = [app.broker.url, app.broker.find([first.id])[first.id].state, count()]
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
            chord([title.s(4)], join.s()).delay()
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
print(json.dumps([seen, [w.message.argsrepr for w in app.broker.peek("celery")], count()]))"""
    ) == [["django://default", "ready", [1, 0]], ["(1,)", "(3,)", "(6,)"], [3, 0]]


def test_a_request_that_holds_the_database_may_look_revoke_and_send_workflows(site: DjangoProject) -> None:
    """In SQLite the transaction is the only one that can write: nothing of ours may wait for it to end."""
    site.worker("-c", "1")
    assert site.python(
        """
import time
from django.db import transaction
from celeriac import chord
from books.models import Book
from books.tasks import join, title
earlier = title.apply_async((1,), countdown=1000)
started = time.monotonic()
with transaction.atomic():
    books = [Book.objects.create(title=t) for t in "abc"]
    result = chord([title.s(book.pk) for book in books], join.s()).delay()
    earlier.revoke()
    seen = [result.state]
took = time.monotonic() - started
print(json.dumps([seen, result.get(timeout=40), earlier.state, took < 5]))"""
    ) == [["PENDING"], "abc", "REVOKED", True]


@pytest.mark.parametrize("broker", ["database", pytest.param("redis", marks=pytest.mark.chaos)])
@pytest.mark.parametrize("tasks", [100, pytest.param(1000, marks=pytest.mark.chaos)])
def test_no_task_misses_the_row_that_its_transaction_made(
    database: dict[str, Any], request: pytest.FixtureRequest, broker: str, tasks: int
) -> None:
    """With Redis, through the outbox."""
    if broker == "redis":
        database = {**database, "CELERY_BROKER_URL": request.getfixturevalue("redis_url")}
    site = request.getfixturevalue("make_site")(**database)
    site.worker("-c", "2")
    assert (
        site.python(
            f"""
from django.db import transaction
from books.models import Book
from books.tasks import title
results = []
for number in range({tasks}):
    with transaction.atomic():
        book = Book(title=str(number))
        book.save()
        results.append(title.delay(book.pk))
print(sum(result.get(timeout=60) == str(number) for number, result in enumerate(results)))"""
        )
        == tasks
    )


TESTS = """
from celeriac import current_app as app
from django.db import connection, transaction
from django.test import TestCase, TransactionTestCase
from books.tasks import title


def waiting():
    return app.broker.depth(["celery"])["celery"].ready


class Rolled(TestCase):
    def test_sending(self):
        title.delay(1)
        if connection.vendor == "sqlite":
            self.assertEqual(waiting(), 1)  # we are in its transaction

    def test_sending_again(self):
        self.assertEqual(waiting(), 0)
        with self.captureOnCommitCallbacks(execute=True):
            title.delay(1)


class Committed(TransactionTestCase):
    def test_sending(self):
        with transaction.atomic():
            title.delay(1)
        title.delay(2)
        self.assertEqual(waiting(), 2)
        self.assertEqual(app.broker.purge(["celery"]), 2)
"""


def test_tests_have_a_queue_in_their_own_database(site: DjangoProject) -> None:
    """In SQLite that is one in memory. Afterwards it can be dropped."""
    (site.directory / "books" / "tests.py").write_text(TESTS)
    site.python("from books.tasks import title; title.delay(7)")
    assert "OK" in site.run("test", "books", "--noinput")
    assert site.python(COUNT + "print(json.dumps(count()))") == [1, 0], "the tests saw nothing of it, and left it alone"


def test_a_database_that_cannot_hold_messages_is_refused_with_what_to_do(make_site: MakeDjangoProject) -> None:
    site = make_site(
        migrated=False,
        DATABASES={"default": {"ENGINE": "sqlother", "NAME": "x"}},
        CELERY_BROKER_URL=None,
        INSTALLED_APPS=["celeriac.django"],
    )
    (site.directory / "sqlother").mkdir()
    (site.directory / "sqlother" / "__init__.py").touch()
    (site.directory / "sqlother" / "base.py").write_text(
        "from django.db.backends.dummy.base import DatabaseWrapper as Dummy\n\n\nclass DatabaseWrapper(Dummy):\n    vendor = 'mysql'\n"
    )
    found = site.run("check", fails=True)
    assert "celeriac.E002" in found and "'default' is mysql" in found and "CELERY_BROKER_URL" in found
    said = site.python(
        "from celeriac import current_app as app\ntry:\n    app.send_task('x')\nexcept Exception as error:\n    print(json.dumps(str(error)))"
    )
    assert "'default' is mysql" in said
    other = make_site(migrated=False, CELERY_BROKER_URL="django://elsewhere")
    assert "DATABASES has no entry 'elsewhere'" in other.run("check", fails=True)


@pytest.fixture
def behind_pgbouncer(postgresql_database: dict[str, Any], homes: Any) -> Iterator[dict[str, Any]]:
    """The same database, through PgBouncer in transaction mode."""
    from tests.support.postgresql import Bouncer, bouncer_program, missing

    if bouncer_program() is None:
        missing("PgBouncer is not installed (apt-get install pgbouncer)")
    with tempfile.TemporaryDirectory() as directory:
        Path(directory).chmod(0o755)
        bouncer = Bouncer(Path(directory), str(homes["postgresql"].url))
        bouncer.start()
        yield {**postgresql_database, "HOST": "127.0.0.1", "PORT": str(bouncer.port)}
        bouncer.stop()


def test_behind_a_pooler_nobody_listens(behind_pgbouncer: dict[str, Any], make_site: MakeDjangoProject) -> None:
    unsaid = make_site(migrated=False, CELERY_BROKER_URL=None, DATABASES={"default": behind_pgbouncer})
    assert "celeriac.W001" in unsaid.run("check", "--database", "default")
    site = make_site(CELERY_BROKER_URL=None, DATABASES={"default": {**behind_pgbouncer, "DISABLE_SERVER_SIDE_CURSORS": True}})
    assert "celeriac.W001" not in site.run("check", "--database", "default")
    site.worker("-c", "2")
    assert site.python(
        """
from django.db import transaction
from books.models import Book
from books.tasks import title
results = []
for number in range(50):
    with transaction.atomic():
        results.append(title.delay(Book.objects.create(title=str(number)).pk))
results.append(title.delay(Book.objects.create(title="50").pk))
print(json.dumps([result.get(timeout=40) for result in results]))"""
    ) == [str(number) for number in range(51)]


@pytest.mark.chaos
@pytest.mark.timeout(300)
def test_after_a_restart_of_the_server_the_next_task_works(postgresql_server: Any, make_site: MakeDjangoProject) -> None:
    server = postgresql_server
    database = {"ENGINE": "django.db.backends.postgresql", "NAME": "postgres", "USER": "celeriac", "HOST": "127.0.0.1", "PORT": server.port}
    site = make_site(CELERY_BROKER_URL=None, DATABASES={"default": {**database, "CONN_MAX_AGE": None}})
    site.worker("-c", "2")
    send = """
from books.models import Book
from books.tasks import title
results = [title.delay(Book.objects.create(title="Momo").pk) for _ in range(20)]
print(json.dumps([result.get(timeout=60) for result in results]))"""
    for _ in range(3):
        assert site.python(send) == ["Momo"] * 20
        server.stop()
        server.start()
    assert site.python(send) == ["Momo"] * 20
    assert "OperationalError" not in site.log(), "no task met a connection that was gone"


@pytest.mark.chaos
@pytest.mark.timeout(600)
def test_ten_thousand_tasks_leave_the_number_of_connections_where_it_was(
    postgresql_database: dict[str, Any], make_site: MakeDjangoProject
) -> None:
    site = make_site(CELERY_BROKER_URL=None, DATABASES={"default": {**postgresql_database, "CONN_MAX_AGE": 60}})
    site.worker("-c", "2")
    run = """
from books.models import Book
from books.tasks import buy
book = Book.objects.create(title="Momo")
results = [buy.delay(book.pk) for _ in range({count})]
for result in results: result.get(timeout=90)
book.refresh_from_db()
print(book.copies)"""

    def connections() -> int:
        return int(administer(postgresql_database, "SELECT count(*) FROM pg_stat_activity WHERE datname = %s")[0][0])

    assert site.python(run.format(count=100)) == 100
    before = connections()
    assert site.python(run.format(count=10_000)) == 10_000
    until(lambda: connections() <= before, "as many as before")


def test_sqlite_tables_with_a_prefix_live_beside_those_of_others(tmp_path: Path) -> None:
    path = tmp_path / "theirs.db"
    with sqlite3.connect(path) as theirs:
        theirs.execute("CREATE TABLE messages (text)")
        theirs.execute("PRAGMA user_version = 77")
    engine = SQLiteEngine(f"sqlite:///{path}?prefix=ours_")
    engine.publish([Message(id="1", task="t", queue="q", body=Raw(b"[[],{},{}]"))])
    again = SQLiteEngine(f"sqlite:///{path}?prefix=ours_")
    assert again.depth(["q"])["q"].ready == 1
    engine.close(), again.close()
    assert theirs.execute("SELECT count(*) FROM messages").fetchone() == (0,)
    assert theirs.execute("PRAGMA user_version").fetchone() == (77,)
    theirs.close()
