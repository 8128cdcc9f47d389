"""Stale connections never reach a task, none leaks, processes share none."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.django_project import MakeDjangoProject, administer, close_all
from tests.support.workers import until

POOLS = [["-P", "prefork", "-c", "2"], ["-P", "threads", "-c", "3"], ["-P", "asyncio", "-c", "5"]]


def connections_to(database: dict[str, Any]) -> int:
    return int(administer(database, "SELECT count(*) FROM pg_stat_activity WHERE datname = %s")[0][0])


@pytest.mark.parametrize(("arguments", "task"), [*((pool, "title") for pool in POOLS), (POOLS[0], "atitle"), (POOLS[2], "atitle")])
def test_after_the_database_went_away_the_next_task_works(
    make_site: MakeDjangoProject, postgresql_database: dict[str, Any], arguments: list[str], task: str
) -> None:
    """Connections are kept for ever here (CONN_MAX_AGE=None), and the server closes them all between two tasks."""
    site = make_site(DATABASES={"default": {**postgresql_database, "CONN_MAX_AGE": None}})
    site.worker(*arguments)
    send = f"""
from books.models import Book
from books.tasks import {task}
book = Book.objects.create(title="Momo")
results = [{task}.delay(book.pk) for _ in range(20)]
print(json.dumps([result.get(timeout=40) for result in results]))
"""
    assert site.python(send) == ["Momo"] * 20
    assert close_all(postgresql_database)
    assert site.python(send) == ["Momo"] * 20


@pytest.mark.parametrize(("arguments", "age"), [*((pool, 0) for pool in POOLS), (POOLS[0], None), (POOLS[1], None)])
def test_many_tasks_leave_as_many_connections_as_there_were(
    make_site: MakeDjangoProject, postgresql_database: dict[str, Any], arguments: list[str], age: int | None
) -> None:
    site = make_site(DATABASES={"default": {**postgresql_database, "CONN_MAX_AGE": age}})
    site.worker(*arguments)
    run = """
from books.models import Book
from books.tasks import buy
book = Book.objects.create(title="Momo")
results = [buy.delay(book.pk) for _ in range({count})]
for result in results: result.get(timeout=60)
book.refresh_from_db()
print(book.copies)
"""
    assert site.python(run.format(count=20)) == 20
    assert site.python(run.format(count=1000)) == 1000
    # The server may still be at the end of a client that is gone, and an outbox looked after.
    until(lambda: connections_to(postgresql_database) <= int(arguments[-1]), "as many as there are places")
    if age == 0:
        until(lambda: connections_to(postgresql_database) == 0, "each task closed its connection")


def test_forked_processes_share_no_connection(make_site: MakeDjangoProject, postgresql_database: dict[str, Any]) -> None:
    """Also when the project's own import of tasks asked the database something."""
    site = make_site(DATABASES={"default": {**postgresql_database, "CONN_MAX_AGE": None}})
    with (site.directory / "books" / "tasks.py").open("a") as file:
        file.write("\n\nBook.objects.count()\n")
    site.worker("-c", "2")
    pids = site.python(
        "from books.tasks import backend_pid, buy\n"
        "results = [(backend_pid.delay(), buy.delay(1)) for _ in range(200)]\n"
        "print(json.dumps([(a.get(timeout=40), b.get(timeout=40)) for a, b in results]))"
    )
    assert len({backend for backend, _ in pids}) <= 2
