"""Tests with a real Django project. They need Django; without it they are skipped, with a line that says so."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import pytest_collection_modifyitems
from tests.support.django_project import DjangoProject, MakeDjangoProject
from tests.support.fixtures import homes

__all__ = ["homes", "pytest_collection_modifyitems"]

pytest.importorskip("django", reason="Django is not installed in this environment")


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[MakeDjangoProject]:
    """`make_site(**settings)`: a project, migrated unless told otherwise. All it starts is gone after the test."""
    made: list[DjangoProject] = []

    def make(migrated: bool = True, **settings: Any) -> DjangoProject:
        made.append(DjangoProject(tmp_path / f"site-{len(made) + 1}", settings))
        if migrated:
            made[-1].run("migrate", "-v", "0")
        return made[-1]

    yield make
    for project in made:
        project.close()


@pytest.fixture
def postgresql_database(homes: Any) -> Iterator[dict[str, Any]]:
    """An entry of DATABASES for a new database of the tests' server."""
    import uuid
    from urllib.parse import urlsplit

    import psycopg

    url = str(homes["postgresql"].url)
    name = f"django_{uuid.uuid4().hex}"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}")  # type: ignore[call-overload]
    parts = urlsplit(url)
    yield {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": name,
        "USER": parts.username or "",
        "PASSWORD": parts.password or "",
        "HOST": parts.hostname or "",
        "PORT": parts.port or "",
    }
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")  # type: ignore[call-overload]


# What a project works with is asked for before `make_site`: so the project's workers end while it is still there.


@pytest.fixture
def redis_servers() -> Iterator[Any]:
    """Redis servers of the test's own: `start()` returns a port."""
    from tests.support.redis import Servers

    servers = Servers()
    yield servers
    servers.stop()


@pytest.fixture
def redis_url(redis_servers: Any) -> str:
    return f"redis://127.0.0.1:{redis_servers.start()}/0"


@pytest.fixture
def postgresql_server() -> Iterator[Any]:
    """A PostgreSQL server of the test's own, which it may stop."""
    import tempfile

    from tests.support.postgresql import Server

    with tempfile.TemporaryDirectory() as directory:
        server = Server(Path(directory))
        server.make()
        server.start()
        yield server
        server.stop()
