"""The servers that the sides talk to: Debian's programs, each in a temporary directory and on a free port of the loopback interface, for the time of the run."""

from __future__ import annotations

import contextlib
import glob
import os
import pwd
import shutil
import signal
import socket
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from .processes import running, wait_until


class Unavailable(Exception):
    """Something that a measurement needs is not here; the message says what to do."""


class Server(Protocol):
    """One that runs."""

    @property
    def pid(self) -> int: ...

    @property
    def title(self) -> str:
        """Its name and version."""
        ...

    def url(self) -> str:
        """Where clients find it."""
        ...

    def backend_url(self) -> str:
        """The same, for results."""
        ...

    def empty(self) -> None:
        """Forgets everything."""
        ...

    def numbers(self) -> dict[str, float]:
        """What it says of itself at this moment."""
        ...


# -- Redis ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Redis:
    """Without persistence, which is the fastest it can be."""

    pid: int
    port: int

    @property
    def title(self) -> str:
        answer = redis_command(self.port, "INFO", "server")
        found = [line.partition(":")[2] for line in answer.splitlines() if line.startswith("redis_version")]
        return f"Redis {found[0] if found else '?'}"

    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def backend_url(self) -> str:
        return self.url()

    def empty(self) -> None:
        redis_command(self.port, "FLUSHALL")

    def numbers(self) -> dict[str, float]:
        return {}


@contextlib.contextmanager
def redis(directory: Path) -> Iterator[Server]:
    program = _program("redis-server", "redis-server")
    directory.mkdir(parents=True)
    port = free_port()
    command = [program, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(directory), "--save", "", "--appendonly", "no"]
    with running(command, env=os.environ, log=directory / "log", cwd=directory) as process:
        if not wait_until(lambda: _redis_answers(port), timeout_seconds=10.0):
            raise Unavailable(f"redis-server does not answer on port {port}:\n{_tail(directory / 'log')}")
        yield Redis(process.pid, port)


def _redis_answers(port: int) -> bool:
    try:
        return redis_command(port, "PING").startswith("+PONG")
    except OSError:
        return False


def redis_command(port: int, *words: str) -> str:
    """One command with a short answer; all that the bench itself needs of Redis."""
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall((" ".join(words) + "\r\n").encode())
        return connection.recv(8192).decode()


# -- PostgreSQL ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class PostgreSQL:
    """With Debian's defaults: it syncs what it commits."""

    pid: int
    port: int
    version: str

    @property
    def title(self) -> str:
        return f"PostgreSQL {self.version}"

    def url(self) -> str:
        return f"postgresql://bench@127.0.0.1:{self.port}/bench"

    def backend_url(self) -> str:
        return self.url()

    def empty(self) -> None:
        with self._connect("postgres") as connection:
            connection.execute("DROP DATABASE IF EXISTS bench WITH (FORCE)")
            connection.execute("CREATE DATABASE bench")
            connection.execute("CHECKPOINT")

    def numbers(self) -> dict[str, float]:
        with self._connect("bench") as connection:
            rows = connection.execute(
                "SELECT coalesce(sum(n_dead_tup), 0), coalesce(sum(n_live_tup), 0), coalesce(sum(pg_total_relation_size(relid)), 0) FROM pg_stat_user_tables"
            ).fetchone()
        assert rows is not None
        return {"dead_tuples": float(rows[0]), "live_tuples": float(rows[1]), "disk_mb": float(rows[2]) / 1e6}

    def _connect(self, database: str) -> Any:
        import psycopg

        return psycopg.connect(f"postgresql://bench@127.0.0.1:{self.port}/{database}", autocommit=True)


