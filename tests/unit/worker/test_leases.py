"""How a worker says that it lives, and notices who does not."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import pytest

from celeriac.contracts.mailbox import Node
from celeriac.core.errors import EngineUnavailable
from celeriac.core.message import Holder
from celeriac.testing.faulty import FaultyEngine
from celeriac.worker import leases
from celeriac.worker.leases import NodeLease

from .lab import Lab


def lease_of(broker: Any, **more: Any) -> NodeLease:
    node = Node(**{"id": "", "name": "w@h", "host": "h", "boot": "boot-1", "pid": os.getpid(), **more})
    return NodeLease(broker, node, heartbeat_seconds=0.0, lease_seconds=15.0)


def hold(lab: Lab, node: str) -> str:
    """A message that this node holds; its id."""

    @lab.app.task
    def work() -> None: ...

    message = lab.publish(work)
    assert [found.id for found in lab.engine.reserve(["celery"], limit=1, holder=Holder(node, 1))] == [message.id]
    return message.id


@pytest.fixture
def dead_pid() -> int:
    child = subprocess.Popen([sys.executable, "-c", ""])
    child.wait()
    return child.pid


@pytest.fixture
def lab(lab: Lab) -> Lab:
    lab.engine.unregister("node-1")
    return lab


def test_each_begin_is_a_new_node(lab: Lab) -> None:
    lease = lease_of(lab.engine)
    lease.begin()
    first = lease.node.id
    lease.begin()
    assert [node.id for node in lab.engine.nodes()] == [lease.node.id] and lease.node.id != first


def test_a_beat_renews(lab: Lab) -> None:
    lease = lease_of(lab.engine)
    lease.begin()
    for _ in range(5):
        lab.clock.advance(10)
        assert lease.beat()
    assert lab.engine.nodes()[0].lease_left_seconds == 15.0


def test_a_beat_of_a_lost_lease_says_so(lab: Lab) -> None:
    lease = lease_of(lab.engine)
    lease.begin()
    lab.clock.advance(16)
    lab.engine.reclaim()
    assert not lease.beat()
    lease.begin()
    assert lease.beat()


def test_a_beat_that_could_not_look_for_silent_nodes_is_not_the_end_of_a_trouble(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "time", lab.clock)
    lease = lease_of(FaultyEngine(lab.engine, fail_at=2, verbs=["nodes"]))
    lease.begin()
    lease.heartbeat_seconds = 100.0
    with pytest.raises(EngineUnavailable):
        lease.beat()
    lab.clock.advance(0.9 * leases.AGAIN_SECONDS)
    assert lease.beat() and not lease.well, "it is not time for the next"
    lab.clock.advance(0.2 * leases.AGAIN_SECONDS)
    assert lease.beat() and lease.well, "it is repeated soon"


@pytest.mark.parametrize("verb", ["register", "nodes", "reclaim"])
def test_a_begin_that_was_cut_short_is_noticed(lab: Lab, verb: str) -> None:
    """The next beat tells: either we are registered and go on, or we have to begin again."""
    lease = lease_of(FaultyEngine(lab.engine, fail_at=1, verbs=[verb]))
    lease.heartbeat_seconds = 1000.0
    with pytest.raises(EngineUnavailable):
        lease.begin()
    assert lease.beat() is (verb != "register")


def test_what_a_dead_worker_of_this_machine_held_is_taken_back_at_once(lab: Lab, dead_pid: int) -> None:
    lab.engine.register(Node(id="dead", name="w@h", host="h", boot="boot-1", pid=dead_pid), lease_seconds=15.0)
    task_id = hold(lab, "dead")
    lease_of(lab.engine).begin()
    assert lab.where(task_id) == "ready"


@pytest.mark.parametrize("more", [{"host": "other"}, {"boot": "boot-0"}, {"boot": ""}], ids=["host", "boot", "unknown"])
def test_others_are_left_until_their_lease_runs_out(lab: Lab, dead_pid: int, more: dict[str, str]) -> None:
    lab.engine.register(Node(**{"id": "far", "name": "w@h", "host": "h", "boot": "boot-1", "pid": dead_pid, **more}), lease_seconds=15.0)
    task_id = hold(lab, "far")
    lease = lease_of(lab.engine)
    lease.begin()
    assert lab.where(task_id) == "leased"
    lab.clock.advance(16)
    lab.engine.heartbeat(lease.node.id, lease_seconds=15.0)
    assert lease.beat()
    assert lab.where(task_id) == "ready"


def test_a_living_worker_of_our_name_is_a_rival(lab: Lab, dead_pid: int) -> None:
    lease = lease_of(lab.engine)
    lab.engine.register(Node(id="dead", name="w@h", host="h", boot="boot-1", pid=dead_pid), lease_seconds=15.0)
    assert lease.rival() is None
    lab.engine.register(Node(id="other", name="x@h", host="h", boot="boot-1", pid=os.getppid()), lease_seconds=15.0)
    assert lease.rival() is None
    lab.engine.register(Node(id="alive", name="w@h", host="h", boot="boot-1", pid=os.getppid()), lease_seconds=15.0)
    rival = lease.rival()
    assert rival is not None and rival.id == "alive"


def test_the_end_gives_back_and_does_not_mind_an_engine_that_is_away(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    lease = lease_of(FaultyEngine(lab.engine, fail_at=1, verbs=["unregister"]))
    lease.begin()
    task_id = hold(lab, lease.node.id)
    lease.end()
    assert "could not sign off" in caplog.text and lab.where(task_id) == "leased"
    lease.end()
    assert lab.where(task_id) == "ready" and lab.engine.nodes() == []
