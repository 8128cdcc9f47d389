"""The SQLite and PostgreSQL engines on a database of Django's (see `database.py`), as parts of the transactions that it is in."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any
from urllib.parse import quote, unquote, urlencode, urlsplit

from ..core.errors import ImproperlyConfigured
from ..core.message import Join, Message
from ..engines.postgresql import PostgreSQLEngine
from ..engines.sqlite import Pipes, SQLiteEngine

PREFIX = "celeriac_engine_"
NOWHERE = "/dev/null/celeriac"
"""The file of a database in memory: nothing can be made there, so nobody waits at a pipe."""


class SQLiteInDjango(SQLiteEngine):
    def __init__(self, alias: str, **options: Any) -> None:
        self.alias = alias
        connection = _connection(alias)
        path = NOWHERE if connection.is_in_memory_db() else _path(str(connection.settings_dict["NAME"]))
        super().__init__(f"sqlite:///{quote(path)}", **{"prefix": PREFIX, **options})
        self.url = f"django://{alias}"
        self._pipes = _PatientPipes(path + ".wake", self._on_commit)

    def _callers_transaction(self) -> AbstractContextManager[sqlite3.Connection] | None:
        connection = _connection(self.alias)
        # Nobody else can open a database in memory, so that everything goes through Django's connection.
        return self._part_of(connection) if _in_transaction(connection) or connection.is_in_memory_db() else None

    @contextmanager
    def _part_of(self, connection: Any) -> Iterator[sqlite3.Connection]:
        from django.db import transaction

        with transaction.atomic(using=self.alias):
            connection.validate_no_broken_transaction()
            db = self._named(connection.connection)
            self._upgrade(db)
            yield db

    def _on_commit(self, tell: Callable[[], None]) -> None:
        from django.db import transaction

        if _connection(self.alias).in_atomic_block:
            transaction.on_commit(tell, using=self.alias, robust=True)
        else:
            tell()


class _PatientPipes(Pipes):
    """Wakes those who wait when what they wait for is committed."""

    def __init__(self, directory: str, on_commit: Callable[[Callable[[], None]], None]) -> None:
        super().__init__(directory)
        self._on_commit = on_commit

    def ring_queues(self, queues: Iterable[str]) -> None:
        ring, names = super().ring_queues, list(queues)
        self._on_commit(lambda: ring(names))

    def ring_boxes(self, addresses: Iterable[str]) -> None:
        ring, names = super().ring_boxes, list(addresses)
        self._on_commit(lambda: ring(names))

    def ring_results(self, ids: Sequence[str]) -> None:
        ring, names = super().ring_results, list(ids)
        self._on_commit(lambda: ring(names))


class PostgreSQLInDjango(PostgreSQLEngine):
    def __init__(self, alias: str, **options: Any) -> None:
        self.alias = alias
        connection = _connection(alias)
        if connection.settings_dict.get("DISABLE_SERVER_SIDE_CURSORS"):
            options = {"listen": False, "prepare": False, **options}
        super().__init__(f"postgresql://?{urlencode(_conninfo(connection), quote_via=quote)}", **options)
        self.url = f"django://{alias}"

    def publish(self, messages: Sequence[Message], *, joins: Sequence[Join] = (), timeout_seconds: float | None = None) -> None:
        from django.db import ProgrammingError

        connection = _connection(self.alias)
        if not _in_transaction(connection):
            return super().publish(messages, joins=joins, timeout_seconds=timeout_seconds)
        try:
            self._publish_in(connection, messages, joins)
        except ProgrammingError as problem:
            raise ImproperlyConfigured(
                f"The database {self.alias!r} cannot take the message: {problem} Run `manage.py migrate` with this version of Celeriac."
            ) from problem


# -- helpers ------------------------------------------------------------------------------------------------------------------


def _connection(alias: str) -> Any:
    from django.db import connections

    return connections[alias]


def _path(name: str) -> str:
    """Of a file that is named as it is, or by a URI."""
    return os.path.abspath(unquote(urlsplit(name).path) if name.startswith("file:") else name)


def _in_transaction(connection: Any) -> bool:
    return bool(connection.in_atomic_block or (connection.connection is not None and not connection.autocommit))


def _conninfo(connection: Any) -> dict[str, str]:
    """What libpq has to know to get where Django's connection goes."""
    try:
        from psycopg import pq
    except ImportError as error:
        raise ImproperlyConfigured(
            f"Keeping messages in the database {connection.alias!r} needs psycopg 3 ({error}). pip install 'celeriac[postgresql]', or set CELERY_BROKER_URL."
        ) from None
    known = {option.keyword.decode() for option in pq.Conninfo.get_defaults()}
    given = {name: str(value) for name, value in connection.get_connection_params().items() if name in known and value is not None}
    role = connection.settings_dict["OPTIONS"].get("assume_role")
    if role:
        given["options"] = f"{given.get('options', '')} -c role={role}".strip()
    return given
