"""Results in the project's database (`django-db`) and in its cache (`django-cache`).

Whoever waits for a result looks again and again, the pauses growing to a quarter of a second: neither has a way to tell. Where results are waited for in views, keep them with the messages instead.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime, timedelta
from functools import wraps
from hashlib import sha256
from typing import TYPE_CHECKING, Any, TypeVar

import msgspec
from msgspec import Raw

from ..core import states
from ..core.errors import EngineUnavailable
from ..core.message import Attempt, Lease, Record

if TYPE_CHECKING:
    from ..app import Celeriac

FIRST_PAUSE_SECONDS = 0.005
LONGEST_PAUSE_SECONDS = 0.25
GROUP = "celery.group"

R = TypeVar("R")

_encode = msgspec.json.Encoder().encode


@contextmanager
def _database(alias: str | None) -> Iterator[None]:
    """Trouble with the database is EngineUnavailable; the next call gets a connection that works."""
    from django.db import DEFAULT_DB_ALIAS, InterfaceError, OperationalError, connections

    try:
        yield
    except (OperationalError, InterfaceError) as problem:
        connections[alias or DEFAULT_DB_ALIAS].close_if_unusable_or_obsolete()
        raise EngineUnavailable(f"The database of the results cannot be used: {problem}") from problem


def _in_database(method: Callable[..., R]) -> Callable[..., R]:
    @wraps(method)
    def call(self: DatabaseResults, *args: Any, **kwargs: Any) -> R:
        with _database(self._alias):
            return method(self, *args, **kwargs)

    return call


class DatabaseResults:
    """`CELERY_RESULT_BACKEND = "django-db"`: a row of `TaskResult` for each task, of `GroupResult` for each saved group."""

    url = "django-db"

    def __init__(self, expires_seconds: float | None, *, alias: str | None = None) -> None:
        self._expires_seconds = expires_seconds
        self._alias = alias

    @_in_database
    def store(self, records: Sequence[Record], *, lease: Lease | None = None) -> list[str]:
        from django.db import transaction
        from django.utils import timezone

        from .models import GroupResult, TaskResult

        latest = {record.task_id: record for record in records}
        now = timezone.now()
        groups = [record for record in latest.values() if record.name == GROUP]
        tasks = [record for record in latest.values() if record.name != GROUP]
        refused: list[str] = []
        with transaction.atomic(using=self._alias):
            if groups:
                GroupResult.objects.using(self._alias).bulk_create(
                    [GroupResult(group_id=group.task_id, result=bytes(group.result).decode(), date_done=now) for group in groups],
                    update_conflicts=True,
                    unique_fields=["group_id"],
                    update_fields=["result", "date_done"],
                )
            unready = [record.task_id for record in tasks if record.status not in states.READY_STATES]
            if unready:
                ended = TaskResult.objects.using(self._alias).filter(task_id__in=unready, status__in=states.READY_STATES)
                refused = list(ended.select_for_update().values_list("task_id", flat=True))
                tasks = [record for record in tasks if record.task_id not in refused]
            if tasks:
                TaskResult.objects.using(self._alias).bulk_create(
                    [_row(record, now) for record in tasks], update_conflicts=True, unique_fields=["task_id"], update_fields=_COLUMNS
                )
        return refused

    @_in_database
    def fetch(self, ids: Sequence[str]) -> dict[str, Record]:
        from .models import GroupResult, TaskResult

        found = {row.task_id: _record(row) for row in TaskResult.objects.using(self._alias).filter(task_id__in=ids)}
        for group in GroupResult.objects.using(self._alias).filter(group_id__in=[id for id in ids if id not in found]):
            found[group.group_id] = Record(
                task_id=group.group_id,
                status=states.SUCCESS,
                result=Raw((group.result or "null").encode()),
                name=GROUP,
                date_done=group.date_done,
            )
        return found

    @_in_database
    def forget(self, ids: Sequence[str]) -> None:
        from .models import GroupResult, TaskResult

        TaskResult.objects.using(self._alias).filter(task_id__in=ids).delete()
        GroupResult.objects.using(self._alias).filter(group_id__in=ids).delete()

    def subscribe(self, ids: Sequence[str]) -> Looking:
        return Looking(lambda: self._versions(ids))

    @_in_database
    def prune(self, limit: int = 1000) -> int:
        from django.utils import timezone

        from .models import GroupResult, TaskResult

        if self._expires_seconds is None:
            return 0
        before = timezone.now() - timedelta(seconds=self._expires_seconds)
        removed = 0
        for model, field in ((TaskResult, "stored_at"), (GroupResult, "date_done")):
            rows = model.objects.using(self._alias).filter(**{f"{field}__lt": before})
            keys = list(rows.order_by(field).values_list("pk", flat=True)[: limit - removed])
            removed += model.objects.using(self._alias).filter(pk__in=keys).delete()[0]
        return removed

    def close(self) -> None:
        """The connection is Django's."""

    @_in_database
    def _versions(self, ids: Sequence[str]) -> Any:
        from .models import TaskResult

        return set(TaskResult.objects.using(self._alias).filter(task_id__in=ids).values_list("task_id", "stored_at"))


