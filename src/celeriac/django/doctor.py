"""What `manage.py celeriac doctor` looks at beside what every project has."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from typing import TYPE_CHECKING

from ..cli.doctor import Finding
from ..tasks.why import duration_in_words

if TYPE_CHECKING:
    from ..app import Celeriac

WAITS_LONG = timedelta(minutes=1)


def examine(app: Celeriac) -> Iterator[Finding]:
    from django.db import DatabaseError

    yield from _checks()
    yield from _sources(app)
    try:
        yield from _migrations()
        yield from _outbox(app)
    except DatabaseError as problem:
        yield _say("wrong", "django", f"The database cannot be asked: {problem}", "See DATABASES, and whether its server runs.")


def _checks() -> Iterator[Finding]:
    from django.core import checks

    found = [message for message in checks.run_checks() if message.level >= checks.WARNING and not message.is_silenced()]
    ours = [message for message in found if (message.id or "").startswith("celeriac.")]
    for message in ours:
        yield _say("wrong", "django", message.msg, message.hint or "`manage.py check` shows it too.")
    errors = sum(message.is_serious() for message in found) - sum(message.is_serious() for message in ours)
    if errors:
        yield _say("wrong", "django", f"`manage.py check` finds {errors} more error(s).", "Run it, and put them right.")
    elif not ours:
        yield _say("fine", "django", "`manage.py check` finds no error.")


def _sources(app: Celeriac) -> Iterator[Finding]:
    from django.conf import settings

    named = [name for name in dir(settings) if name.startswith("CELERY_")]
    if named and not app.has_source:
        yield _say(
            "wrong",
            "django",
            f"The project's own app does not read Django's settings, so {', '.join(named[:5])} count for nothing.",
            "app.config_from_object('django.conf:settings', namespace='CELERY')",
        )
    old = [name for name in ("django_celery_beat", "django_celery_results") if name in settings.INSTALLED_APPS]
    if old:
        yield _say(
            "note", "django", f"{' and '.join(old)} is installed still.", "`manage.py celeriac_import` takes over its rows; then it can go."
        )


def _migrations() -> Iterator[Finding]:
    from django.db import connection
    from django.db.migrations.executor import MigrationExecutor

    executor = MigrationExecutor(connection)
    missing = [migration for migration, _ in executor.migration_plan(executor.loader.graph.leaf_nodes())]
    ours = [migration for migration in missing if migration.app_label == "celeriac"]
    if ours:
        yield _say("wrong", "django", f"Celeriac's tables are not up to date: {len(ours)} migration(s) wait.", "`manage.py migrate`")
    elif missing:
        yield _say("note", "django", f"{len(missing)} migration(s) of the project wait.", "`manage.py migrate`")
    else:
        yield _say("fine", "django", "All migrations are applied.")


def _outbox(app: Celeriac) -> Iterator[Finding]:
    from django.db import connection
    from django.utils import timezone

    from .database import DEFAULT_URL
    from .models import OutboxParcel

    if OutboxParcel._meta.db_table not in connection.introspection.table_names():
        return
    late = OutboxParcel.objects.filter(created_at__lt=timezone.now() - WAITS_LONG).order_by("created_at")
    count = late.count()
    if count:
        age = duration_in_words((timezone.now() - late[0].created_at).total_seconds())
        yield _say(
            "wrong",
            "outbox",
            f"{count} parcel(s) of committed messages wait in the outbox, the oldest for {age}.",
            "Workers publish them: is one alive, and the broker? With another broker before, publish them with `app.outbox.relay()`.",
        )
    elif app.settings.broker_url == DEFAULT_URL:
        yield _say("fine", "outbox", "It is not needed: messages are part of the transaction.")
    elif app.settings.task_outbox:
        yield _say("fine", "outbox", "What is sent in transactions is published after the commit; nothing is left behind.")
    else:
        yield _say("note", "outbox", "It is switched off: what is sent in transactions is published at once, before the commit.")


def _say(level: str, check: str, sentence: str, advice: str = "") -> Finding:
    return Finding(level=level, check=check, sentence=sentence, advice=advice)
