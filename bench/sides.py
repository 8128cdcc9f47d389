"""Who is measured: Celeriac and its peers, each as its own documentation would start it, in a virtual environment of its own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from . import counting
from .counting import Counts
from .processes import cpu_seconds, running
from .servers import Server, Unavailable

REPOSITORY = Path(__file__).resolve().parent.parent
HOME = REPOSITORY / ".bench"


class BenchError(Exception):
    """A measurement cannot go on; the message says why and what to do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Side:
    """One system, and how its worker of two processes is started."""

    name: str
    """Of its module in `bench/peers`, and for `--sides`."""
    title: str
    packages: tuple[str, ...] = ()
    """What its virtual environment holds; the first one is the system itself. Celeriac has none: it runs from this checkout."""
    worker: tuple[str, ...]
    """After `python -m`: two processes, logging warnings. `{broker}` stands for its URL."""
    workers: int = 1
    """How many of them make two processes."""
    io_worker: tuple[str, ...] = ()
    """One process, in which 500 coroutines run at once; () where there is no such thing."""
    environment: tuple[tuple[str, str], ...] = ()
    prepare: tuple[str, ...] = ()
    """After `python -m`: run once on an empty broker."""
    later: bool = False
    """It can send tasks for later, and sleep in one: for `eta` and `fairness`."""
    python: str = sys.executable
    version: str = ""

    def ready(self, say: Callable[[str], None]) -> Side:
        """The same, with its virtual environment made and its version known. Raises Unavailable."""
        if not self.packages:
            return replace(self, version=_celeriac_version())
        home = HOME / self.name
        python = str(home / "bin" / "python")
        done = home / ".packages"
        wanted = "\n".join(self.packages)
        if not done.exists() or done.read_text() != wanted:
            say(f"Installing {' '.join(self.packages)} into {home.relative_to(REPOSITORY)} …")
            shutil.rmtree(home, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", str(home)], check=True)
            pip = [python, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", *self.packages]
            installed = subprocess.run(pip, capture_output=True, text=True, check=False)
            if installed.returncode != 0:
                raise Unavailable(f"{self.title} could not be installed: {installed.stderr.strip().splitlines()[-1]}")
            done.write_text(wanted)
        ask = f"import importlib.metadata as m; print(m.version({self.name!r}))"
        answer = subprocess.run([python, "-c", ask], capture_output=True, text=True, check=False)
        if answer.returncode != 0:
            raise Unavailable(f"{self.title} does not run from {home.relative_to(REPOSITORY)}; remove that directory to make it anew")
        return replace(self, python=python, version=answer.stdout.strip())


@dataclass(frozen=True, slots=True)
class Place:
    """Where a side keeps messages and results: on servers, or (SQLite) in a file of each measurement's own."""

    title: str
    broker: Server | None = None
    backend: Server | None = None

    def urls(self, directory: Path) -> tuple[str, str]:
        if self.broker is None:
            return (f"sqlite:///{directory / 'bench.db'}",) * 2
        return self.broker.url(), (self.backend or self.broker).backend_url()

    def servers(self) -> list[Server]:
        return list({server.pid: server for server in (self.broker, self.backend) if server is not None}.values())


@contextlib.contextmanager
def fresh(side: Side, place: Place, directory: Path, figure: str) -> Iterator[Site]:
    """An empty broker, empty results, counters at zero."""
    directory.mkdir(parents=True)
    for server in place.servers():
        server.empty()
    broker, backend = place.urls(directory)
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("CELERY_", "CELERIAC_"))}
    environment |= {
        "BENCH_SIDE": side.name,
        "BENCH_FIGURE": figure,
        "BENCH_BROKER": broker,
        "BENCH_BACKEND": backend,
        "BENCH_COUNTERS": str(directory / "counters"),
        "PYTHONPATH": os.pathsep.join([str(REPOSITORY), *([] if side.packages else [str(REPOSITORY / "src")])]),
        "PYTHONDONTWRITEBYTECODE": "",
        **dict(side.environment),
    }
    counting.create(directory / "counters")
    try:
        site = Site(side, place, directory, environment)
        if side.prepare:
            site.run(side.prepare)
        yield site
    finally:
        shutil.rmtree(directory, ignore_errors=True)


