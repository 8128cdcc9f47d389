"""A cluster of three RabbitMQ nodes under whole workers: nodes die, come back, and are left without a majority."""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from uuid import uuid4

import pytest

from celeriac.contracts.mailbox import Letter
from celeriac.core.errors import EngineUnavailable
from celeriac.core.message import Revocation
from celeriac.engines.rabbitmq import RabbitMQEngine
from celeriac.exceptions import EnqueueError
from celeriac.testing.contract.harness import eventually, message, record, start, take
from tests.support.engines import RabbitMQHome, RedisHome, wait_for
from tests.support.load import LIMIT_SECONDS, SLACK_SECONDS, Load
from tests.support.rabbitmq import Cluster, Server
from tests.support.workers import Project, until

pytestmark = [pytest.mark.promise(1), pytest.mark.promise(8), pytest.mark.hasty, pytest.mark.chaos]


class ClusterHome(RabbitMQHome):
    """Three nodes, all of them in the URL."""

    def __init__(self) -> None:
        self.proxies = []
        self.cluster = Cluster()
        self.server = None
        self.url = self.cluster.url
        self.results = RedisHome()

    def close(self) -> None:
        super().close()
        self.cluster.stop()


@pytest.fixture(scope="module")
def cluster_home() -> Iterator[ClusterHome]:
    home = ClusterHome()
    yield home
    home.close()


@pytest.fixture
def home(cluster_home: ClusterHome) -> Iterator[ClusterHome]:
    """With all nodes up again afterwards."""
    yield cluster_home
    for server in cluster_home.cluster.servers:
        if server.node is None:
            server.start()


@contextmanager
def stopped(*servers: Server) -> Iterator[None]:
    """They are there, and silent."""
    try:
        for server in servers:
            assert server.node is not None
            os.killpg(server.node.pid, signal.SIGSTOP)
        yield
    finally:
        for server in servers:
            assert server.node is not None
            os.killpg(server.node.pid, signal.SIGCONT)


def prefix_of(project: Project) -> str:
    return str(project.settings["broker_transport_options"]["name_prefix"])


def answering(project: Project) -> int:
    """How many workers hear what they are told, and can say so."""
    project.broker.close()  # our own connection may be dead
    return len(project.app.control.ping(timeout=2.0))


def test_nodes_die_one_after_another_under_load(project: Project, home: ClusterHome) -> None:
    """Each time the one that workers and callers are connected to, and that leads their queue the first time."""
    load = Load(project, [project.worker("-c", "2"), project.worker("-c", "1")])
    load.more_done(50)
    project.broker.pause(["paused"], by="somebody")
    later = [project.tasks.work.apply_async((f"later-{number}",), countdown=20 + number) for number in range(20)]
    running = project.tasks.work.delay("running", gate="go")
    project.wait_started("running")
    leader, members = home.cluster.nodes_of(f"{prefix_of(project)}celery")
    assert home.cluster.busiest().name == leader and len(members) == 3
    for _ in home.cluster.servers:
        server = home.cluster.busiest()
        load.server_kills.append(time.monotonic())
        server.kill()
        load.server_kills.append(time.monotonic())
        load.more_done(50)
        until(lambda: answering(project) == 2, "both workers hear what they are told")
        dropped = project.tasks.work.apply_async(("dropped",), countdown=2)
        project.broker.revoke([Revocation(id=dropped.id)])
        project.wait_state(dropped.id, "REVOKED")
        server.start()
    project.open_gate("go")
    project.wait_done([running.id, *(one.id for one in later)])
    load.stop()
    print(load.check())
    load.check_workers(troubles=len(home.cluster.servers))
    assert project.broker.depth(["paused"])["paused"].paused_by == "somebody"
    for worker in load.workers:
        print([line for line in worker.log().splitlines() if re.search("in trouble|is back after", line)])
        assert worker.stop() == 0


