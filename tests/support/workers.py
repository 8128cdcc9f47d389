"""A project in a directory of its own, real worker processes, and the means to watch, kill and reap them.

Nothing here waits for a while: it waits for a condition, with a deadline that only a broken machine or broken code reaches.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import msgspec

from .engines import Home, SQLiteHome, wait_for

T = TypeVar("T")

SOURCES = Path(__file__).parents[2] / "src"
PATIENCE_SECONDS = 40.0
"""How long something may take that takes milliseconds on a machine at rest."""
LEASE_SECONDS = 6.0
SHORT_LEASE = {"worker_heartbeat_interval": 0.5, "worker_lease_duration": LEASE_SECONDS}
"""As short as it may be where a machine stands still for seconds: who has it is not to lose it by that."""
MARK = "CELERIAC_TEST_MARK"
CALAMITIES = ("could not work", "cannot go on", "could not run", "command of the supervisor failed", "Control command")
"""Words of log lines that no test may cause without saying so."""


def until(condition: Callable[[], T], what: str, *, seconds: float = PATIENCE_SECONDS) -> T:
    """Returns the first true value of `condition`."""
    deadline = time.monotonic() + seconds
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() > deadline:
            raise AssertionError(f"{what}: not within {seconds:g} s (it was {value!r})")
        time.sleep(0.01)


class Entry(msgspec.Struct, kw_only=True, frozen=True):
    """A line of the journal."""

    what: str
    label: str
    pid: int
    ppid: int
    at: float
    wall: float
    id: str = ""
    task: str = ""
    retries: int = 0
    arguments: list[Any] = []
    error: str = ""
    began: float = 0.0
    seconds: float = 0.0
    kind: str = ""


@dataclass
class WorkerProcess:
    """A worker that was started, seen from outside."""

    popen: subprocess.Popen[bytes]
    log_path: Path
    name: str
    may_complain: bool = False

    @property
    def pid(self) -> int:
        """Of the supervisor."""
        return self.popen.pid

    def children(self) -> list[int]:
        """The pids of its processes, dead ones that are not buried left out."""
        return [pid for pid in children_of(self.pid) if is_alive(pid)]

    def log(self) -> str:
        return self.log_path.read_text(errors="replace")

    def signal(self, signum: int) -> None:
        """To the supervisor alone."""
        os.kill(self.pid, signum)

    def signal_all(self, signum: int) -> None:
        """To the supervisor and all its processes."""
        os.killpg(self.pid, signum)

    def wait(self, seconds: float = PATIENCE_SECONDS) -> int:
        """Its exit code, once it has ended."""
        return self.popen.wait(seconds)

    def stop(self) -> int:
        """TERM, and its exit code."""
        self.signal(signal.SIGTERM)
        return self.wait()


@dataclass
class Project:
    """A directory with `proj.py` and a journal, a namespace in its engine's home, and everything that was started on it."""

    directory: Path
    settings: Mapping[str, Any]
    home: Home = field(default_factory=SQLiteHome)
    python: str = sys.executable
    paths: Sequence[Path] = (SOURCES,)
    """Where it looks for modules."""
    mark: str = field(default_factory=lambda: uuid4().hex)
    workers: list[WorkerProcess] = field(default_factory=list)
    programs: list[subprocess.Popen[bytes]] = field(default_factory=list)
    _pipes: list[int] = field(default_factory=list)
    _module: Any = None

    def __post_init__(self) -> None:
        (self.directory / "gates").mkdir(parents=True)
        shutil.copy(Path(__file__).with_name("project.py"), self.directory / "proj.py")
        shutil.copy(Path(__file__).with_name("awake.py"), self.directory)
        self.settings = {**self.home.settings(self.directory), **self.settings}
        (self.directory / "settings.json").write_text(json.dumps(self.settings))

    # -- the calling side --------------------------------------------------------------------------------------

    @property
    def tasks(self) -> Any:
        """The project's module, in the test's process."""
        if self._module is None:
            spec = spec_from_file_location("proj", self.directory / "proj.py")
            assert spec is not None and spec.loader is not None
            module = module_from_spec(spec)
            sys.modules["proj"] = module
            spec.loader.exec_module(module)
            self._module = module
        return self._module

    @property
    def app(self) -> Any:
        return self.tasks.app

    @property
    def broker(self) -> Any:
        return self.app.broker

    @property
    def backend(self) -> Any:
        return self.app.backend

    def prepare(self) -> None:
        """Has the engine make what it needs at its first use. A call that comes first has no more than its second for that."""
        wait_for(lambda: self.broker.depth(["celery"]))

    # -- workers -------------------------------------------------------------------------------------------------

    def worker(self, *arguments: str, name: str | None = None, ready: bool = True, env: Mapping[str, str] | None = None) -> WorkerProcess:
        """Starts a worker and waits until it is registered and has its processes (unless `ready` is False)."""
        name = name or f"w{len(self.workers) + 1}"
        log_path = self.directory / f"worker-{len(self.workers) + 1}.log"
        command = [self.python, "-m", "celeriac", "-A", "proj", "worker", "-l", "info", "-n", f"{name}@%h", *arguments]
        with log_path.open("wb") as log:
            popen = subprocess.Popen(
                command,
                cwd=self.directory,
                env=self._environment(env),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        worker = WorkerProcess(popen, log_path, name)
        self.workers.append(worker)
        if ready:
            self.wait_ready(worker)
        return worker

    def wait_ready(self, worker: WorkerProcess) -> None:
        """Waits until it is registered and has its processes."""

        def ready() -> bool:
            assert worker.popen.poll() is None, f"{worker.name} ended with {worker.popen.returncode}:\n{worker.log()}"
            node = self.node(worker)
            if node is None:
                return False
            one_task_each = node.pool == "prefork" and "--autoscale" not in worker.popen.args  # type: ignore[operator]
            return len(worker.children()) >= (node.concurrency if one_task_each else 1)

        until(ready, f"{worker.name} is ready")

    def freeze(self, worker: WorkerProcess) -> None:
        """Stops a worker with all its processes, but none of them in the middle of a transaction: no other could write then."""

        def frozen() -> bool:
            worker.signal_all(signal.SIGSTOP)
            pids = [worker.pid, *worker.children()]
            until(lambda: all(state_of(pid) == "T" for pid in pids), "all of it has stopped")
            if self._writable():
                return True
            worker.signal_all(signal.SIGCONT)
            return False

        until(frozen, f"{worker.name} is stopped outside of a transaction")

    def _writable(self) -> bool:
        if self.home.engine != "sqlite":  # a server goes on without those who are stopped
            return True
        with (self.directory / "celeriac.db.wake" / "lock").open("rb") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return False
            database = sqlite3.connect(self.directory / "celeriac.db", timeout=0.0, isolation_level=None)
            try:
                database.execute("BEGIN IMMEDIATE")
                database.execute("ROLLBACK")
            except sqlite3.OperationalError:
                return False
            finally:
                database.close()
            return True

    def node(self, worker: WorkerProcess) -> Any:
        """Its registration."""
        return next((node for node in self.broker.nodes() if node.pid == worker.pid), None)

    def program(self, source: str, *arguments: str) -> subprocess.Popen[bytes]:
        """Starts a Python program in the project's directory."""
        popen = subprocess.Popen(
            [sys.executable, "-u", "-c", source, *arguments],
            cwd=self.directory,
            env=self._environment(None),
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        self.programs.append(popen)
        return popen

    def command(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Runs `celeriac -A proj …` to its end."""
        return subprocess.run(
            [sys.executable, "-m", "celeriac", "-A", "proj", *arguments],
            cwd=self.directory,
            env=self._environment(None),
            capture_output=True,
            text=True,
            timeout=60,
        )

    def _environment(self, more: Mapping[str, str] | None) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("CELERY_", "CELERIAC_"))}
        return {
            **kept,
            "PYTHONPATH": os.pathsep.join(map(str, self.paths)),
            "PYTHONDONTWRITEBYTECODE": "1",
            MARK: self.mark,
            **(more or {}),
        }

    # -- what tasks did --------------------------------------------------------------------------------------------

    def journal(self, what: str | None = None, label: str | None = None) -> list[Entry]:
        """The lines so far, oldest first; without those whose writer was killed in their middle."""
        try:
            lines = (self.directory / "journal").read_bytes().splitlines()
        except FileNotFoundError:
            return []
        entries = [msgspec.json.decode(line, type=Entry) for line in lines if line.endswith(b"}")]
        return [entry for entry in entries if what in (None, entry.what) and label in (None, entry.label)]

    def starts(self, label: str) -> list[Entry]:
        return self.journal("start", label)

    def ends(self, label: str) -> list[Entry]:
        return self.journal("end", label)

    def wait_started(self, label: str, times: int = 1) -> Entry:
        """Waits until a task has started (so often); returns the last start."""
        return until(lambda: len(self.starts(label)) >= times and self.starts(label), f"{label} has started {times} times")[-1]  # type: ignore[index]

    def make_gate(self, name: str) -> str:
        """A gate for a task that holds the GIL: it needs a named pipe before it starts."""
        os.mkfifo(self.directory / "gates" / name)
        return name

    def open_gate(self, name: str) -> None:
        """Lets the tasks go on that wait at this gate."""
        path = self.directory / "gates" / name
        if path.is_fifo():  # whoever comes to it later finds it open, too
            self._pipes.append(os.open(path, os.O_RDWR))
        else:
            path.touch()

    def state(self, task_id: str) -> str:
        record = self.backend.fetch([task_id]).get(task_id)
        return "PENDING" if record is None else str(record.status)

    def wait_state(self, task_id: str, state: str, *, seconds: float = PATIENCE_SECONDS) -> Any:
        """Waits for this state of a task's record; returns the record."""
        until(lambda: self.state(task_id) == state, f"{task_id} is {state}", seconds=seconds)
        return self.backend.fetch([task_id])[task_id]

    def wait_done(self, ids: Sequence[str], *, seconds: float = PATIENCE_SECONDS) -> None:
        """Waits until all of these tasks have succeeded."""

        def not_done() -> list[str]:
            records = self.backend.fetch(ids)
            return [id for id in ids if id not in records or records[id].status != "SUCCESS"]

        until(lambda: not not_done(), f"all of {len(ids)} tasks have succeeded", seconds=seconds)

    def dead(self, queue: str = "celery") -> dict[str, Any]:
        """The dead letters by id."""
        return {waiting.id: waiting for waiting in self.broker.peek(queue, state="dead", limit=10_000)}

    def wait_empty(self, queue: str = "celery", *, seconds: float = PATIENCE_SECONDS) -> None:
        """Waits until nothing is ready, scheduled or leased."""

        def empty() -> bool:
            depth = self.broker.depth([queue])[queue]
            return not (depth.ready or depth.scheduled or depth.leased)

        until(empty, f"queue {queue} is empty", seconds=seconds)

    # -- the end -----------------------------------------------------------------------------------------------------

    def processes(self) -> list[int]:
        """All living processes that were started on this project, those that were adopted by init included."""
        return [pid for pid in marked_processes(self.mark) if is_alive(pid)]

    def close(self) -> None:
        """Kills and reaps everything that was started here, and looks whether workers complained."""
        for popen in [*(worker.popen for worker in self.workers), *self.programs]:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(popen.pid, signal.SIGKILL)
            popen.wait(PATIENCE_SECONDS)
            if popen.stdout is not None:
                popen.stdout.close()
        deadline = time.monotonic() + PATIENCE_SECONDS
        while left := self.processes():
            for pid in left:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            assert time.monotonic() < deadline, f"processes {left} cannot be killed"
            time.sleep(0.01)
        while self._pipes:
            os.close(self._pipes.pop())
        if self._module is not None:
            self.app.close()
            sys.modules.pop("proj", None)
        self.home.remove(self.settings)
        for worker in self.workers:
            text = worker.log()
            print(f"--- {worker.name} (exit code {worker.popen.returncode}) {'-' * 60}\n{text[-6000:]}")
        for worker in self.workers:
            if not worker.may_complain:
                found = [line for line in worker.log().splitlines() if any(words in line for words in CALAMITIES)]
                assert not found, found


# -- /proc -----------------------------------------------------------------------------------------------------------


def children_of(pid: int) -> list[int]:
    """The pids of a process's children."""
    found = []
    with suppress(OSError):
        for thread in os.listdir(f"/proc/{pid}/task"):
            with suppress(OSError):
                found += [int(word) for word in Path(f"/proc/{pid}/task/{thread}/children").read_text().split()]
    return found


def state_of(pid: int) -> str:
    """R, S, D, T (stopped), Z (zombie) …; X when it is gone."""
    try:
        return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def is_alive(pid: int) -> bool:
    """Neither gone nor a zombie."""
    return state_of(pid) not in ("Z", "X")


def marked_processes(mark: str) -> Iterator[int]:
    """The processes that bear this mark in their environment."""
    wanted = f"{MARK}={mark}".encode()
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError):
                if wanted in Path(f"/proc/{entry}/environ").read_bytes().split(b"\0"):
                    yield int(entry)