@dataclass(frozen=True, slots=True)
class Site:
    """One side with a broker of its own, for one measurement."""

    side: Side
    place: Place
    directory: Path
    environment: dict[str, str]

    @contextlib.contextmanager
    def worker(self, *, io: bool = False) -> Iterator[Workers]:
        """A worker of two processes (`io`: of one), everything else at its defaults, logging warnings."""
        log = self.directory / "worker.log"
        words = self.side.io_worker if io else self.side.worker
        command = [self.side.python, "-m", *(word.format(broker=self.environment["BENCH_BROKER"]) for word in words)]
        environment = self.environment | ({"BENCH_CONCURRENCY": "500"} if io else {})
        with contextlib.ExitStack() as stack:
            heads = [
                stack.enter_context(running(command, env=environment, log=log, cwd=self.directory)).pid
                for _ in range(1 if io else self.side.workers)
            ]
            try:
                yield Workers(heads)
            except BenchError as problem:
                tail = log.read_text(errors="replace")[-2000:]
                raise BenchError(f"{problem}\nThe end of the {self.side.name} worker's log:\n{tail}") from problem

    def run(self, module: tuple[str, ...]) -> None:
        """Runs `python -m …` of this side to its end."""
        done = subprocess.run(
            [self.side.python, "-m", *module], env=self.environment, cwd=self.directory, capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise BenchError(f"{self.side.name}: {' '.join(module)} failed:\n{done.stderr[-2000:]}")

    def ask(self, *arguments: str, timeout_seconds: float = 600.0) -> dict[str, Any]:
        """Runs one command of `bench.client` in this side's interpreter, to its end."""
        with self.asking(*arguments) as answer:
            return answer(timeout_seconds)

    @contextlib.contextmanager
    def asking(self, *arguments: str) -> Iterator[Callable[[float], dict[str, Any]]]:
        """The same, while other things go on: gives a function that waits for the answer."""
        process = subprocess.Popen(
            [self.side.python, "-m", "bench.client", *arguments],
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

    def counts(self, *, waited: bool = False) -> Counts:
        return Counts.read(self.directory / "counters", waited=waited)

    def server_cpu_seconds(self) -> float:
        return sum(cpu_seconds(server.pid) for server in self.place.servers())

    def server_numbers(self) -> dict[str, float]:
        numbers: dict[str, float] = {}
        for server in self.place.servers():
            numbers |= server.numbers()
        return numbers


@dataclass(frozen=True, slots=True)
class Workers:
    """The heads of what `Site.worker` has started."""

    heads: list[int]

    def measured(self, read: Callable[[int], float]) -> float:
        """A number of each head and all that descend from it, added up."""
        return sum(read(head) for head in self.heads)


def _celeriac_version() -> str:
    check = subprocess.run(
        [sys.executable, "-c", "import celeriac.cli.main, celeriac; print(celeriac.__version__)"],
        env=os.environ | {"PYTHONPATH": str(REPOSITORY / "src")},
        capture_output=True,
        text=True,
        check=False,
    )
    if check.returncode != 0:
        raise BenchError(f"{sys.executable} cannot import celeriac; use the project's virtual environment.\n{check.stderr[-1500:]}")
    return check.stdout.strip()


SIDES = {
    side.name: side
    for side in (
        Side(
            name="celeriac",
            title="Celeriac",
            worker=("celeriac", "-A", "bench.peers.celeriac", "worker", "-c", "2", "-l", "WARNING"),
            io_worker=("celeriac", "-A", "bench.peers.celeriac", "worker", "-P", "asyncio", "-c", "500", "-l", "WARNING"),
            later=True,
        ),
        Side(
            name="celery",
            title="Celery",
            packages=("celery[redis]==5.7.*", "packaging", "hiredis"),  # its transport imports packaging without asking for it
            worker=("celery", "-A", "bench.peers.celery", "worker", "-c", "2", "-l", "WARNING"),
            later=True,
        ),
        Side(
            name="huey",
            title="Huey",
            packages=("huey[redis]", "hiredis"),
            worker=("huey.bin.huey_consumer", "bench.peers.huey.huey", "-k", "process", "-w", "2", "-n", "-q"),
        ),
        Side(
            name="taskiq",
            title="Taskiq",
            packages=("taskiq", "taskiq-redis", "uvloop", "orjson", "hiredis"),
            worker=("taskiq", "worker", "bench.peers.taskiq:broker", "--workers", "2", "--log-level", "WARNING"),
            io_worker=(
                *("taskiq", "worker", "bench.peers.taskiq:broker", "--workers", "1", "--max-async-tasks", "500", "--log-level", "WARNING"),
            ),
        ),
        Side(
            name="dramatiq",
            title="Dramatiq",
            packages=("dramatiq[redis,rabbitmq]", "hiredis"),
            worker=("dramatiq", "bench.peers.dramatiq", "--processes", "2"),
        ),
        Side(
            name="rq",
            title="RQ",
            packages=("rq", "hiredis"),
            # SimpleWorker makes no process for each task, which is what its documentation recommends for speed.
            worker=("rq.cli", "worker-pool", "-u", "{broker}", "-n", "2", "-w", "rq.worker.SimpleWorker", "-q"),
        ),
        Side(
            name="saq",
            title="SAQ",
            packages=("saq[redis,hiredis]", "typing_extensions", "uvloop"),
            worker=("saq", "bench.peers.saq.settings", "--workers", "2"),
            io_worker=("saq", "bench.peers.saq.settings"),
        ),
        Side(
            name="procrastinate",
            title="Procrastinate",
            packages=("procrastinate", "psycopg[binary,pool]"),
            worker=("procrastinate", "--app", "bench.peers.procrastinate.app", "--log-level", "warning", "worker", "-c", "10"),
            workers=2,
            prepare=("procrastinate", "--app", "bench.peers.procrastinate.app", "schema", "--apply"),
        ),
    )
}