def test_all_that_is_kept_is_on_every_node(project: Project, home: ClusterHome) -> None:
    worker = project.worker("-c", "1")
    running = project.tasks.work.delay("running", gate="go")
    project.wait_started("running")
    worker.signal_all(signal.SIGKILL)  # what it ran comes back doubtful, so that it goes into custody at once
    worker.wait()
    again = project.worker("-c", "1")
    project.wait_started("running", times=2)
    project.tasks.work.apply_async(("later",), countdown=5)
    rows = home.cluster.control("list_queues", "name", "type", "members", "--quiet", "--no-table-headers").splitlines()
    of = {name: (kind, len(re.findall("@", members))) for name, kind, members in (row.split("\t") for row in rows)}
    prefix = prefix_of(project)
    ours = {name: what for name, what in of.items() if name.startswith((prefix, "celeriac.delay."))}
    assert set(ours.values()) == {("quorum", 3), ("stream", 3)}, ours
    for kind in ("celery", "celery.celeriac.returned", "celeriac.notes", "celeriac.nodes", "celeriac.held.", "celeriac.letters."):
        assert any(name.startswith(f"{prefix}{kind}") for name in ours), ours
    project.open_gate("go")
    project.wait_done([running.id])
    assert again.stop() == 0


def test_letters_arrive_when_the_node_dies_on_which_their_mailbox_was_made(home: ClusterHome) -> None:
    """Its reader may be connected to another."""
    first, second, third = home.cluster.servers
    prefix = f"test-{uuid4()}."
    with (
        closing(RabbitMQEngine(f"{first.url};{third.url}", name_prefix=prefix)) as sender,
        closing(RabbitMQEngine(second.url, name_prefix=prefix)) as reader,
    ):

        def arrives(method: str) -> bool:
            with suppress(EngineUnavailable):  # the first that tries finds its connection dead
                sender.post(["box"], Letter(method=method))
            return any(letter.method == method for letter in reader.collect("box", 0.5))

        eventually(lambda: arrives("before"))
        first.kill()
        eventually(lambda: arrives("after"), 40.0)


def test_results_come_back_to_who_called_when_the_node_dies_that_both_are_connected_to(home: ClusterHome) -> None:
    prefix = f"test-{uuid4()}."
    with (
        closing(RabbitMQEngine(home.cluster.url, name_prefix=prefix, replies=True)) as caller,
        closing(RabbitMQEngine(home.cluster.url, name_prefix=prefix)) as worker,
    ):
        results, answers = caller.replies(), worker.replies()
        wait_for(lambda: caller.publish([message("m")]))
        (delivery,) = take(worker, start(worker))
        assert results.fetch(["m"]) == {}
        answers.expect([delivery])  # type: ignore[attr-defined]
        home.cluster.servers[0].kill()
        wait_for(lambda: answers.store([record("m")]))
        wait_for(lambda: results.fetch(["m"])["m"])
        wait_for(lambda: caller.publish([message("n")]))


@pytest.mark.parametrize("ours", [True, False], ids=["with the node that calls go to", "without it"])
def test_two_of_three_nodes_are_silent(project: Project, home: ClusterHome, ours: bool) -> None:
    """No majority: nothing can be confirmed. Calls say so within their time, and all goes on when the nodes are back."""
    load = Load(project, [project.worker("-c", "2")])
    load.more_done(50)
    busiest = home.cluster.busiest()
    others = [server for server in home.cluster.servers if server is not busiest]
    with stopped(*([busiest, others[0]] if ours else others)):
        load.server_kills.append(time.monotonic())
        load.more_refused(20)
        began = time.monotonic()
        with pytest.raises(EnqueueError) as caught:
            project.tasks.add.delay(1, 2)
        assert time.monotonic() - began < LIMIT_SECONDS + SLACK_SECONDS
        assert caught.value.task_name == "proj.add" and caught.value.task_id
        print(caught.value)
        load.server_kills.append(time.monotonic())
    load.more_done(50)
    wait_for(lambda: project.tasks.add.delay(1, 2))
    load.stop()
    print(load.check())
    load.check_workers(troubles=1)
    assert load.workers[0].stop() == 0
