"""The Redis engine is a correct engine, on a server alone and on a Cluster of three primaries."""

from __future__ import annotations

import os
import uuid
from collections.abc import Iterator
from typing import Any

import pytest

from celeriac.contracts.engine import Engine
from celeriac.core.clock import SYSTEM_CLOCK, Clock
from celeriac.testing.contract import EngineContract, EngineMaker
from celeriac.testing.contract.harness import message

from tests.support.redis import Servers, make_cluster  # isort: skip  (skips all where redis-py is missing)

from celeriac.engines.redis import RedisEngine  # isort: skip
from celeriac.engines.redis_wire import command  # isort: skip

SERVER_URL = os.environ.get("CELERIAC_TEST_REDIS_URL")
CLUSTER_URL = os.environ.get("CELERIAC_TEST_REDIS_CLUSTER_URL")


class RedisMaker:
    """A prefix of its own for each test, over one server."""

    capabilities = RedisEngine.capabilities

    def __init__(self, url: str) -> None:
        self.url = url
        self.prefix = f"{{test-{uuid.uuid4()}}}:"

    def __call__(self, *, clock: Clock = SYSTEM_CLOCK, **options: Any) -> Engine:
        return RedisEngine(self.url, clock=clock, key_prefix=self.prefix, **options)

    def corrupt(self, engine: Engine, id: str) -> None:
        assert self.command(b"HSET", b"body", id.encode(), b'0 0 0 0 celery\n{"id": "broken') == 0

    def after_kill(self) -> None: ...

    def lose_registration(self, engine: Engine, node: str) -> None:
        assert self.command(b"HDEL", b"nodes", node.encode()) == 1
        assert self.command(b"ZREM", b"leases", node.encode()) == 1

    def command(self, name: bytes, key: bytes, *values: bytes) -> Any:
        engine = RedisEngine(self.url, key_prefix=self.prefix)
        try:
            return engine._server.ask(command(name, engine._prefix + key, *values), 5.0)
        finally:
            engine.close()


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    """Of a user who may do no more than docs/engines/redis.md names, where the server is our own."""
    if SERVER_URL:
        yield SERVER_URL
        return
    servers = Servers()
    try:
        port = servers.start()
        servers.allow(port, "{test-")
        yield f"redis://shop:secret@127.0.0.1:{port}/0"
    finally:
        servers.stop()


@pytest.fixture(scope="module")
def cluster_url() -> Iterator[str]:
    if CLUSTER_URL:
        yield CLUSTER_URL
        return
    servers = Servers()
    try:
        ports = [servers.start("--cluster-enabled", "yes", "--cluster-node-timeout", "60000") for _ in range(3)]
        make_cluster(ports)
        yield f"redis+cluster://127.0.0.1:{ports[0]}"
    finally:
        servers.stop()


class TestRedisEngine(EngineContract):
    @pytest.fixture
    def make_engine(self, server_url: str) -> EngineMaker:
        return RedisMaker(server_url)


class TestRedisCluster(EngineContract):
    @pytest.fixture
    def make_engine(self, cluster_url: str) -> EngineMaker:
        return RedisMaker(cluster_url)


def test_keys_that_moved_are_followed(cluster_url: str) -> None:
    """Whatever node we believe to be the right one, the answer MOVED leads to it."""
    maker = RedisMaker(cluster_url)
    engine = maker()
    assert isinstance(engine, RedisEngine)
    engine.publish([message("a")])
    server = engine._server
    (right,) = [server._primary]
    for wrong in [address for address in server._known if address != right]:
        server.close()
        server._primary = wrong
        engine.publish([message(f"{wrong}")])
        assert server._primary == right
    assert engine.depth(["celery"])["celery"].ready == len(server._known)
    engine.close()
