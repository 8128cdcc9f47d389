"""A rabbitmq-server for tests: a node of its own, with its own epmd, on free loopback ports and in a temporary directory; ended by their process ids. Or three, as a cluster.

Another installation than the system's is used when `CELERIAC_TEST_RABBITMQ_BIN` names the directory of its `rabbitmq-server` and `rabbitmqctl`.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

DEADLINE_SECONDS = 180.0
ADVISED = "[{rabbit, [{dead_letter_worker_publisher_confirm_timeout, 5000}]}]."
"""What docs/engines/rabbitmq.md advises; else what is on its way from level to level when a server is killed is three minutes late."""
_PROGRAMS = Path(os.environ.get("CELERIAC_TEST_RABBITMQ_BIN", "/usr/lib/rabbitmq/bin"))
_PATH = os.pathsep.join((str(_PROGRAMS.parents[1] / "erlang" / "bin"), os.environ.get("PATH", os.defpath)))
"""Where Debian puts the Erlang of these programs, then wherever one is."""
_WATCHER = """
import os, shutil, signal, sys
pids = []
for line in sys.stdin:
    pids = [int(pid) for pid in line.split()]
for pid in pids:
    for end in (os.killpg, os.kill):
        try:
            end(pid, signal.SIGKILL)
        except OSError:
            pass
if pids:
    shutil.rmtree(sys.argv[1], ignore_errors=True)