@contextlib.contextmanager
def postgresql(directory: Path) -> Iterator[Server]:
    try:
        import psycopg
    except ImportError:
        raise Unavailable("psycopg is not installed: pip install 'celeriac[postgresql]'") from None
    if _postgresql_program("postgres") is None:
        _install("postgresql")
    postgres, initdb = (_postgresql_program(name) for name in ("postgres", "initdb"))
    if postgres is None or initdb is None:
        raise Unavailable("there is no PostgreSQL here: apt-get install postgresql")
    # The server refuses to run as root; its user must reach the directory, which may lie below one that only root may enter.
    home = Path(os.path.realpath(directory)) if os.geteuid() != 0 else Path("/var/tmp") / f"celeriac-bench-{os.getpid()}"
    home.mkdir(parents=True)
    data = home / "data"
    data.mkdir(mode=0o700)
    try:
        if os.geteuid() == 0:
            for path in (home, data):
                shutil.chown(path, *_postgres_user())
        made = subprocess.run(
            _as_postgres([initdb, "-D", str(data), "-U", "bench", "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync"]),
            capture_output=True,
            text=True,
            cwd="/",
            check=False,
        )
        if made.returncode != 0:
            raise Unavailable(f"initdb failed:\n{made.stderr[-1000:]}")
        port = free_port()
        options = {"listen_addresses": "127.0.0.1", "port": str(port), "unix_socket_directories": str(home)}
        command = _as_postgres(
            [postgres, "-D", str(data), *(word for name, value in options.items() for word in ("-c", f"{name}={value}"))]
        )
        log = home / "log"
        with running(command, env=os.environ, log=log, cwd=Path("/"), end=signal.SIGINT) as process:
            url = f"postgresql://bench@127.0.0.1:{port}/postgres"

            def answers() -> bool:
                with contextlib.suppress(psycopg.OperationalError):
                    psycopg.connect(url, connect_timeout=2).close()
                    return True
                return False

            if not wait_until(answers, timeout_seconds=30.0, every_seconds=0.05):
                raise Unavailable(f"postgres does not answer on port {port}:\n{_tail(log)}")
            with psycopg.connect(url) as connection:
                version = str(connection.info.server_version // 10000)
            yield PostgreSQL(process.pid, port, version)
    finally:
        shutil.rmtree(home, ignore_errors=True)


def _postgresql_program(name: str) -> str | None:
    found = sorted(glob.glob(f"/usr/lib/postgresql/*/bin/{name}"), key=lambda path: float(path.split("/")[4]))
    return found[-1] if found else shutil.which(name)


def _as_postgres(command: list[str]) -> list[str]:
    if os.geteuid() != 0:
        return command
    user, group = _postgres_user()
    return ["setpriv", "--reuid", user, "--regid", str(group), "--clear-groups", *command]


def _postgres_user() -> tuple[str, int]:
    for name in ("postgres", "nobody"):
        with contextlib.suppress(KeyError):
            return name, pwd.getpwnam(name).pw_gid
    raise Unavailable("there is no user as whom PostgreSQL could run")


# -- RabbitMQ ------------------------------------------------------------------------------------------------------------

_RABBITMQ = Path("/usr/lib/rabbitmq/bin")


class RabbitMQ:
    """One node, with Debian's defaults. Each measurement has a virtual host of its own."""

    def __init__(self, pid: int, port: int, environment: dict[str, str]) -> None:
        self.pid = pid
        self.port = port
        self.environment = environment
        self.emptied = 0
        self.version = self._control("eval", "rabbit_misc:version().").strip().strip('"')

    @property
    def title(self) -> str:
        return f"RabbitMQ {self.version}"

    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}/bench{self.emptied}"

    def backend_url(self) -> str:
        raise Unavailable("RabbitMQ keeps no results")

    def empty(self) -> None:
        before, self.emptied = self.emptied, self.emptied + 1
        remove = f'rabbit_vhost:delete(<<"bench{before}">>, <<"bench">>), ' if before else ""
        name = f'<<"bench{self.emptied}">>'
        allow = f'rabbit_auth_backend_internal:set_permissions(<<"guest">>, {name}, <<".*">>, <<".*">>, <<".*">>, <<"bench">>)'
        self._control("eval", f'{remove}rabbit_vhost:add({name}, <<"bench">>), {allow}.')

    def numbers(self) -> dict[str, float]:
        return {}

    def _control(self, *words: str) -> str:
        done = subprocess.run(
            [str(_RABBITMQ / "rabbitmqctl"), "-q", *words], env=self.environment, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise Unavailable(f"rabbitmqctl {words[0]} failed: {(done.stdout + done.stderr)[-500:]}")
        return done.stdout


@contextlib.contextmanager
def rabbitmq(directory: Path) -> Iterator[Server]:
    if not (_RABBITMQ / "rabbitmq-server").exists():
        _install("rabbitmq-server")
    epmd = shutil.which("epmd")
    if epmd is None or not (_RABBITMQ / "rabbitmq-server").exists():
        raise Unavailable("there is no rabbitmq-server here: apt-get install rabbitmq-server")
    home = directory / "home"
    home.mkdir(parents=True)
    port, distribution, names = free_port(), free_port(), free_port()
    cookie = home / ".erlang.cookie"
    cookie.write_text("celeriacbench")
    cookie.chmod(0o400)
    (directory / "rabbitmq.conf").write_text(f"listeners.tcp.local = 127.0.0.1:{port}\nlog.console = false\n")
    (directory / "enabled_plugins").write_text("[].")
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))},
        "HOME": str(home),
        "ERL_EPMD_PORT": str(names),
        "ERL_EPMD_ADDRESS": "127.0.0.1",
        "RABBITMQ_NODENAME": f"bench{port}@localhost",
        "RABBITMQ_NODE_PORT": str(port),
        "RABBITMQ_DIST_PORT": str(distribution),
        "RABBITMQ_MNESIA_BASE": str(directory / "data"),
        "RABBITMQ_LOG_BASE": str(directory / "logs"),
        "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
        "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
        "RABBITMQ_PID_FILE": str(directory / "pid"),
        "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
    }
    log = directory / "output"
    with (
        running([epmd, "-port", str(names), "-address", "127.0.0.1"], env=environment, log=log, cwd=directory),
        running([str(_RABBITMQ / "rabbitmq-server")], env=environment, log=log, cwd=directory) as node,
    ):
        if not wait_until(lambda: _speaks_amqp(port), timeout_seconds=60.0, every_seconds=0.1):
            raise Unavailable(f"rabbitmq-server does not answer on port {port}:\n{_tail(log)}")
        yield RabbitMQ(node.pid, port, environment)


