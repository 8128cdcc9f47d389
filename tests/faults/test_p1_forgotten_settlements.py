"""P1 when a server forgets: its host loses power, and what it had said last was not on its disk. The worker lives on, and knows nothing of it."""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from tests.support.engines import PostgreSQLHome, RedisHome, Settings
from tests.support.fixtures import MakeProject
from tests.support.postgresql import Bouncer, Server, bouncer_program, missing
from tests.support.workers import SHORT_LEASE, Project, WorkerProcess, until

pytestmark = [
    pytest.mark.promise(1),
    pytest.mark.parametrize("home", ["redis", pytest.param("postgresql, pgbouncer", marks=pytest.mark.chaos)], indirect=True),
]


class RedisHost(RedisHome):
    """Its disk can be laid aside, and be put back in the place of what came later."""

    def __init__(self) -> None:
        super().__init__(keeps="disk")
        assert self.servers is not None
        self.files, self.kept = self.servers.directory / str(self.port), self.servers.directory / "kept"

    def remember(self) -> None:
        shutil.copytree(self.files, self.kept)

    def lose_power(self) -> None:
        self.kill()
        shutil.rmtree(self.files)
        shutil.copytree(self.kept, self.files)
        self.start()


class PooledPostgreSQLHost(PostgreSQLHome):
    """What no commit has waited for stays in the server's memory; the workers' connections are those of a pooler, which lives on."""

    def __init__(self) -> None:
        if bouncer_program() is None:
            missing("PgBouncer is not installed (apt-get install pgbouncer)")
        self.proxies = []
        self.directory = Path(tempfile.mkdtemp(prefix="celeriac-postgresql-"))
        self.server = Server(self.directory, options={"wal_writer_delay": "10s"})
        self.server.make()
        self.server.start()
        (self.directory / "pooler").mkdir()
        self.bouncer = Bouncer(self.directory / "pooler", self.server.url)
        self.bouncer.start()
        self.url = f"{self.bouncer.url}?listen=false&prepare=false"

    def settings(self, directory: Path) -> Settings:
        # Nobody is to need the disk while the server is to forget.
        return {**super().settings(directory), "task_track_started": False}

    def remove(self, settings: Mapping[str, Any]) -> None:
        pass

    def remember(self) -> None:
        pass

    def lose_power(self) -> None:
        self.kill()
        self.start()

    def close(self) -> None:
        self.bouncer.stop()
        super().close()


@pytest.fixture
def home(request: pytest.FixtureRequest) -> Iterator[RedisHost | PooledPostgreSQLHost]:
    home = RedisHost() if request.param == "redis" else PooledPostgreSQLHost()
    yield home
    home.close()


def lose_a_settlement(project: Project, home: RedisHost | PooledPostgreSQLHost, worker: WorkerProcess) -> None:
    """`first` has ended, and the server forgets it while the same process runs `long`."""
    first = project.tasks.work.delay("first", gate="first")
    project.wait_started("first")
    project.tasks.work.delay("long", gate="long")
    home.remember()
    os.kill(worker.pid, signal.SIGSTOP)  # the supervisor, which would have PostgreSQL write all to its disk with the next heartbeat
    project.open_gate("first")
    project.wait_started("long")
    project.wait_state(first.id, "SUCCESS")  # where another thread settles, `long` may have started before
    home.lose_power()
    os.kill(worker.pid, signal.SIGCONT)
    # Leased, or given back already by a process that has asked what it holds.
    until(lambda: project.broker.find([first.id]), "what the server remembers")


def test_p1_a_process_asks_what_it_is_thought_to_hold(make_project: MakeProject, home: RedisHost | PooledPostgreSQLHost) -> None:
    project = make_project(**SHORT_LEASE)
    worker = project.worker("-c", "1")
    lose_a_settlement(project, home, worker)
    project.open_gate("long")
    project.wait_started("first", times=2)
    project.wait_empty()


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_p1_nobody_waits_for_the_end_of_a_long_task(make_project: MakeProject, home: RedisHost | PooledPostgreSQLHost, pool: str) -> None:
    if pool == "threads" and isinstance(home, PooledPostgreSQLHost):
        pytest.skip("there this pool's settlements wait for the disk")
    project = make_project(**SHORT_LEASE)
    worker = project.worker("-c", "1", "-P", pool)
    lose_a_settlement(project, home, worker)
    project.worker("-c", "2", "-P", pool)  # one for `long`, of which the server does not know that it runs
    project.wait_started("first", times=2)
    assert not project.ends("long")
    project.open_gate("long")
    project.wait_empty()
