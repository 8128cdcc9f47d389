"""A primary of Redis dies under whole workers, and a replica takes over: found through Sentinel, and in a Cluster."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from tests.support.engines import Settings, wait_for
from tests.support.load import Load
from tests.support.workers import PATIENCE_SECONDS, Project, until

from tests.support.redis import Servers, free_port, make_cluster, redis  # isort: skip  (skips all where redis-py is missing)

pytestmark = [pytest.mark.promise(1), pytest.mark.promise(8), pytest.mark.hasty]


class SentinelHome:
    """A primary, its replica, and a sentinel that watches them."""

    engine = "redis"

    def __init__(self) -> None:
        self.servers = Servers()
        self.primary = self.servers.start()
        self.replica = self.servers.start("--replicaof", "127.0.0.1", str(self.primary))
        self.sentinel = self.servers.start_sentinel(self.primary)
        with redis.Redis(port=self.sentinel) as watcher:
            until(lambda: watcher.execute_command("SENTINEL", "REPLICAS", "shop"), "the sentinel knows the replica")
        self.url = f"sentinel://127.0.0.1:{self.sentinel}/0?master_name=shop"
        self.prefix = f"test-{uuid4().hex}:"

    def kill_primary(self) -> None:
        wait_until_replicated(self.primary)
        self.servers.stop_one(self.primary)

    def has_taken_over(self) -> bool:
        with redis.Redis(port=self.replica) as client:
            return bool(client.info("replication")["role"] == "master")

    def settings(self, directory: Path) -> Settings:
        return {"broker_url": self.url, "broker_transport_options": {"key_prefix": self.prefix}}

    def remove(self, settings: Mapping[str, Any]) -> None: ...

    def close(self) -> None:
        self.servers.stop()


class ClusterHome(SentinelHome):
    """Three primaries, and a replica of the one that has our keys."""

    engine = "redis-cluster"

    def __init__(self) -> None:
        self.servers = Servers()
        self.prefix = f"{{test-{uuid4().hex}}}:"
        options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "1000", "--cluster-require-full-coverage", "no")
        ports = [self.servers.start(*options, port=free_port()) for _ in range(3)]
        make_cluster(ports)
        with redis.Redis(port=ports[0], protocol=2) as client:
            slot = int(client.execute_command("CLUSTER", "KEYSLOT", self.prefix))
        self.primary = ports[slot // (16384 // 3 + 1)]
        self.replica = self.servers.start(*options, "--cluster-replica-validity-factor", "0", port=free_port())
        with redis.Redis(port=self.primary) as client:
            primary_id = client.execute_command("CLUSTER", "MYID")
        with redis.Redis(port=self.replica) as client:
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", ports[0])
            wait_for(lambda: client.execute_command("CLUSTER", "REPLICATE", primary_id))
        with redis.Redis(port=self.primary) as client:
            until(lambda: client.info("replication")["connected_slaves"] == 1, "the replica follows")
        self.url = f"redis+cluster://127.0.0.1:{next(port for port in ports if port != self.primary)}"


def wait_until_replicated(port: int) -> None:
    """Replication does not wait; what had not reached the replica is lost, and no test could tell how much. So it gets a moment to arrive."""
    with redis.Redis(port=port) as client:
        client.execute_command("WAIT", 1, 5000)


@pytest.fixture(params=[SentinelHome, ClusterHome], ids=["sentinel", "cluster"])
def home(request: pytest.FixtureRequest) -> Iterator[SentinelHome]:
    home = request.param()
    yield home
    home.close()


def test_a_replica_takes_over_under_load(project: Project, home: SentinelHome) -> None:
    load = Load(project, [project.worker("-c", "2")])
    load.more_done(50)
    load.server_kills.append(time.monotonic())
    home.kill_primary()
    killed_at = time.monotonic()
    load.server_kills.append(killed_at)
    # A sentinel that finds the machine has stood still for two seconds trusts its eyes no more for half a minute.
    until(home.has_taken_over, "the replica is the primary", seconds=2 * PATIENCE_SECONDS)
    load.more_done(50)
    load.stop()
    print(load.check(lost_before=killed_at))
    load.check_workers(troubles=1)
    assert load.workers[0].stop() == 0