def _speaks_amqp(port: int) -> bool:
    """Whoever greets it wrongly is told the right greeting."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=2) as connection:
            connection.sendall(b"AMQP\x00\x00\x00\x00")
            return connection.recv(8).startswith(b"AMQP")
    except OSError:
        return False


# -- what they share -----------------------------------------------------------------------------------------------------


def _program(name: str, package: str) -> str:
    found = shutil.which(name)
    if found is None:
        _install(package)
        found = shutil.which(name)
    if found is None:
        raise Unavailable(f"there is no {name} here: apt-get install {package}")
    return found


def _install(package: str) -> None:
    """The Debian package, when we may install one, without starting a server of the system."""
    if not shutil.which("apt-get") or os.geteuid() != 0:
        return
    print(f"Installing {package} …", flush=True)
    policy = Path("/usr/sbin/policy-rc.d")
    made = not policy.exists()
    if made:
        policy.write_text("#!/bin/sh\nexit 101\n")
        policy.chmod(0o755)
    try:
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
        subprocess.run(["apt-get", "update", "-q"], env=environment, capture_output=True, check=False)
        subprocess.run(
            ["apt-get", "install", "-y", "-q", "--no-install-recommends", package], env=environment, capture_output=True, check=False
        )
    finally:
        if made:
            policy.unlink()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _tail(log: Path) -> str:
    return log.read_text(errors="replace")[-1500:] if log.exists() else ""
