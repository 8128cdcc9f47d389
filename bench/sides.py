"""The two sides of the comparison, each as its own documentation would start it, and what they need: a virtual environment, a Redis server."""

from __future__ import annotations

import array
import contextlib
import json
import mmap
import os
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .processes import running, wait_until

REPOSITORY = Path(__file__).resolve().parent.parent
HOME = REPOSITORY / ".bench"
CELERY_PACKAGES = ["celery[redis]==5.7.*", "packaging"]
"""`packaging` is imported by kombu's Redis transport without being named among its requirements."""


class BenchError(Exception):
    """The measurement cannot go on; the message says why and what to do."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two systems."""

    name: str
    title: str
    python: str
    redis_port: int | None = None

    @contextlib.contextmanager
    def fresh(self, directory: Path) -> Iterator[Site]:
        """An empty broker, empty results, counters at zero."""
        directory.mkdir(parents=True)
        if self.redis_port is not None:
            redis_command(self.redis_port, "FLUSHALL")
            broker, backend = f"redis://127.0.0.1:{self.redis_port}/0", f"redis://127.0.0.1:{self.redis_port}/1"
        else:
            broker = backend = f"sqlite:///{directory / 'bench.db'}"
        environment = {name: value for name, value in os.environ.items() if not name.startswith(("CELERY_", "CELERIAC_"))}
        environment |= {
            "BENCH_SIDE": self.name,
            "BENCH_BROKER": broker,
            "BENCH_BACKEND": backend,
            "BENCH_COUNTERS": str(directory / "counters"),
            "PYTHONPATH": os.pathsep.join([str(REPOSITORY)] + ([str(REPOSITORY / "src")] if self.redis_port is None else [])),
            "PYTHONDONTWRITEBYTECODE": "",
        }
        (directory / "counters").write_bytes(bytes(2 * 4096 * 8))
        try:
            yield Site(self, directory, environment)
        finally:
            shutil.rmtree(directory, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Site:
    """One side with a broker of its own, for one measurement."""

    side: Side
    directory: Path
    environment: dict[str, str]

    @contextlib.contextmanager
    def worker(self) -> Iterator[int]:
        """A worker of two processes, everything else at its defaults, logging warnings. Gives the process id of its head."""
        command = [self.side.python, "-m", self.side.name, "-A", "bench.workload", "worker", "-c", "2", "-l", "WARNING"]
        log = self.directory / "worker.log"
        with running(command, env=self.environment, log=log, cwd=self.directory) as process:
            try:
                yield process.pid
            except BenchError as problem:
                tail = log.read_text(errors="replace")[-2000:]
                raise BenchError(f"{problem}\nThe end of the {self.side.name} worker's log:\n{tail}") from problem

    def ask(self, *arguments: str, timeout_seconds: float = 600.0) -> dict[str, Any]:
        """Runs one command of `bench.client` in this side's interpreter, to its end."""
        with self.asking(*arguments) as answer:
            return answer(timeout_seconds)

    @contextlib.contextmanager
    def asking(self, *arguments: str) -> Iterator[Callable[[float], dict[str, Any]]]:
        """The same, while other things go on: gives a function that waits for the answer."""
        command = [self.side.python, "-m", "bench.client", *arguments]
        process = subprocess.Popen(
            command,
            env=self.environment,
            cwd=self.directory,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

        def answer(timeout_seconds: float) -> dict[str, Any]:
            try:
                output, errors = process.communicate(timeout=timeout_seconds)
            except subprocess.TimeoutExpired:
                raise BenchError(f"{self.side.name}: '{arguments[0]}' was not done after {timeout_seconds:.0f} s.") from None
            if process.returncode != 0:
                raise BenchError(f"{self.side.name}: '{arguments[0]}' failed:\n{errors[-2000:]}")
            parsed: dict[str, Any] = json.loads(output.splitlines()[-1])
            return parsed

        try:
            yield answer
        finally:
            if process.poll() is None:
                process.kill()
            process.communicate()

    def counts(self) -> tuple[int, int]:
        """How many tasks have started, and how many messages the producer has sent."""
        with (self.directory / "counters").open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as counters:
            cells = array.array("Q", bytes(counters))
        return sum(cells[:4096]), sum(cells[4096:])


def celeriac() -> Side:
    """Celeriac from this checkout, in the interpreter that runs the bench."""
    check = subprocess.run(
        [sys.executable, "-c", "from celeriac import Celeriac; import celeriac.cli.main"],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    if check.returncode != 0:
        raise BenchError(f"{sys.executable} cannot import celeriac; use the project's virtual environment.\n{check.stderr[-1500:]}")
    return Side("celeriac", "Celeriac on SQLite", sys.executable)


def celery(redis_port: int) -> Side:
    """Celery 5.7 from its own virtual environment, which is made at the first run and kept."""
    home = HOME / "celery"
    python = home / "bin" / "python"
    probe = [str(python), "-c", "import celery, redis, packaging; assert celery.__version__.startswith('5.7.')"]
    if not python.exists() or subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        print(f"Installing {' and '.join(CELERY_PACKAGES)} into {home.relative_to(REPOSITORY)} …", flush=True)
        shutil.rmtree(home, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
        installed = subprocess.run(
            [str(python), "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *CELERY_PACKAGES],
            capture_output=True,
            text=True,
            check=False,
        )
        if installed.returncode != 0:
            raise BenchError(f"Celery could not be installed:\n{installed.stderr[-1500:]}")
    return Side("celery", "Celery 5.7 on Redis", str(python), redis_port)


@contextlib.contextmanager
def redis_server(directory: Path) -> Iterator[int]:
    """A Redis of our own on a free port of the loopback interface, without persistence (which is the fastest it can be). Gives the port."""
    program = shutil.which("redis-server") or install_redis()
    directory.mkdir(parents=True)
    port = free_port()
    command = [program, "--bind", "127.0.0.1", "--port", str(port), "--dir", str(directory), "--save", "", "--appendonly", "no"]
    with running(command, env=os.environ, log=directory / "redis.log", cwd=directory):
        if not wait_until(lambda: answers(port), timeout_seconds=10.0):
            raise BenchError(f"redis-server does not answer on port {port}:\n{(directory / 'redis.log').read_text()[-1000:]}")
        yield port


def install_redis() -> str:
    """The Debian package, when we may install one."""
    if shutil.which("apt-get") and os.geteuid() == 0:
        print("Installing redis-server …", flush=True)
        environment = os.environ | {"DEBIAN_FRONTEND": "noninteractive", "RUNLEVEL": "1"}  # install it, but start no server of the system
        subprocess.run(["apt-get", "update", "-q"], env=environment, capture_output=True, check=False)
        subprocess.run(["apt-get", "install", "-y", "-q", "redis-server"], env=environment, capture_output=True, check=False)
    program = shutil.which("redis-server")
    if program is None:
        raise BenchError("There is no redis-server, which the Celery side needs. Install it: apt-get install redis-server")
    return program


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def answers(port: int) -> bool:
    try:
        return redis_command(port, "PING").startswith("+PONG")
    except OSError:
        return False


def redis_command(port: int, *words: str) -> str:
    """One command with a short answer; all that the bench itself needs of Redis."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall((" ".join(words) + "\r\n").encode())
        return connection.recv(4096).decode()
