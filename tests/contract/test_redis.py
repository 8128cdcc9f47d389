"""The Redis engine is a correct engine, on a server alone and on a Cluster of three primaries."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from celeriac.contracts.engine import Engine
from celeriac.core.clock import SYSTEM_CLOCK, Clock
from celeriac.testing.contract import EngineContract, EngineMaker

redis = pytest.importorskip("redis") if not os.environ.get("CI") else __import__("redis")

from celeriac.engines.redis import RedisEngine  # noqa: E402

DEADLINE_SECONDS = 20.0
SERVER_URL = os.environ.get("CELERIAC_TEST_REDIS_URL")
CLUSTER_URL = os.environ.get("CELERIAC_TEST_REDIS_CLUSTER_URL")


class Servers:
    """redis-servers of our own, on free ports, in a temporary directory; stopped at the end by their process ids."""

    def __init__(self) -> None:
        self.program = shutil.which("redis-server") or shutil.which("valkey-server")
        if self.program is None:
            reason = "There is no redis-server here. Install it (apt-get install redis-server), or name one in CELERIAC_TEST_REDIS_URL."
            pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
        self.directory = Path(tempfile.mkdtemp(prefix="celeriac-redis-"))
        self.processes: list[subprocess.Popen[bytes]] = []

    def start(self, *options: str) -> int:
        for _ in range(5):
            port = free_port()
            home = self.directory / str(port)
            home.mkdir(exist_ok=True)
            where = ["--port", str(port), "--bind", "127.0.0.1", "--dir", str(home)]
            command = [str(self.program), *where, "--save", "", "--appendonly", "no"]
            with open(home / "log", "wb") as log:
                process = subprocess.Popen([*command, *options], stdout=log, stderr=log, stdin=subprocess.DEVNULL)
            self.processes.append(process)
            if answers(port, process):
                return port
        raise AssertionError(f"redis-server does not start: {(home / 'log').read_text()}")

    def stop(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        shutil.rmtree(self.directory, ignore_errors=True)


def free_port() -> int:
    """Low enough that the port of the Cluster's bus, 10,000 above, is one too."""
    while True:
        with socket.socket() as one, socket.socket() as two:
            one.bind(("127.0.0.1", 0))
            port = int(one.getsockname()[1]) - 15000
            if port < 1024:
                continue
            try:
                two.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def answers(port: int, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with redis.Redis(port=port, socket_timeout=1) as client:
                return bool(client.ping())
        except redis.RedisError:
            time.sleep(0.01)
    return False


class RedisMaker:
    """A prefix of its own for each test, over one server."""

    capabilities = RedisEngine.capabilities

    def __init__(self, url: str) -> None:
        self.url = url
        self.prefix = f"{{test-{uuid.uuid4()}}}:"

    def __call__(self, *, clock: Clock = SYSTEM_CLOCK, **options: Any) -> Engine:
        return RedisEngine(self.url, clock=clock, key_prefix=self.prefix, **options)

    def corrupt(self, engine: Engine, id: str) -> None:
        assert self.command(b"HSET", b"body", id.encode(), b'{"id": "broken') == 0

    def lose_registration(self, engine: Engine, node: str) -> None:
        assert self.command(b"HDEL", b"nodes", node.encode()) == 1
        assert self.command(b"ZREM", b"leases", node.encode()) == 1

    def command(self, name: bytes, key: bytes, *values: bytes) -> Any:
        from celeriac.engines.redis import _request

        engine = RedisEngine(self.url, key_prefix=self.prefix)
        try:
            return engine._server.ask(lambda again: _request(name, engine._prefix + key, *values), 5.0)
        finally:
            engine.close()


@pytest.fixture(scope="module")
def server_url() -> Iterator[str]:
    if SERVER_URL:
        yield SERVER_URL
        return
    servers = Servers()
    try:
        yield f"redis://127.0.0.1:{servers.start()}/0"
    finally:
        servers.stop()


@pytest.fixture(scope="module")
def cluster_url() -> Iterator[str]:
    if CLUSTER_URL:
        yield CLUSTER_URL
        return
    servers = Servers()
    try:
        ports = [servers.start("--cluster-enabled", "yes", "--cluster-node-timeout", "5000") for _ in range(3)]
        make_cluster(ports)
        yield f"redis+cluster://127.0.0.1:{ports[0]}"
    finally:
        servers.stop()


def make_cluster(ports: list[int]) -> None:
    clients = [redis.Redis(port=port, protocol=2) for port in ports]
    share = 16384 // len(ports) + 1
    for number, client in enumerate(clients):
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", number * share, min((number + 1) * share, 16384) - 1)
        client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number + 1)
        if number:
            client.execute_command("CLUSTER", "MEET", "127.0.0.1", ports[0])
    deadline = time.monotonic() + DEADLINE_SECONDS
    for client in clients:
        while True:
            info = client.execute_command("CLUSTER", "INFO")
            text = info.decode() if isinstance(info, bytes) else str(info)
            if "cluster_state:ok" in text and f"cluster_known_nodes:{len(ports)}" in text:
                break
            assert time.monotonic() < deadline, "the Cluster does not come together"
            time.sleep(0.02)
        client.close()


class TestRedisEngine(EngineContract):
    @pytest.fixture
    def make_engine(self, server_url: str) -> EngineMaker:
        return RedisMaker(server_url)


class TestRedisCluster(EngineContract):
    @pytest.fixture
    def make_engine(self, cluster_url: str) -> EngineMaker:
        return RedisMaker(cluster_url)