"""
"""Reads which processes there are, the latest line counts; and ends them when nobody is left who could write: also after SIGKILL to the tests."""


young = [
    pytest.mark.chaos,
    pytest.mark.skipif(
        not os.environ.get("CELERIAC_CHAOS"),
        reason="RabbitMQ itself is killed, or a real Celery is asked: with the long fault runs (make chaos)",
    ),
]
"""For tests that are not reliable on a busy machine yet."""


class Server:
    """One node. Its clients' port is 127.0.0.1:`port`; `lines` are added to its rabbitmq.conf, `terms` to its advanced.config. It joins the cluster of `seed`."""

    def __init__(self, *lines: str, terms: str = ADVISED, seed: Server | None = None) -> None:
        epmd = shutil.which("epmd", path=_PATH)
        if epmd is None or not (_PROGRAMS / "rabbitmq-server").exists():
            reason = "There is no rabbitmq-server here. Install it (scripts/servers), or name one in CELERIAC_TEST_RABBITMQ_URL."
            if os.environ.get("CI"):
                pytest.fail(reason)
            pytest.skip(reason)
        self.directory = Path(tempfile.mkdtemp(prefix="celeriac-rabbitmq-"))
        self.port, distribution, epmd_port = free_ports(3)
        if seed is not None:
            epmd_port = seed.epmd_port
        self.epmd_port = epmd_port
        self.name = f"celeriac{self.port}@localhost"
        home = self.directory / "home"
        home.mkdir()
        cookie = home / ".erlang.cookie"
        cookie.write_text("celeriactests")
        cookie.chmod(0o400)
        configuration = [f"listeners.tcp.local = 127.0.0.1:{self.port}", "loopback_users = none", "log.console = false", *lines]
        if seed is not None:
            configuration.append("cluster_formation.peer_discovery_backend = classic_config")
            configuration += [f"cluster_formation.classic_config.nodes.{at} = {name}" for at, name in enumerate((seed.name, self.name), 1)]
        (self.directory / "rabbitmq.conf").write_text("\n".join(configuration) + "\n")
        (self.directory / "advanced.config").write_text(terms)
        (self.directory / "enabled_plugins").write_text("[].")
        self.environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(("RABBITMQ_", "ERL_"))},
            "PATH": _PATH,
            "HOME": str(home),
            "ERL_EPMD_PORT": str(epmd_port),
            "ERL_EPMD_ADDRESS": "127.0.0.1",
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_MNESIA_BASE": str(self.directory / "data"),
            "RABBITMQ_LOG_BASE": str(self.directory / "log"),
            "RABBITMQ_CONFIG_FILE": str(self.directory / "rabbitmq.conf"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(self.directory / "advanced.config"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(self.directory / "enabled_plugins"),
            "ERL_CRASH_DUMP": str(self.directory / "erl_crash.dump"),
            "RABBITMQ_PID_FILE": str(self.directory / "pid"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "+S 2:2 +sbwt none +sbwtdcpu none +sbwtdio none -kernel inet_dist_use_interface {127,0,0,1}",
        }
        self.node: subprocess.Popen[bytes] | None = None
        self.watcher = subprocess.Popen(
            [sys.executable, "-c", _WATCHER, str(self.directory)], stdin=subprocess.PIPE, text=True, cwd="/", start_new_session=True
        )
        self.names: subprocess.Popen[bytes] | None = None
        """Its epmd; None: it has that of its seed."""
        if seed is None:
            self.names = subprocess.Popen(
                [epmd, "-port", str(epmd_port), "-address", "127.0.0.1"], env=self.environment, cwd=self.directory
            )
        self._have_watched()
        try:
            self.start()
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        return f"amqp://guest:guest@127.0.0.1:{self.port}//"

    def start(self) -> None:
        """Again, after `kill` or `halt`, with the same data."""
        with open(self.directory / "output", "ab") as output:
            self.node = subprocess.Popen(
                [str(_PROGRAMS / "rabbitmq-server")], env=self.environment, stdout=output, stderr=output, stdin=subprocess.DEVNULL,
                start_new_session=True, cwd=self.directory,
            )  # fmt: skip
        self._have_watched()
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not answers(self.port):
            if time.monotonic() > deadline or self.node.poll() is not None:
                raise AssertionError(f"rabbitmq-server does not start: {(self.directory / 'output').read_text()[-3000:]}")
            time.sleep(0.05)

    def control(self, *words: str) -> str:
        """`rabbitmqctl` with these words. It takes a second or two."""
        done = subprocess.run(
            [str(_PROGRAMS / "rabbitmqctl"), *words], env=self.environment, capture_output=True, text=True, timeout=DEADLINE_SECONDS
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def kill(self) -> None:
        """SIGKILL, to the node and what it has started; as soon as it can bear it (see docs/engines/rabbitmq.md, "A server that was killed too early")."""
        deadline = time.monotonic() + DEADLINE_SECONDS
        while not self._has_listed_all():
            assert time.monotonic() < deadline, "rabbitmq-server does not write down which queues it has"
            time.sleep(0.02)
        self._end(signal.SIGKILL)

    def _has_listed_all(self) -> bool:
        """Its lists of quorum queues and streams are on the disk. They are dets files: from the first change on marked as open, and as closed (a 1 at byte 8) when
        all has been written, which is as soon as nobody has asked for half a second."""
        lists = (path for system in ("quorum", "coordination") for path in (self.directory / "data").glob(f"*/{system}/*/names.dets"))
        return all(path.read_bytes()[8:12] == b"\0\0\0\1" for path in lists)

    def halt(self) -> None:
        """An orderly end."""
        self._end(signal.SIGTERM)

    def stop(self) -> None:
        """Ends all, and leaves nothing behind."""
        self._end(signal.SIGKILL)
        if self.names is not None:
            self.names.kill()
            self.names.wait()
            self.names = None
        self._have_watched()
        self.watcher.communicate()
        shutil.rmtree(self.directory, ignore_errors=True)

    def _end(self, signum: signal.Signals) -> None:
        if self.node is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self.node.pid, signum)
        try:
            self.node.wait(DEADLINE_SECONDS)
        finally:
            with suppress(ProcessLookupError):
                os.killpg(self.node.pid, signal.SIGKILL)  # erl_child_setup and what else is in its session
        self.node = None
        self._have_watched()

    def _have_watched(self) -> None:
        assert self.watcher.stdin is not None
        self.watcher.stdin.write(" ".join(str(one.pid) for one in (self.names, self.node) if one is not None) + "\n")
        self.watcher.stdin.flush()


class Cluster:
    """Three nodes. What `lines` say, each of them is told."""

    def __init__(self, *lines: str) -> None:
        self.servers = [Server(*lines)]
        try:
            for _ in range(2):
                self.servers.append(Server(*lines, seed=self.servers[0]))
        except BaseException:
            self.stop()
            raise

    @property
    def url(self) -> str:
        return ";".join(server.url for server in self.servers)

    def control(self, *words: str) -> str:
        """`rabbitmqctl`, through a node that is up."""
        return next(server for server in self.servers if server.node is not None).control(*words)

    def nodes_of(self, queue: str) -> tuple[str, list[str]]:
        """The names of the node that leads this queue, and of all that have it."""
        for line in self.control("list_queues", "name", "leader", "members", "--quiet", "--no-table-headers").splitlines():
            name, leader, members = line.split("\t")
            if name == queue:
                return leader, sorted(re.findall(r"[\w-]+@[\w-]+", members))
        raise LookupError(queue)

    def busiest(self) -> Server:
        """The node with the most clients."""
        pids = self.control("list_connections", "pid", "--quiet", "--no-table-headers")
        return max(self.servers, key=lambda server: pids.count(f"<{server.name}."))

    def stop(self) -> None:
        for server in reversed(self.servers):
            server.stop()


def answers(port: int) -> bool:
    """True when it speaks AMQP: whoever greets it wrongly is told the right greeting."""
    try:
        with socket.create_connection(("127.0.0.1", port), 2.0) as client:
            client.sendall(b"AMQP\x00\x00\x00\x00")
            return client.recv(8).startswith(b"AMQP")
    except OSError:
        return False


def half_closed(port: int) -> int:
    """How many connections to this port of ours have been ended by their clients, and not yet by the server (CLOSE_WAIT)."""
    found = 0
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with suppress(FileNotFoundError):
            for line in Path(table).read_text().splitlines()[1:]:
                _, local, _, state, *_ = line.split()
                found += state == "08" and int(local.rpartition(":")[2], 16) == port
    return found


def free_ports(count: int) -> list[int]:
    """Below the range from which the system gives clients theirs."""
    found: list[int] = []
    with socket.socket() as seed:
        seed.bind(("127.0.0.1", 0))
        number = 10_000 + seed.getsockname()[1] % 20_000
    while len(found) < count:
        number += 1
        with socket.socket() as one, suppress(OSError):
            one.bind(("127.0.0.1", number))
            found.append(number)
    return found
