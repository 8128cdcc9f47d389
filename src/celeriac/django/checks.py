"""`manage.py check`: wrong or impossible settings are found before a worker starts."""

from __future__ import annotations

from typing import Any

from django.core import checks

from ..core.errors import CeleriacError, ImproperlyConfigured


def register() -> None:
    checks.register(check_settings, "celeriac")
    checks.register(check_database, "celeriac")
    checks.register(check_pooler, checks.Tags.database)


def check_settings(app_configs: Any = None, **_: Any) -> list[checks.CheckMessage]:
    """Every problem that the app's settings have, and a remark for each that means nothing here."""
    from .project import ensure_app

    try:
        settings = ensure_app().settings
    except ImproperlyConfigured as error:
        return [checks.Error(problem, id="celeriac.E001") for problem in str(error).splitlines() if problem.strip()]
    return [checks.Info(remark, id="celeriac.I001") for remark in settings.remarks]


def check_database(app_configs: Any = None, **_: Any) -> list[checks.CheckMessage]:
    """The databases that messages and results are to be kept in can hold them. Connects to none."""
    from .database import aliases, open_database
    from .project import ensure_app

    problems = []
    for alias in aliases(ensure_app()):
        try:
            open_database(f"django://{alias}")
        except CeleriacError as error:
            problems.append(checks.Error(str(error), id="celeriac.E002"))
    return problems


def check_pooler(databases: Any = None, **_: Any) -> list[checks.CheckMessage]:
    """Asked with `--database`, and before migrations: whether the connections that are used for messages are PostgreSQL's own."""
    from django.db import connections

    from .database import aliases
    from .project import ensure_app

    return [
        checks.Warning(
            f"Between Celeriac and the database {alias!r} stands a pooler, such as PgBouncer. In transaction mode nobody can listen through it.",
            hint="Set DISABLE_SERVER_SIDE_CURSORS in its entry of DATABASES, as Django too needs it then (workers look for work ten times a second instead); "
            "or name an address of the server itself. In session mode, silence this warning.",
            id="celeriac.W001",
        )
        for alias in set(aliases(ensure_app())) & set(databases or ())
        if connections[alias].vendor == "postgresql" and _is_pooled(connections[alias])
    ]


def _is_pooled(connection: Any) -> bool:
    """A pooler introduces itself with another number than that of the process that works for us."""
    if connection.settings_dict.get("DISABLE_SERVER_SIDE_CURSORS"):
        return False  # known, and provided for
    connection.ensure_connection()
    info = connection.connection.info
    told = info.backend_pid
    with connection.cursor() as cursor:
        cursor.execute("SELECT pg_backend_pid()")
        return bool(cursor.fetchone()[0] != told)
