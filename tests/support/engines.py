"""Where the engines under test live: a directory, or servers of the tests' own, started when they are first asked for and stopped by their process ids.

Each project gets a namespace of its own there (a key prefix, a schema), so that tests share a server and know nothing of each other. Environment variables
name servers that are ready: `CELERIAC_TEST_REDIS_URL`, `CELERIAC_TEST_REDIS_CLUSTER_URL`, `CELERIAC_TEST_POSTGRESQL`, `CELERIAC_TEST_RABBITMQ_URL`. Fault runs kill and restart
servers, so they always start their own.
"""

from __future__ import annotations

import os
import shutil
import signal
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, Protocol
from uuid import uuid4

import pytest

from .proxy import Proxy

Settings = dict[str, Any]
SERVERS = ("redis", "redis-cluster", "postgresql", "rabbitmq")
ENGINES = ("sqlite", *SERVERS)
Keeps = Literal["memory", "file", "disk"]
"""Where what a server has answered must be: nowhere, in a file (it survives SIGKILL), or on the disk (it survives a loss of power)."""
REDIS_KEEPS: dict[Keeps, tuple[str, ...]] = {
    "memory": (),
    "file": ("--appendonly", "yes", "--appendfsync", "no"),
    "disk": ("--appendonly", "yes", "--appendfsync", "always"),
}


class Home(Protocol):
    """Where one engine keeps its things."""

    engine: str

    def settings(self, directory: Path) -> Settings:
        """Of a new project in this directory, with a namespace of its own."""
        ...

    def remove(self, settings: Mapping[str, Any]) -> None:
        """What a project has left in its namespace."""
        ...

    def close(self) -> None: ...


class ServerHome(Home, Protocol):
    """... with servers of our own, reached through proxies, which may be killed."""

    proxies: Sequence[Proxy]

    def kill(self) -> None:
        """SIGKILL of the server (of a Cluster: of the primary that has our keys)."""
        ...

    def start(self) -> None:
        """The same server again: its port, its data."""
        ...

    def forget_all(self) -> None:
        """Everything it keeps is gone, as after a restart without persistence."""
        ...

    def close_clients(self) -> int:
        """The server closes the connections of its clients; returns how many."""
        ...


class SQLiteHome:
    engine = "sqlite"

    def settings(self, directory: Path) -> Settings:
        return {"broker_url": f"sqlite:///{directory / 'celeriac.db'}"}

    def remove(self, settings: Mapping[str, Any]) -> None: ...

    def close(self) -> None: ...


class RedisHome:
    """A server alone."""

    engine = "redis"

    def __init__(self, *, keeps: Keeps = "memory", proxied: bool = False, url: str | None = None) -> None:
        from .redis import Servers

        self.url = url
        self.proxies: list[Proxy] = []
        self.servers = Servers() if url is None else None
        if self.servers is not None:
            self.options = REDIS_KEEPS[keeps]
            self.port = self.servers.start(*self.options)
            if proxied:
                self.proxies = [Proxy(self.port)]
            self.url = f"redis://127.0.0.1:{self.proxies[0].port if proxied else self.port}/0"

    def settings(self, directory: Path) -> Settings:
        return {"broker_url": self.url, "broker_transport_options": {"key_prefix": f"test-{uuid4().hex}:"}}

    def remove(self, settings: Mapping[str, Any]) -> None:
        if self.servers is None:  # our own goes as a whole
            from .redis import redis

            with redis.Redis.from_url(self.url) as client:
                for key in client.scan_iter(f"{settings['broker_transport_options']['key_prefix']}*", count=1000):
                    client.delete(key)

    def kill(self) -> None:
        assert self.servers is not None
        self.servers.stop_one(self.port)

    def start(self) -> None:
        assert self.servers is not None
        self.servers.start(*self.options, port=self.port)

    def forget_all(self) -> None:
        self._ask("FLUSHALL")

    def close_clients(self) -> int:
        return sum(int(self._ask("CLIENT", "KILL", "TYPE", kind)) for kind in ("normal", "pubsub"))

    def _ask(self, *command: str) -> Any:
        from .redis import redis

        with redis.Redis(port=self.port) as client:
            return client.execute_command(*command)

    def close(self) -> None:
        for proxy in self.proxies:
            proxy.close()
        if self.servers is not None:
            self.servers.stop()


