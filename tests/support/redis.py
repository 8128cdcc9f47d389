"""redis-servers for tests: on free ports, in a temporary directory, stopped by their process ids."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

redis = pytest.importorskip("redis") if not os.environ.get("CI") else __import__("redis")

VARIABLE = "CELERIAC_TEST_REDIS_SERVER"
"""The program of another Redis or Valkey than the one on the PATH."""
DEADLINE_SECONDS = 40.0


class Servers:
    """redis-servers of our own, on free ports, in a temporary directory; stopped at the end by their process ids."""

    def __init__(self) -> None:
        named = os.environ.get(VARIABLE)
        self.program = shutil.which(named) if named else shutil.which("redis-server") or shutil.which("valkey-server")
        if named and self.program is None:
            pytest.fail(f"{VARIABLE} names {named}, and there is no such program.")
        if self.program is None:
            reason = "There is no redis-server here. Install it (apt-get install redis-server), or name one in CELERIAC_TEST_REDIS_URL."
            pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
        self.directory = Path(tempfile.mkdtemp(prefix="celeriac-redis-"))
        self.processes: dict[int, subprocess.Popen[bytes]] = {}

    def start(self, *options: str, port: int | None = None, ready: bool = True) -> int:
        """A server; with `ready` it is waited for until it answers anybody."""
        for _ in range(5):
            number = port or free_port()
            home = self.directory / str(number)
            home.mkdir(exist_ok=True)
            where = ["--port", str(number), "--bind", "127.0.0.1", "--dir", str(home)]
            self._run(number, [str(self.program), *where, "--save", "", "--appendonly", "no", *options])
            if answers(number, self.processes[number], any_answer=not ready):
                return number
        raise AssertionError(f"redis-server does not start: {(home / 'log').read_text()}")

    def start_sentinel(self, primary: int) -> int:
        """Watches the server of this port under the name `shop`, alone."""
        number = free_port()
        home = self.directory / str(number)
        home.mkdir()
        lines = [f"port {number}", "bind 127.0.0.1", f"dir {home}", f"sentinel monitor shop 127.0.0.1 {primary} 1"]
        lines += ["sentinel down-after-milliseconds shop 1000", "sentinel failover-timeout shop 3000"]
        (home / "sentinel.conf").write_text("\n".join(lines) + "\n")
        self._run(number, [str(self.program), str(home / "sentinel.conf"), "--sentinel"])
        assert answers(number, self.processes[number])
        return number

    def allow(self, port: int, prefix: str) -> None:
        """The user `shop`, whose password is `secret`, may do there what docs/engines/redis.md says that an application with this prefix needs."""
        rules = f"~{prefix}* resetchannels &{prefix}* +@read +@write +@scripting +@pubsub +@connection +@blocking +time -@dangerous".split()
        with redis.Redis(port=port) as client:
            client.execute_command("ACL", "SETUSER", "shop", "reset", "on", ">secret", *rules)

    def stop_one(self, port: int) -> None:
        process = self.processes.pop(port)
        process.kill()
        process.wait()

    def stop(self) -> None:
        for port in list(self.processes):
            self.stop_one(port)
        shutil.rmtree(self.directory, ignore_errors=True)

    def _run(self, port: int, command: list[str]) -> None:
        with open(self.directory / str(port) / "log", "wb") as log:
            self.processes[port] = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)


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


def answers(port: int, process: subprocess.Popen[bytes], *, any_answer: bool = False) -> bool:
    deadline = time.monotonic() + DEADLINE_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        try:
            with redis.Redis(port=port, socket_timeout=1) as client:
                return bool(client.ping())
        except redis.ResponseError:
            if any_answer:
                return True
        except redis.AuthenticationError:
            return any_answer
        except redis.RedisError:
            pass
        time.sleep(0.01)
    return False


def make_cluster(ports: list[int]) -> None:
    clients = [redis.Redis(port=port, protocol=2) for port in ports]
    share = 16384 // len(ports) + 1
    for number, client in enumerate(clients):
        client.execute_command("CLUSTER", "ADDSLOTS", *range(number * share, min((number + 1) * share, 16384)))
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


class Proxy:
    """Stands between a client and a server, and does what networks do."""

    def __init__(self, port: int) -> None:
        self.target = port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = int(self.listener.getsockname()[1])
        self.lose_answers = 0
        """So many answers are swallowed, and their connections cut."""
        self.before_losing: Callable[[], object] = lambda: None
        self.silent = False
        """A black hole: what is sent arrives nowhere, and nobody is told."""
        self.marker = b"EVALSHA"
        """Only answers to requests with these bytes are lost."""
        self.sockets: list[socket.socket] = []
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self) -> None:
        """All connections are gone."""
        for one in self.sockets:
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        # A thread in accept() holds the port until it is woken.
        with suppress(OSError):
            self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        self.cut()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self.listener.accept()
                server = socket.create_connection(("127.0.0.1", self.target))
                self.sockets += [client, server]
                state = {"doomed": False}
                threading.Thread(target=self._pump, args=(client, server, state, True), daemon=True).start()
                threading.Thread(target=self._pump, args=(server, client, state, False), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket, state: dict[str, bool], asking: bool) -> None:
        with suppress(OSError):
            while chunk := source.recv(65536):
                if self.silent:
                    continue
                if asking and self.lose_answers > 0 and self.marker in chunk:
                    state["doomed"] = True
                if chunk.startswith(b"-NOSCRIPT"):
                    state["doomed"] = False
                if not asking and state["doomed"]:
                    self.lose_answers -= 1
                    self.before_losing()
                    break
                sink.sendall(chunk)
        for end in (source, sink):
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            if not self.silent:
                with suppress(OSError):
                    end.close()
