"""The project that workers under test run; it is copied to `proj.py` in a test's own directory.

What tasks do is written to a journal, one line at a time with O_APPEND, so that it outlives SIGKILL. Tasks that have to run for a while run until a test opens
their gate (a file, or a named pipe for those that hold the GIL), so that no test depends on how fast the machine is.
"""

from __future__ import annotations

import asyncio
import ctypes
import json
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any, Literal

from celeriac import Celeriac, Task
from celeriac.exceptions import Ignore, Reject, SoftTimeLimitExceeded

HERE = Path(__file__).parent

if "PROJ_HOST" in os.environ:  # a worker of another machine, as far as it knows
    socket.gethostname = lambda: os.environ["PROJ_HOST"]

if "PROJ_NO_DEATH_SIGNAL" in os.environ:  # a system that does not kill processes with their supervisor
    from celeriac.worker import process

    process.die_with = lambda supervisor_pid: None  # type: ignore[attr-defined]

app = Celeriac("proj")
app.conf.update(json.loads((HERE / "settings.json").read_text()))


def break_the_engine(*, where: str, fail_at: int, when: Literal["before", "after"], times: int, verbs: list[str]) -> None:
    """Some operations of the engine fail: those of the supervisor ("supervisor"), or of each process ("processes")."""
    from celeriac.engines import open_engine
    from celeriac.testing.faulty import FaultyEngine

    class Faulty(FaultyEngine):
        def _fails_now(self, verb: str) -> bool:
            is_supervisor = os.getpid() == os.getsid(0)  # tests start each worker in a session of its own
            return (where == "supervisor") == is_supervisor and super()._fails_now(verb)

    engine = open_engine(app.conf.broker_url, **app.conf.broker_transport_options)
    app._broker = Faulty(engine, fail_at=fail_at, when=when, times=times, verbs=verbs)


if "PROJ_FAULT" in os.environ:
    break_the_engine(**json.loads(os.environ["PROJ_FAULT"]))

_journal = os.open(HERE / "journal", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)


def write(what: str, label: str, **more: Any) -> None:
    """One line in the journal. It begins with the end of the last: who wrote that may have been killed in its middle."""
    entry = {"what": what, "label": label, "pid": os.getpid(), "ppid": os.getppid(), "at": time.monotonic(), "wall": time.time(), **more}
    os.write(_journal, b"\n" + json.dumps(entry).encode() + b"\n")


def note(task: Task[..., Any], what: str, label: str, **more: Any) -> None:
    """One line in the journal, with the task that writes it."""
    request = task.request
    write(what, label, id=request.id, task=task.name, retries=request.retries, **more)


def wait_for_gate(gate: str | None) -> None:
    """Returns once the test has opened this gate."""
    while gate is not None and not (HERE / "gates" / gate).exists():
        time.sleep(0.005)


def block_in_c(gate: str) -> None:
    """One C call that holds the GIL until the test opens this gate, a named pipe."""
    c = ctypes.PyDLL(None, use_errno=True)
    while c.open(os.fsencode(HERE / "gates" / gate), os.O_RDONLY) < 0:
        pass


@app.task
def add(x: int, y: int) -> int:
    return x + y


@app.task(bind=True)
def work(self: Task[..., Any], label: str, gate: str | None = None, seconds: float = 0.0) -> str:
    note(self, "start", label)
    wait_for_gate(gate)
    time.sleep(seconds)
    note(self, "end", label)
    return label


@app.task(bind=True, acks_late=False)
def once(self: Task[..., Any], label: str, gate: str | None = None) -> str:
    note(self, "start", label)
    wait_for_gate(gate)
    note(self, "end", label)
    return label


@app.task(bind=True)
def block(self: Task[..., Any], label: str, gate: str) -> str:
    note(self, "start", label)
    block_in_c(gate)
    note(self, "end", label)
    return label


@app.task(bind=True)
def die(self: Task[..., Any], label: str, how: str = "kill", unless: str = "never") -> str:
    """Ends its own process, unless that gate is open."""
    note(self, "start", label)
    if not (HERE / "gates" / unless).exists():
        match how:
            case "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            case "exit":
                os._exit(3)
            case "segfault":
                ctypes.string_at(0)
    note(self, "end", label)
    return label


@app.task(bind=True, reject_on_worker_lost=False)
def die_once(self: Task[..., Any], label: str) -> None:
    note(self, "start", label)
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(bind=True)
def fail(self: Task[..., Any], label: str, message: str = "as asked") -> None:
    note(self, "start", label)
    raise ValueError(message)