class RedisClusterHome:
    """Three primaries. With `proxied` they tell clients to come through proxies."""

    engine = "redis-cluster"

    def __init__(self, *, keeps: Keeps = "memory", proxied: bool = False, url: str | None = None) -> None:
        from .redis import Servers, free_port, make_cluster

        self.url = url
        self.proxies: list[Proxy] = []
        self.servers = Servers() if url is None else None
        self.options: dict[int, list[str]] = {}
        if self.servers is not None:
            always = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000"]
            always += REDIS_KEEPS[keeps]
            for _ in range(3):
                port = free_port()
                options = list(always)
                if proxied:
                    self.proxies.append(Proxy(port))
                    options += ["--cluster-announce-ip", "127.0.0.1", "--cluster-announce-port", str(self.proxies[-1].port)]
                    options += ["--cluster-announce-bus-port", str(port + 10_000)]
                self.options[self.servers.start(*options, port=port)] = options
            make_cluster(list(self.options))
            self.url = f"redis+cluster://127.0.0.1:{self.proxies[0].port if proxied else next(iter(self.options))}"
        self._killed = 0

    def settings(self, directory: Path) -> Settings:
        return {"broker_url": self.url, "broker_transport_options": {"key_prefix": f"{{test-{uuid4().hex}}}:"}}

    def remove(self, settings: Mapping[str, Any]) -> None:
        if self.servers is None:
            from .redis import redis

            client = redis.RedisCluster.from_url(str(self.url).replace("redis+cluster://", "redis://"))
            for key in client.scan_iter(f"{settings['broker_transport_options']['key_prefix']}*", count=1000):
                client.delete(key)
            client.close()

    def kill(self) -> None:
        assert self.servers is not None
        self._killed = max(self.options, key=lambda port: int(self._ask(port, "DBSIZE")))
        self.servers.stop_one(self._killed)

    def start(self) -> None:
        assert self.servers is not None
        self.servers.start(*self.options[self._killed], port=self._killed)

    def forget_all(self) -> None:
        for port in self.options:
            self._ask(port, "FLUSHALL")

    def close_clients(self) -> int:
        return sum(int(self._ask(port, "CLIENT", "KILL", "TYPE", kind)) for port in self.options for kind in ("normal", "pubsub"))

    def _ask(self, port: int, *command: str) -> Any:
        from .redis import redis

        with redis.Redis(port=port) as client:
            return client.execute_command(*command)

    def close(self) -> None:
        for proxy in self.proxies:
            proxy.close()
        if self.servers is not None:
            self.servers.stop()


class PostgreSQLHome:
    """A database. Unless it `keeps` things on the disk, it does not wait for it."""

    engine = "postgresql"

    def __init__(self, *, keeps: Keeps = "memory", proxied: bool = False, url: str | None = None) -> None:
        from . import postgresql

        self.url = url
        self.proxies: list[Proxy] = []
        self.server: postgresql.Server | None = None
        if url is None:
            if postgresql.program("postgres") is None or postgresql.program("initdb") is None:
                postgresql.missing("PostgreSQL is not installed (apt-get install postgresql), and CELERIAC_TEST_POSTGRESQL names no server")
            self.directory = Path(tempfile.mkdtemp(prefix="celeriac-postgresql-"))
            self.server = postgresql.Server(self.directory, options={} if keeps == "disk" else {"fsync": "off"})
            self.server.make()
            self.server.start()
            if proxied:
                self.proxies = [Proxy(self.server.port)]
            self.url = f"postgresql://celeriac@127.0.0.1:{self.proxies[0].port if proxied else self.server.port}/postgres"

    def settings(self, directory: Path) -> Settings:
        return {"broker_url": self.url, "broker_transport_options": {"schema": f"test_{uuid4().hex}"}}

    def remove(self, settings: Mapping[str, Any]) -> None:
        # The server may still be at the last statements of clients that were killed, which take locks in another order.
        wait_for(lambda: self._execute(f"DROP SCHEMA IF EXISTS {settings['broker_transport_options']['schema']} CASCADE"))

    def kill(self) -> None:
        """As when the machine dies: the postmaster, and with it all of its processes."""
        from .workers import children_of, is_alive, until

        assert self.server is not None and self.server.process is not None
        postmaster = self.server.process.pid
        backends = children_of(postmaster)
        self.server.process.kill()
        for pid in backends:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.server.process.wait()
        self.server.process = None
        until(lambda: not any(is_alive(pid) for pid in backends), "the backends are gone")

    def start(self) -> None:
        assert self.server is not None
        self.server.start()

    def forget_all(self) -> None:
        """All schemas of tests are gone. Those who work in them take locks in another order, so it may need several tries."""
        for (schema,) in self._execute("SELECT nspname FROM pg_namespace WHERE nspname LIKE 'test\\_%'"):
            wait_for(lambda drop=f"DROP SCHEMA IF EXISTS {schema} CASCADE": self._execute(drop))

    def close_clients(self) -> int:
        terminate = (
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"
        )
        return len(self._execute(terminate))

    def _execute(self, statement: str) -> list[tuple[Any, ...]]:
        import psycopg

        with psycopg.connect(str(self.server.url if self.server else self.url), autocommit=True) as connection:
            cursor = connection.execute(statement)  # type: ignore[call-overload]
            return list(cursor.fetchall()) if cursor.description else []

    def close(self) -> None:
        for proxy in self.proxies:
            proxy.close()
        if self.server is not None:
            if self.server.process is not None:  # not through its pid file, which a server that was killed may lack
                self.server.process.send_signal(signal.SIGQUIT)
                self.server.process.wait()
            shutil.rmtree(self.directory, ignore_errors=True)


