"""Trouble between workers, producers and a server, while tasks are sent and run: whole workers, real servers, a proxy that does what networks do.

What must hold after each: nothing that was accepted is lost and nothing runs twice without a reason, the worker's processes live and have said once
that a trouble began and once that it ended, no call took longer than `broker_publish_timeout`, and calls work again.
"""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.support.engines import SERVERS, Home, Homes, ServerHome, every_engine, wait_for
from tests.support.load import Load
from tests.support.workers import Project, until

pytestmark = [pytest.mark.promise(1), pytest.mark.promise(8), pytest.mark.hasty]


@pytest.fixture
def home(proxied_homes: Homes, engine: str) -> Home:
    return proxied_homes[engine]


def every_server(*always: str) -> pytest.MarkDecorator:
    return every_engine(always=always, engines=SERVERS)


def under_load(project: Project) -> Load:
    load = Load(project, [project.worker("-c", "2")])
    load.more_done(50)
    return load


def all_connected(home: ServerHome) -> None:
    """Supervisor, processes and producer: each again, after the last trouble."""
    until(lambda: sum(len(proxy.pairs) for proxy in home.proxies) >= 4, "all are connected")


def ends_well(load: Load, *, troubles: int) -> None:
    load.more_done(20)
    load.project.broker.close()  # our own connections may be dead
    load.stop()
    print(load.check())
    load.check_workers(troubles=troubles)
    assert load.workers[0].stop() == 0


@every_server("redis", "postgresql", "rabbitmq")
@pytest.mark.parametrize("how", ["FIN", "RST"])
def test_connections_that_break(project: Project, home: ServerHome, how: Any) -> None:
    load = under_load(project)
    times = 5
    for _ in range(times):
        all_connected(home)
        assert sum(proxy.cut(how) for proxy in home.proxies) >= 3
        load.more_done(10)
    ends_well(load, troubles=times)


@every_server("postgresql")
def test_a_server_that_closes_connections(project: Project, home: ServerHome) -> None:
    load = under_load(project)
    times = 5
    for _ in range(times):
        all_connected(home)
        assert home.close_clients() >= 3
        load.more_done(10)
    ends_well(load, troubles=times)


@every_server("redis", "rabbitmq")
def test_a_black_hole_that_lets_all_through_in_the_end(project: Project, home: ServerHome) -> None:
    load = under_load(project)
    for proxy in home.proxies:
        proxy.stall()
    load.more_refused(20)
    for proxy in home.proxies:
        proxy.flow()
    ends_well(load, troubles=1)


@every_server("redis", "postgresql")
def test_a_black_hole_that_swallows(project: Project, home: ServerHome) -> None:
    """What was connected before never hears anything again."""
    load = under_load(project)
    for proxy in home.proxies:
        proxy.swallow()
    load.more_refused(20)
    for proxy in home.proxies:
        proxy.remember()
    ends_well(load, troubles=1)


@every_server("postgresql", "rabbitmq")
def test_a_network_that_is_slow(project: Project, home: ServerHome) -> None:
    load = under_load(project)
    for proxy in home.proxies:
        proxy.latency_seconds = 0.05
    load.more_done(20)
    for proxy in home.proxies:
        proxy.latency_seconds = 0.0
    ends_well(load, troubles=0)


@every_server("redis", "rabbitmq")
def test_nobody_listens(project: Project, home: ServerHome) -> None:
    load = under_load(project)
    for proxy in home.proxies:
        proxy.refuse()
        proxy.cut("RST")
    load.more_refused(40)
    for proxy in home.proxies:
        proxy.accept()
    ends_well(load, troubles=1)


@every_server("redis", "postgresql")
def test_a_server_that_is_killed_and_started_again(project: Project, home: ServerHome) -> None:
    load = under_load(project)
    times = 2
    for _ in range(times):
        load.server_kills.append(time.monotonic())
        home.kill()
        load.server_kills.append(time.monotonic())
        load.more_refused(10)
        home.start()
        load.more_done(20)
    ends_well(load, troubles=times)


@every_server("redis", "postgresql")
def test_a_server_that_has_lost_its_memory(project: Project, home: ServerHome) -> None:
    """What it held is gone, and nobody can bring it back. The worker says so, registers anew and goes on."""
    load = under_load(project)
    (worker,) = load.workers
    old = project.node(worker)
    home.forget_all()
    until(lambda: (node := wait_for(lambda: project.node(worker))) and node.id != old.id, "it is registered anew")
    again = time.monotonic()
    load.more_done(50)
    load.stop(lost_before=again)
    load.check(lost_before=again)
    assert worker.log().count("begins again under a new one") == 1, worker.log()
    assert "Traceback" not in worker.log()
    assert worker.stop() == 0