@app.task(bind=True)
def leave(self: Task[..., Any], label: str, how: str) -> None:
    """Ends in one of the ways that are neither a value nor a plain exception."""
    note(self, "start", label)
    match how:
        case "exit":
            sys.exit(2)
        case "interrupt":
            raise KeyboardInterrupt
        case "ignore":
            raise Ignore
        case "reject":
            raise Reject("not today")
        case "unserializable":
            return object()  # type: ignore[return-value]


@app.task(bind=True, max_retries=5)
def flaky(self: Task[..., Any], label: str, failures: int = 2, countdown: float = 0.0, gate: str | None = None) -> str:
    note(self, "start", label)
    wait_for_gate(gate and f"{gate}-{self.request.retries}")
    if self.request.retries < failures:
        raise self.retry(exc=ValueError(f"try {self.request.retries}"), countdown=countdown)
    note(self, "end", label)
    return label


@app.task(bind=True, autoretry_for=(ValueError,), max_retries=2, default_retry_delay=0)
def stubborn(self: Task[..., Any], label: str) -> None:
    note(self, "start", label)
    raise ValueError("never works")


@app.task(bind=True)
def progress(self: Task[..., Any], label: str, gate: str) -> str:
    note(self, "start", label)
    self.update_state(state="HALFWAY", meta={"percent": 50})
    note(self, "halfway", label)
    wait_for_gate(gate)
    self.update_state(state="NEARLY", meta={"percent": 90})
    note(self, "end", label)
    return label


@app.task(bind=True)
def polite(self: Task[..., Any], label: str) -> str:
    """Catches its soft time limit."""
    try:
        note(self, "start", label)
        wait_for_gate("never")
    except SoftTimeLimitExceeded:
        note(self, "soft", label)
        return "tidied up"
    return label


@app.task(bind=True)
def deaf(self: Task[..., Any], label: str) -> None:
    """Catches its soft time limit and goes on all the same."""
    note(self, "start", label)
    while True:
        try:
            wait_for_gate("never")
        except SoftTimeLimitExceeded:
            note(self, "soft", label)


@app.task(bind=True)
def after(self: Task[..., Any], *args: Any) -> str:
    """A follow-up: the last of its arguments is its label."""
    note(self, "start", str(args[-1]), arguments=list(args))
    return str(args[-1])


@app.task(bind=True)
async def dawdle(self: Task[..., Any], label: str, gate: str | None = None) -> str:
    note(self, "start", label)
    try:
        while gate is not None and not (HERE / "gates" / gate).exists():
            await asyncio.sleep(0.005)
    except BaseException as error:
        note(self, "broken off", label, error=type(error).__name__)
        raise
    note(self, "end", label)
    return label


@app.task(bind=True)
def hoard(self: Task[..., Any], label: str, mebibytes: int) -> int:
    """Keeps memory in its process."""
    note(self, "start", label)
    kept.append(bytearray(os.urandom(1024) * 1024 * mebibytes))
    return os.getpid()


kept: list[bytearray] = []


@app.task(bind=True)
def bulk(self: Task[..., Any], label: str, size: int, gate: str) -> str:
    note(self, "start", label)
    wait_for_gate(gate)
    note(self, "end", label)
    return "x" * size


def square(number: int) -> int:
    return number * number


@app.task(bind=True)
def fan_out(self: Task[..., Any], label: str) -> list[Any]:
    """A task with processes of its own: of `multiprocessing`, one of which it terminates, and of `subprocess`."""
    import multiprocessing
    import subprocess

    note(self, "start", label)
    with multiprocessing.get_context("fork").Pool(2) as pool:
        squares = pool.map(square, range(5))
    lazy = multiprocessing.get_context("fork").Process(target=time.sleep, args=(60,))
    lazy.start()
    lazy.terminate()
    lazy.join(20)
    asked = subprocess.Popen(["sleep", "60"])
    asked.terminate()
    note(self, "end", label)
    return [squares, lazy.exitcode, asked.wait(20)]


@app.task
def whoami() -> int:
    return os.getpid()


@app.task(rate_limit="2/s", bind=True)
def limited(self: Task[..., Any], label: str) -> str:
    note(self, "start", label)
    return label


@app.task(rate_limit="1/h", bind=True)
def hourly(self: Task[..., Any], label: str) -> str:
    note(self, "start", label)
    return label


class Strange(Exception):
    """Takes two arguments, so that unpickling would fail."""

    def __init__(self, first: str, second: int) -> None:
        super().__init__(f"{first}: {second}")


@app.task
def strange() -> None:
    raise Strange("odd", 7)