class CacheResults:
    """`CELERY_RESULT_BACKEND = "django-cache"`: in the cache that `CELERY_CACHE_BACKEND` names."""

    url = "django-cache"

    def __init__(self, expires_seconds: float | None, *, alias: str = "default") -> None:
        self._expires_seconds = expires_seconds
        self._alias = alias

    def _ask(self, verb: str, *arguments: Any, **options: Any) -> Any:
        from django.core.cache import caches

        try:
            return getattr(caches[self._alias], verb)(*arguments, **options)
        except Exception as problem:  # each cache has errors of its own
            raise EngineUnavailable(f"The cache {self._alias!r} cannot be used for results: {problem}") from problem

    def store(self, records: Sequence[Record], *, lease: Lease | None = None) -> list[str]:
        unready = [record.task_id for record in records if record.status not in states.READY_STATES]
        ended = {id for id, record in self.fetch(unready).items() if record.status in states.READY_STATES} if unready else set()
        kept = {_key(record.task_id): _encode(record) for record in records if record.task_id not in ended or record.task_id not in unready}
        if kept:
            self._ask("set_many", kept, timeout=self._expires_seconds)
        return [id for id in unready if id in ended]

    def fetch(self, ids: Sequence[str]) -> dict[str, Record]:
        found = self._ask("get_many", [_key(id) for id in ids])
        records = (msgspec.json.decode(content, type=Record) for content in found.values())
        return {record.task_id: record for record in records}

    def forget(self, ids: Sequence[str]) -> None:
        self._ask("delete_many", [_key(id) for id in ids])

    def subscribe(self, ids: Sequence[str]) -> Looking:
        return Looking(lambda: self._ask("get_many", [_key(id) for id in ids]))

    def prune(self, limit: int = 1000) -> int:
        return 0  # the cache does it

    def close(self) -> None:
        """The cache is Django's."""


class Looking:
    """A wait for results by looking whether something has changed."""

    def __init__(self, look: Callable[[], Any]) -> None:
        self._look = look
        self._seen = look()
        self._pause_seconds = FIRST_PAUSE_SECONDS
        self._closed = threading.Event()
        self._pipe: tuple[int, int] | None = None
        self._ticking: threading.Thread | None = None

    def fileno(self) -> int:
        """Of a pipe that becomes readable when it is time to look again; for event loops."""
        if self._pipe is None:
            self._pipe = os.pipe()
            for descriptor in self._pipe:
                os.set_blocking(descriptor, False)
            self._ticking = threading.Thread(target=self._tick, name="celeriac-look", daemon=True)
            self._ticking.start()
        return self._pipe[0]

    def changed(self, timeout_seconds: float = 0.0) -> bool:
        deadline = time.monotonic() + timeout_seconds
        while True:
            if self._pipe is not None:
                with suppress(BlockingIOError):
                    os.read(self._pipe[0], 4096)
            now = self._look()
            if now != self._seen:
                self._seen, self._pause_seconds = now, FIRST_PAUSE_SECONDS
                return True
            left = deadline - time.monotonic()
            if left <= 0 or self._closed.wait(min(left, self._pause_seconds)):
                return False
            self._pause_seconds = min(LONGEST_PAUSE_SECONDS, self._pause_seconds * 1.5)

    def close(self) -> None:
        self._closed.set()
        if self._ticking is not None:
            self._ticking.join()
        pipe, self._pipe, self._ticking = self._pipe, None, None
        for descriptor in pipe or ():
            os.close(descriptor)

    def _tick(self) -> None:
        assert self._pipe is not None
        while not self._closed.wait(self._pause_seconds):
            self._pause_seconds = min(LONGEST_PAUSE_SECONDS, self._pause_seconds * 1.5)
            with suppress(BlockingIOError):
                os.write(self._pipe[1], b"!")


_COLUMNS = [
    "task_name", "task_args", "task_kwargs", "status", "worker", "queue", "result", "traceback", "meta", "retries", "attempts",
    "root_id", "parent_id", "group_id", "date_started", "date_done", "stored_at",
]  # fmt: skip


def _row(record: Record, now: datetime) -> Any:
    from .models import TaskResult

    return TaskResult(
        task_id=record.task_id,
        task_name=record.name,
        task_args=_clean(record.args),
        task_kwargs=_clean(record.kwargs),
        status=record.status,
        worker=record.worker,
        queue=record.queue,
        result=bytes(record.result).decode(),
        traceback=_clean(record.traceback),
        meta=_encode({"children": record.children}).decode(),
        retries=record.retries,
        attempts=_encode(record.attempts).decode(),
        root_id=record.root_id,
        parent_id=record.parent_id,
        group_id=record.group_id,
        date_started=record.attempts[0].started_at if record.attempts else (now if record.status == states.STARTED else None),
        date_done=record.date_done,
        stored_at=now,
    )


def _record(row: Any) -> Record:
    return Record(
        task_id=row.task_id,
        status=row.status,
        result=Raw((row.result or "null").encode()),
        traceback=row.traceback,
        date_done=row.date_done,
        children=msgspec.json.decode(row.meta or "{}").get("children") or [],
        name=row.task_name,
        args=row.task_args,
        kwargs=row.task_kwargs,
        worker=row.worker,
        queue=row.queue,
        retries=row.retries,
        root_id=row.root_id,
        parent_id=row.parent_id,
        group_id=row.group_id,
        attempts=msgspec.json.decode(row.attempts or "[]", type=list[Attempt]),
    )


def _clean(text: str | None) -> str | None:
    """PostgreSQL keeps no NUL in a text."""
    return text.replace("\0", "\\x00") if text and "\0" in text else text


def _key(id: str) -> str:
    """Caches take neither spaces nor long keys."""
    plain = id if len(id) <= 100 and id.isascii() and id.isprintable() and " " not in id else sha256(id.encode()).hexdigest()
    return f"celery-task-meta-{plain}"


def install(app: Celeriac) -> None:
    """`result_backend` may name these from now on."""
    app.result_backends["django-db"] = lambda settings: DatabaseResults(settings.result_expires)
    app.result_backends["django-cache"] = lambda settings: CacheResults(settings.result_expires, alias=_alias(settings.cache_backend))


def _alias(cache: str | None) -> str:
    """`django-cache`, as some tutorials write, is the default one."""
    return "default" if cache in (None, "django-cache") else str(cache)
