"""What only RabbitMQ does, or what costs only its workers a wait: whole workers, a real node."""

from __future__ import annotations

import re

import pytest

from celeriac.engines import rabbitmq_sender
from tests.support.engines import Home, Homes, RabbitMQHome, every_engine
from tests.support.fixtures import MakeProject
from tests.support.load import Load
from tests.support.rabbitmq import young
from tests.support.workers import PATIENCE_SECONDS, Project, until

pytestmark = [pytest.mark.promise(8), every_engine(always=("rabbitmq",), engines=("rabbitmq",)), *young]


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
