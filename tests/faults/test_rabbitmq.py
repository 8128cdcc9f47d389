"""What only RabbitMQ does, or what costs only its workers a wait: whole workers, a real node."""

from __future__ import annotations

import os
import re
import signal
from uuid import uuid4

import pytest

from celeriac.engines import rabbitmq_desk, rabbitmq_sender
from celeriac.engines import rabbitmq_wire as wire
from tests.support.engines import Home, Homes, RabbitMQHome, every_engine
from tests.support.fixtures import MakeProject
from tests.support.load import Load
from tests.support.rabbitmq import young
from tests.support.workers import PATIENCE_SECONDS, SHORT_LEASE, Project, until

pytestmark = [pytest.mark.promise(8), pytest.mark.hasty, every_engine(always=("rabbitmq",), engines=("rabbitmq",)), *young]


@pytest.fixture
def home(proxied_homes: Homes, engine: str) -> Home:
    return proxied_homes[engine]


@pytest.mark.parametrize("pool", ["prefork", "threads"])
def test_a_worker_with_nothing_in_hand_does_not_wait_for_a_silent_server_to_stop(
    make_project: MakeProject, home: RabbitMQHome, pool: str
) -> None:
    project = make_project(worker_soft_shutdown_timeout=600)
    worker = project.worker("-c", "2", "-P", pool)
    assert project.tasks.add.delay(1, 2).get(timeout=PATIENCE_SECONDS) == 3
    (proxy,) = home.proxies
    proxy.swallow()
    try:
        worker.may_complain = True
        assert worker.stop() == 0
    finally:
        proxy.remember()


def test_a_connection_that_was_forgotten_on_its_way_is_nothing_a_caller_sees(
    project: Project, home: RabbitMQHome, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rabbitmq_sender, "IDLE_SECONDS", 0.0)
    project.tasks.add.delay(1, 1)
    (proxy,) = home.proxies
    proxy.swallow()
    proxy.remember()
    project.tasks.add.delay(1, 1)


def test_without_memory_calls_are_refused_and_workers_finish_what_they_have(project: Project, home: RabbitMQHome) -> None:
    """RabbitMQ reads nothing then from who has published. Afterwards all goes on, and nothing is lost."""
    assert home.server is not None
    load = Load(project, [project.worker("-c", "2")])
    running = project.tasks.work.delay("running", gate="go")
    project.wait_started("running")
    load.more_done(50)
    home.server.control("set_vm_memory_high_watermark", "absolute", "1MB")
    try:
        until(lambda: re.search("MainProcess.*takes no messages now", load.workers[0].log()), "the worker has noticed")
        load.more_refused(20)
        project.open_gate("go")
        project.wait_state(running.id, "SUCCESS")
    finally:
        home.server.control("set_vm_memory_high_watermark", "0.4")
    load.more_done(50)
    load.stop()
    print(load.check())
    load.check_workers(troubles=1)
    assert load.workers[0].stop() == 0


@pytest.mark.parametrize(("pool", "killed"), [("prefork", True), ("prefork", False), ("threads", False), ("asyncio", False)])
def test_what_was_acknowledged_early_and_not_heard_runs_once_and_has_not_failed(
    make_project: MakeProject, home: RabbitMQHome, pool: str, killed: bool
) -> None:
    """RabbitMQ never gets the acknowledgement, and gives the message to whoever is there: its task must not have begun by then, nor have failed because its process died.

    With this lease it takes longer until the connection is given up than a process is kept waiting for an answer at once.
    """
    project = make_project(**SHORT_LEASE)
    assert SHORT_LEASE["worker_lease_duration"] > rabbitmq_desk.UNKNOWN_SECONDS
    first = project.worker("-c", "1", "-P", pool)
    (process,) = first.children()
    (proxy,) = home.proxies
    proxy.lose(wire.acknowledgement(1, 0)[:11])
    result = project.tasks.once.delay("only", gate="go")
    until(lambda: proxy.lost, "it is acknowledged")
    if killed:
        os.kill(process, signal.SIGKILL)
    project.worker("-c", "1")
    project.wait_started("only")
    until(lambda: first.children() not in ([], [process] if killed else []), "the first worker has buried its process")
    until(lambda: "is back after" in first.log(), "the first worker is connected again")
    assert project.state(result.id) == "PENDING"
    project.open_gate("go")
    project.wait_state(result.id, "SUCCESS")
    project.wait_empty()
    assert len(project.starts("only")) == 1
    assert "which is not repeated" not in first.log()


@pytest.mark.parametrize("dies", [False, True])
def test_a_queue_of_custody_that_somebody_deletes_takes_nothing_with_it(make_project: MakeProject, home: RabbitMQHome, dies: bool) -> None:
    """The only copy that RabbitMQ had of what runs was in it."""
    assert home.server is not None
    prefix = f"test-{uuid4().hex}."
    project = make_project(broker_transport_options={"name_prefix": prefix, "custody_seconds": 0.5})
    worker = project.worker("-c", "1")
    result = project.tasks.work.apply_async(["long"], {"gate": "go"}, link=project.tasks.after.s("child"))

    def kept() -> str:
        assert home.server is not None
        rows = home.server.control("list_queues", "name", "messages_unacknowledged", "--quiet", "--no-table-headers").splitlines()
        return next(
            (name for name, held in (row.split() for row in rows) if name.startswith(f"{prefix}celeriac.held.") and held == "1"), ""
        )

    home.server.control("delete_queue", until(kept, "it is in custody"))
    until(kept, "it is in custody again")
    if dies:
        worker.signal_all(signal.SIGKILL)
        worker.wait()
        project.worker("-c", "1")
        project.wait_started("long", times=2)
    project.open_gate("go")
    project.wait_state(result.id, "SUCCESS")
    until(lambda: project.starts("child"), "what follows it has run")
    project.wait_empty()
    assert len(project.starts("long")) == 1 + dies
    assert "refused" not in worker.log()
