"""What only RabbitMQ does, or what costs only its workers a wait: whole workers, a real node."""

from __future__ import annotations

import pytest

from tests.support.engines import Home, Homes, RabbitMQHome, every_engine
from tests.support.fixtures import MakeProject
from tests.support.rabbitmq import young
from tests.support.workers import PATIENCE_SECONDS

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