class RabbitMQHome:
    """A node with its quorum queues, which are on the disk anyway; results are in a Redis beside it."""

    engine = "rabbitmq"

    def __init__(self, *, keeps: Keeps = "memory", proxied: bool = False, url: str | None = None) -> None:
        from . import rabbitmq

        self.url = url
        self.proxies: list[Proxy] = []
        self.results = RedisHome(keeps=keeps, url=os.environ.get("CELERIAC_TEST_REDIS_URL") if keeps == "memory" else None)
        self.server: rabbitmq.Server | None = None
        if url is None:
            self.server = rabbitmq.Server()
            if proxied:
                self.proxies = [Proxy(self.server.port)]
            self.url = f"amqp://guest:guest@127.0.0.1:{self.proxies[0].port if proxied else self.server.port}//"

    def settings(self, directory: Path) -> Settings:
        results = self.results.settings(directory)
        return {
            "broker_url": self.url,
            "broker_transport_options": {"name_prefix": f"test-{uuid4().hex}."},
            "result_backend": results["broker_url"],
            "result_backend_transport_options": results["broker_transport_options"],
        }

    def remove(self, settings: Mapping[str, Any]) -> None:
        self.results.remove({"broker_transport_options": settings["result_backend_transport_options"]})

    def kill(self) -> None:
        assert self.server is not None
        self.server.kill()

    def start(self) -> None:
        assert self.server is not None
        self.server.start()

    def forget_all(self) -> None:
        """A node that was reset has no queues any more."""
        assert self.server is not None
        for words in (["stop_app"], ["reset"], ["start_app"]):
            self.server.control(*words)

    def close_clients(self) -> int:
        assert self.server is not None
        number = len(self.server.control("list_connections", "pid", "--quiet", "--no-table-headers").split())
        self.server.control("close_all_connections", "asked by a test")
        return number

    def close(self) -> None:
        for proxy in self.proxies:
            proxy.close()
        if self.server is not None:
            self.server.stop()
        self.results.close()


_HOMES: dict[str, tuple[Callable[..., Any], str]] = {
    "redis": (RedisHome, "CELERIAC_TEST_REDIS_URL"),
    "redis-cluster": (RedisClusterHome, "CELERIAC_TEST_REDIS_CLUSTER_URL"),
    "postgresql": (PostgreSQLHome, "CELERIAC_TEST_POSTGRESQL"),
    "rabbitmq": (RabbitMQHome, "CELERIAC_TEST_RABBITMQ_URL"),
}


class Homes:
    """Those that all tests share, each made when a test first asks for it. `proxied`: servers of our own behind proxies, for tests that disturb them."""

    def __init__(self, *, proxied: bool = False) -> None:
        self._proxied = proxied
        self._homes: dict[str, Home] = {"sqlite": SQLiteHome()}

    def __getitem__(self, engine: str) -> Home:
        if engine not in self._homes:
            home, variable = _HOMES[engine]
            self._homes[engine] = home(keeps="file", proxied=True) if self._proxied else home(url=os.environ.get(variable))
        return self._homes[engine]

    def close(self) -> None:
        for home in self._homes.values():
            home.close()


@contextmanager
def own_home(engine: str, *, keeps: Keeps) -> Iterator[Any]:
    """One for a test that kills servers."""
    home = _HOMES[engine][0](keeps=keeps)
    try:
        yield home
    finally:
        home.close()


def every_engine(*, always: Sequence[str] = ("sqlite", "redis", "postgresql"), engines: Sequence[str] = ENGINES) -> pytest.MarkDecorator:
    """Runs a test on each of `engines`: those of `always` with all tests, the others in the long fault runs."""
    parameters = [pytest.param(name, marks=[] if name in always else [pytest.mark.chaos]) for name in engines]
    return pytest.mark.parametrize("engine", parameters, indirect=True)


def wait_for(answer: Callable[[], Any], seconds: float = 30.0) -> Any:
    """What a server answers, once it does."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return answer()
        except Exception:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.02)
