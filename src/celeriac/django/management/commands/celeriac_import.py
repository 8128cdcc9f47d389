"""`manage.py celeriac_import`: takes over the rows of django-celery-beat and django-celery-results."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import connections, transaction
from django.utils import timezone

from ...models import ClockedSchedule, CrontabSchedule, GroupResult, IntervalSchedule, PeriodicTask, SolarSchedule, TaskResult

BATCH = 500
"""Rows that are written at once."""
_SCHEDULES: dict[str, tuple[Any, tuple[str, ...]]] = {
    "interval": (IntervalSchedule, ("every", "period")),
    "crontab": (CrontabSchedule, ("minute", "hour", "day_of_month", "month_of_year", "day_of_week", "timezone")),
    "solar": (SolarSchedule, ("event", "latitude", "longitude")),
    "clocked": (ClockedSchedule, ("clocked_time",)),
}
_TASK = (
    "name", "task", "args", "kwargs", "queue", "exchange", "routing_key", "headers", "priority", "expires", "expire_seconds", "one_off",
    "start_time", "enabled", "last_run_at", "total_run_count", "description",
)  # fmt: skip
_RESULT = (
    "task_id", "periodic_task_name", "task_name", "task_args", "task_kwargs", "status", "worker", "content_type", "content_encoding",
    "result", "traceback", "meta", "date_created", "date_started", "date_done",
)  # fmt: skip


class Command(BaseCommand):
    help = (
        "Takes over the schedules of django-celery-beat and the results of django-celery-results, from their tables in this database. Rows that are here "
        "already (by name, by task id) stay as they are, so it may be run again. The old tables are only read."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--database", default="default", help="Where the old tables are.")
        parser.add_argument("--no-schedules", action="store_true", help="Leave django-celery-beat alone.")
        parser.add_argument("--no-results", action="store_true", help="Leave django-celery-results alone.")
        parser.add_argument("--dry-run", action="store_true", help="Only say what would be taken over.")

    def handle(self, *args: Any, **options: Any) -> None:
        old = _Tables(options["database"])
        if not old.has("django_celery_beat_periodictask") and not old.has("django_celery_results_taskresult"):
            raise CommandError(
                f"The database {options['database']!r} has the tables of neither django-celery-beat nor django-celery-results. Name another one with --database."
            )
        with transaction.atomic():
            if not options["no_schedules"] and old.has("django_celery_beat_periodictask"):
                self._schedules(old)
            if not options["no_results"] and old.has("django_celery_results_taskresult"):
                self._results(old)
            if options["dry_run"]:
                transaction.set_rollback(True)
                self.stdout.write("Nothing was changed (--dry-run).")

    def _schedules(self, old: _Tables) -> None:
        known = set(PeriodicTask.objects.values_list("name", flat=True))
        made: dict[tuple[str, int], Any] = {}
        taken = 0
        for row in old.rows("django_celery_beat_periodictask"):
            if row["name"] in known or row["name"] == "celery.backend_cleanup":
                continue
            task = PeriodicTask(**{name: row[name] for name in _TASK if row.get(name) is not None})
            for kind, (model, fields) in _SCHEDULES.items():
                key = row.get(f"{kind}_id")
                if key is None:
                    continue
                if (kind, key) not in made:
                    given = old.row(f"django_celery_beat_{kind}schedule", key)
                    values = {name: given[name] for name in fields}
                    made[kind, key] = model.objects.filter(**values).first() or model.objects.create(**values)
                setattr(task, kind, made[kind, key])
            task.save()
            taken += 1
        self.stdout.write(f"{taken} periodic tasks taken over ({len(known)} were here).")

    def _results(self, old: _Tables) -> None:
        now = timezone.now()
        before = TaskResult.objects.count()
        batch: list[TaskResult] = []
        for row in old.rows("django_celery_results_taskresult"):
            values = {name: row[name] for name in _RESULT if row.get(name) is not None}
            batch.append(TaskResult(**values, stored_at=row.get("date_done") or now))
            if len(batch) == BATCH:
                TaskResult.objects.bulk_create(batch, ignore_conflicts=True)
                batch = []
                self.stdout.write(".", ending="")
        TaskResult.objects.bulk_create(batch, ignore_conflicts=True)
        groups = [
            GroupResult(group_id=row["group_id"], result=row["result"], date_done=row["date_done"])
            for row in (old.rows("django_celery_results_groupresult") if old.has("django_celery_results_groupresult") else ())
        ]
        GroupResult.objects.bulk_create(groups, ignore_conflicts=True, batch_size=BATCH)
        self.stdout.write(f"{TaskResult.objects.count() - before} results taken over ({before} were here).")


class _Tables:
    """The old tables, read as they are: their packages need not be installed any more."""

    def __init__(self, alias: str) -> None:
        self._connection = connections[alias]
        self._names = set(self._connection.introspection.table_names())

    def has(self, table: str) -> bool:
        return table in self._names

    def rows(self, table: str) -> Any:
        """All rows as dicts, the columns that are times as times."""
        with self._connection.cursor() as cursor:
            cursor.execute(f"SELECT * FROM {self._connection.ops.quote_name(table)} ORDER BY id")
            names = [column[0] for column in cursor.description]
            while found := cursor.fetchmany(BATCH):
                for row in found:
                    yield self._read(dict(zip(names, row, strict=True)))

    def row(self, table: str, key: int) -> dict[str, Any]:
        with self._connection.cursor() as cursor:
            cursor.execute(f"SELECT * FROM {self._connection.ops.quote_name(table)} WHERE id = %s", [key])
            names = [column[0] for column in cursor.description]
            return self._read(dict(zip(names, cursor.fetchone(), strict=True)))

    def _read(self, row: dict[str, Any]) -> dict[str, Any]:
        for name in _TIMES & row.keys():
            if isinstance(row[name], str):  # SQLite
                row[name] = datetime.fromisoformat(row[name])
            if isinstance(row[name], datetime) and timezone.is_naive(row[name]):
                row[name] = row[name].replace(tzinfo=UTC)
        return row


_TIMES = {"expires", "start_time", "last_run_at", "clocked_time", "date_created", "date_started", "date_done"}
