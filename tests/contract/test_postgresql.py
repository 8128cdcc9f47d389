"""The PostgreSQL engine is a correct engine."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from celeriac.contracts.engine import Engine
from celeriac.core.clock import SYSTEM_CLOCK, Clock
from celeriac.engines.postgresql import PostgreSQLEngine
from celeriac.testing.contract import EngineContract, EngineMaker
from celeriac.testing.contract.harness import eventually
from tests.support.postgresql import SessionServer


class PostgreSQLMaker:
    capabilities = PostgreSQLEngine.capabilities

    def __init__(self, url: str, **options: Any) -> None:
        self.url = url
        self.options = options
        self.schema = f"celeriac_{uuid.uuid4().hex}"

    def __call__(self, *, clock: Clock = SYSTEM_CLOCK, **options: Any) -> Engine:
        mark = "&" if "?" in self.url else "?"
        url = f"{self.url}{mark}application_name={self.schema[:30]}_{os.getpid()}"
        return PostgreSQLEngine(url, clock=clock, schema=self.schema, **self.options, **options)

    def corrupt(self, engine: Engine, id: str) -> None:
        self.execute(f"UPDATE {self.schema}.messages SET message = %s WHERE id = %s", b'{"id": "broken', id)

    def lose_registration(self, engine: Engine, node: str) -> None:
        self.execute(f"DELETE FROM {self.schema}.nodes WHERE id = %s", node)

    def after_kill(self) -> None:
        """What a client had asked for before it was killed the server still does."""
        eventually(lambda: not self.sessions_of_the_dead())

    def sessions_of_the_dead(self) -> list[int]:
        """The processes that are gone, but of which the server still has a session."""
        import psycopg

        prefix = f"{self.schema[:30]}_"
        with psycopg.connect(self.url, autocommit=True) as connection:
            rows = connection.execute(
                "SELECT application_name FROM pg_stat_activity WHERE starts_with(application_name, %s)", (prefix,)
            ).fetchall()
        return [pid for pid in {int(name.removeprefix(prefix)) for (name,) in rows} if not os.path.exists(f"/proc/{pid}")]

    def drop(self) -> None:
        self.execute(f"DROP SCHEMA IF EXISTS {self.schema} CASCADE")

    def execute(self, statement: str, *values: object) -> None:
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute(statement, values)  # type: ignore[call-overload]


@pytest.fixture(scope="module")
def server() -> Iterator[SessionServer]:
    server = SessionServer()
    yield server
    server.close()


class TestPostgreSQLEngine(EngineContract):
    @pytest.fixture
    def make_engine(self, server: SessionServer) -> Iterator[EngineMaker]:
        maker = PostgreSQLMaker(server.url())
        yield maker
        maker.drop()
