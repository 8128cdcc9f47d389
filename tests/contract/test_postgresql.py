"""The PostgreSQL engine is a correct engine."""

from __future__ import annotations

import os
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celeriac.contracts.engine import Engine
from celeriac.core.clock import SYSTEM_CLOCK, Clock
from celeriac.engines.postgresql import PostgreSQLEngine
from celeriac.testing.contract import EngineContract, EngineMaker
from celeriac.testing.contract.harness import eventually
from tests.support.postgresql import Bouncer, SessionServer, bouncer_program, missing


class PostgreSQLMaker:
    capabilities = PostgreSQLEngine.capabilities

    def __init__(self, url: str, **options: Any) -> None:
        self.url = self.engine_url = url
        self.options = options
        self.schema = f"celeriac_{uuid.uuid4().hex}"

    def __call__(self, *, clock: Clock = SYSTEM_CLOCK, **options: Any) -> Engine:
        mark = "&" if "?" in self.engine_url else "?"
        url = f"{self.engine_url}{mark}application_name={self.schema[:30]}_{os.getpid()}"
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

    def clear(self) -> None:
        """Empties what a test has filled: a tenth of the work of making the schema anew."""
        import psycopg

        with psycopg.connect(self.url) as connection:
            sql = "SELECT format('%%I.%%I', schemaname, tablename) FROM pg_tables WHERE schemaname = %s AND tablename <> 'version'"
            tables = [name for (name,) in connection.execute(sql, (self.schema,)).fetchall()]
            if tables:
                connection.execute(f"TRUNCATE {', '.join(tables)} RESTART IDENTITY CASCADE")  # type: ignore[call-overload]

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


@pytest.fixture(scope="module")
def maker(server: SessionServer) -> Iterator[PostgreSQLMaker]:
    maker = PostgreSQLMaker(server.url())
    yield maker
    maker.drop()


class TestPostgreSQLEngine(EngineContract):
    @pytest.fixture
    def make_engine(self, maker: PostgreSQLMaker) -> Iterator[EngineMaker]:
        yield maker
        maker.clear()


class BouncedMaker(PostgreSQLMaker):
    """Engines whose statements go through PgBouncer in transaction mode; the rest of the tests does not."""

    def __init__(self, url: str, bouncer: Bouncer) -> None:
        super().__init__(url, listen=False, prepare=False, poll_seconds=0.01)
        self.engine_url = bouncer.url
        self.bouncer = bouncer

    def after_kill(self) -> None:
        """PgBouncer goes on with what it had been given whole, and lets go of the server's process, which may not even have begun."""
        prefix = f"{self.schema[:30]}_"

        def gone() -> bool:
            pids = [int(name.removeprefix(prefix)) for name in self.bouncer.clients() if name.startswith(prefix)]
            return all(os.path.exists(f"/proc/{pid}") for pid in pids) and not self.sessions() - {*self.bouncer.sessions()}

        eventually(gone)

    def sessions(self) -> set[int]:
        """The server's processes that serve our engines."""
        import psycopg

        with psycopg.connect(self.url, autocommit=True) as connection:
            sql = "SELECT pid FROM pg_stat_activity WHERE starts_with(application_name, %s)"
            return {pid for (pid,) in connection.execute(sql, (f"{self.schema[:30]}_",)).fetchall()}

    def __getstate__(self) -> dict[str, Any]:
        """For other processes, which only open engines."""
        return {**vars(self), "bouncer": None}


@pytest.fixture(scope="module")
def bouncer(server: SessionServer) -> Iterator[Bouncer]:
    if bouncer_program() is None:
        missing("PgBouncer is not installed (apt-get install pgbouncer)")
    directory = Path(tempfile.mkdtemp(prefix="celeriac-pgbouncer-"))
    directory.chmod(0o755)
    bouncer = Bouncer(directory, server.url())
    bouncer.start()
    yield bouncer
    bouncer.stop()
    shutil.rmtree(directory)


@pytest.fixture(scope="module")
def bounced_maker(server: SessionServer, bouncer: Bouncer) -> Iterator[BouncedMaker]:
    maker = BouncedMaker(server.url(), bouncer)
    yield maker
    maker.drop()


class TestPostgreSQLThroughPgBouncer(EngineContract):
    """In transaction mode there is no LISTEN, and no statement is prepared: whoever waits looks again and again."""

    @pytest.fixture
    def make_engine(self, bounced_maker: BouncedMaker) -> Iterator[EngineMaker]:
        yield bounced_maker
        bounced_maker.clear()

    def test_nothing_remains_of_a_closed_one(self, make_engine: EngineMaker) -> None:  # type: ignore[override]
        """A subscription looks in a thread of its own, for which the pool may grow; here it may not."""
        engine = make_engine(pool_size=1)
        super().test_nothing_remains_of_a_closed_one(engine)
        engine.close()
