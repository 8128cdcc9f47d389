"""What a worker does for Django around each task, as Django does around each request.

No connection is shared by two processes, none that the server has closed reaches a task, none is kept for longer than CONN_MAX_AGE, and no task sees the language or the time zone
of the one before it. Outside of workers, and in a test's transaction, nothing of this happens.
"""

from __future__ import annotations

import os
import select
import sys
import time
from collections.abc import Callable
from typing import Any

from ..core import events

CHECK_AFTER_SECONDS = 1.0
"""A connection is asked so often at most whether it still works, before a task uses it."""


def prepare() -> None:
    """Called once, when Django starts. The rest follows when a worker does."""
    events.worker_init.connect(_close_all, dispatch_uid="celeriac.django")
    events.worker_process_init.connect(_begin_process, dispatch_uid="celeriac.django")


def _close_all(**_: Any) -> None:
    """Before the first fork: what the imports of the project opened would otherwise be shared by all processes."""
    from django.db import connections

    connections.close_all()


def _begin_process(**_: Any) -> None:
    from django.db import connections

    if _runs_greenlets():
        # The threads in which the ORM's async methods work are greenlets of this thread, so Django takes them for the event loop itself.
        os.environ.setdefault("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
    for connection in connections.all(initialized_only=True):
        connection.connection = None  # opened since by the supervisor; closing it here would end it there
    events.task_prerun.connect(_before_task, dispatch_uid="celeriac.django")
    events.task_postrun.connect(_after_task, dispatch_uid="celeriac.django")
    events.worker_process_shutdown.connect(_close_all, dispatch_uid="celeriac.django")


def _runs_greenlets() -> bool:
    gevent, eventlet = sys.modules.get("gevent.monkey"), sys.modules.get("eventlet.patcher")
    patched = gevent is not None and gevent.is_module_patched("threading")
    return patched or (eventlet is not None and eventlet.is_monkey_patched("thread"))


def _before_task(task: Any = None, **_: Any) -> None:
    if getattr(task, "is_async", False):
        _in_thread_of_async_orm(_distrust_connections)
    _distrust_connections()


def _distrust_connections() -> None:
    """Lets Django ask the server with its next query whether a connection still works: one that has got something to say, or that nobody has asked for a while."""
    from django.db import connections

    now = time.monotonic()
    for connection in connections.all(initialized_only=True):
        if connection.connection is None or connection.in_atomic_block:
            continue
        if now - getattr(connection, "celeriac_asked_at", 0.0) >= CHECK_AFTER_SECONDS or _speaks_unasked(connection.connection):
            connection.celeriac_asked_at = now
            connection.health_check_enabled = True
            connection.health_check_done = False


def _speaks_unasked(connection: Any) -> bool:
    """True when the server has written something, its farewell most likely, though nobody waits for an answer."""
    fileno = getattr(connection, "fileno", None)  # SQLite has none
    try:
        return fileno is not None and bool(select.select([fileno()], [], [], 0)[0])
    except (OSError, ValueError):
        return True


def _after_task(task: Any = None, **_: Any) -> None:
    from django.conf import settings
    from django.db import close_old_connections, reset_queries
    from django.utils import timezone, translation

    translation.deactivate()
    timezone.deactivate()
    if settings.DEBUG:
        reset_queries()
    if getattr(task, "is_async", False):
        _in_thread_of_async_orm(close_old_connections)
    close_old_connections()


def _in_thread_of_async_orm(action: Callable[[], object]) -> None:
    """The ORM's async methods do their work in one thread, where the connections of all coroutines are; there, one thing comes after the other."""
    from asgiref.sync import SyncToAsync

    SyncToAsync.single_thread_executor.submit(action)
