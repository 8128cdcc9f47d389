"""`django://ALIAS`: messages and results in one of Django's databases, SQLite or PostgreSQL, so that a message commits, and rolls back, with the data it is about.

It is the SQLite or PostgreSQL engine on the same database, with tables of its own beside Django's (in SQLite their names begin with `celeriac_engine_`, in PostgreSQL they are in the schema `celeriac`), which `migrate` makes
and keeps up to date. Workers, and whatever happens outside of transactions, use connections of the engine. What happens within `atomic()` on that alias
goes through Django's connection: in PostgreSQL what publishes; in SQLite everything, since there only one can write. Whoever waits is woken by the commit.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ..core.errors import ImproperlyConfigured

if TYPE_CHECKING:
    from ..app import Celeriac
    from .database_engines import PostgreSQLInDjango, SQLiteInDjango

DEFAULT_URL = "django://default"


def open_database(url: str, *, task_queues: Any = None, replies: bool = False, **options: Any) -> SQLiteInDjango | PostgreSQLInDjango:
    """The engine of `django://ALIAS`.

    Raises: ImproperlyConfigured: there is no such database, or it cannot hold messages.
    """
    from django.db import connections
    from django.utils.connection import ConnectionDoesNotExist

    alias = alias_in(url)
    try:
        vendor = connections[alias].vendor
    except ConnectionDoesNotExist:
        raise ImproperlyConfigured(f"{url}: DATABASES has no entry {alias!r}.") from None
    match vendor:
        case "sqlite":
            from .database_engines import SQLiteInDjango

            return SQLiteInDjango(alias, **options)
        case "postgresql":
            from .database_engines import PostgreSQLInDjango

            return PostgreSQLInDjango(alias, **options)
        case _:
            raise ImproperlyConfigured(
                f"Celeriac keeps messages in SQLite and PostgreSQL, and the database {alias!r} is {vendor}. Set CELERY_BROKER_URL to an engine beside it: "
                "redis://…, amqp://…, postgresql://…, or sqlite:////path/of/a/file.db on a single machine. What is sent in transactions passes the outbox then."
            )


def install(app: Celeriac) -> None:
    """From now on the app knows `django://ALIAS`, and uses the default database where no broker is named."""
    from django.db import connections
    from django.db.backends.signals import connection_created
    from django.db.models.signals import post_migrate

    app.engines["django"] = open_database
    if connections["default"].vendor != "unknown":  # there is one
        app.add_defaults({"broker_url": DEFAULT_URL})
    connection_created.connect(_adapt, dispatch_uid="celeriac.django.database")
    post_migrate.connect(_make_tables, dispatch_uid="celeriac.django.database")


def aliases(app: Celeriac) -> list[str]:
    """The databases that the settings name as broker or result backend; none while the settings are wrong."""
    try:
        urls = (app.settings.broker_url, app.settings.result_backend or "")
    except ImproperlyConfigured:
        return []
    return list(dict.fromkeys(alias_in(url) for url in urls if url.startswith("django:")))


def alias_in(url: str) -> str:
    return url.partition("://")[2].strip("/") or "default"


# -- when Django connects, and migrates --------------------------------------------------------------------------------------


def _adapt(connection: Any, **_: Any) -> None:
    from django.db.backends.base.base import NO_DB_ALIAS

    from .project import ensure_app

    app = ensure_app()
    if connection.alias == NO_DB_ALIAS:
        # Somebody is about to make or drop a database, that of the tests most likely: then nobody may be connected to it.
        if hasattr(app._broker, "alias"):
            app.close()
    elif connection.vendor == "sqlite" and connection.transaction_mode is None and connection.alias in aliases(app):
        # A transaction that reads first and writes later fails at once ("database is locked") when a worker wrote in between; one that says at its beginning that it writes waits for its turn.
        connection.transaction_mode = "IMMEDIATE"


def _make_tables(using: str, app_config: Any = None, **_: Any) -> None:
    """After `migrate`: the engine's tables are there, and of this version."""
    from .project import ensure_app

    app = ensure_app()
    if app_config is None or app_config.label != "celeriac" or using not in aliases(app):
        return
    engine = open_database(f"django://{using}")
    try:
        engine.nodes()
    finally:
        engine.close()
