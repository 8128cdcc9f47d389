"""Tasks for tests of workflows with real workers; copied to `flows.py` beside `proj.py`, and loaded by `-I flows`."""

from __future__ import annotations

import os
import signal
import time
from typing import Any

from proj import app, note, wait_for_gate, write

from celeriac import Task, chain, chord, group
from celeriac.exceptions import Ignore, Reject


@app.task
def number(value: int) -> int:
    return value


@app.task(ignore_result=True)
def silent(value: int) -> int:
    return value


@app.task
def boom(*args: Any) -> None:
    raise ValueError("boom")


@app.task(bind=True, max_retries=3)
def flaky(self: Task[..., Any], value: int) -> int:
    if self.request.retries < 2:
        raise self.retry(countdown=0.05)
    return value


@app.task
def ignored(value: int) -> None:
    raise Ignore


@app.task
def rejected(value: int) -> None:
    raise Reject("not today")


@app.task
def killed(value: int) -> None:
    """Its process dies, each time."""
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(bind=True)
def killed_at_first(self: Task[..., Any], value: int) -> int:
    """Its process dies the first time."""
    if self.request.delivery_info["redelivered"]:
        return value
    os.kill(os.getpid(), signal.SIGKILL)
    return -1


@app.task(acks_late=False)
def killed_once(value: int) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


@app.task(time_limit=0.2)
def too_long(value: int) -> None:
    time.sleep(600)


@app.task
def endless(value: int) -> None:
    write("endless", str(value))
    time.sleep(600)


@app.task(bind=True)
def replaced(self: Task[..., Any], value: int) -> Any:
    return self.replace(chain(number.s(value), number.s()))


@app.task(bind=True)
def replaced_by_group(self: Task[..., Any], value: int) -> Any:
    return self.replace(group(number.s(value), number.s(value)))


@app.task
def first(values: list[Any]) -> Any:
    return values[0]


@app.task
def total(values: list[int]) -> int:
    return sum(values)


@app.task(bind=True)
def body(self: Task[..., Any], values: list[Any], label: str) -> Any:
    note(self, "body", label, arguments=[len(values), values[0] if values else None])
    return len(values)


@app.task
def errback(request: Any, error: Any, traceback: Any, label: str = "") -> None:
    write("errback", label, error=repr(error))


@app.task(bind=True)
def step(self: Task[..., Any], *args: Any, label: str, gate: str | None = None) -> int:
    """Adds one to what it is given. Says in the journal that it has run."""
    wait_for_gate(gate)
    note(self, "step", label)
    before = args[0] if args else 0
    return 1 + (sum(before) if isinstance(before, list) else before)


def nested(label: str) -> Any:
    """A chord in the header of a chord, and one in its body."""
    return chord(
        [
            chord([step.s(label=f"{label}.a{n}") for n in range(3)], step.s(label=f"{label}.a")),
            chain(step.s(label=f"{label}.b1"), step.s(label=f"{label}.b2")),
            step.s(label=f"{label}.c"),
        ],
        chord([step.s(label=f"{label}.d{n}") for n in range(2)], step.s(label=f"{label}.end")),
    )


# -- a process that dies at the N-th thing it asks of the engine ------------------------------------------------------------


def die_at_the_operation_that_the_test_names() -> None:
    """The file `kill` says `<run> <number> before|after`: the process that makes that operation dies, once in each run, and leaves a file `met-<run>`."""
    from pathlib import Path

    from celeriac.engines import open_engine
    from celeriac.testing.faulty import FaultyEngine

    here = Path(__file__).parent

    class Deadly(FaultyEngine):
        run = ""

        def _operate(self, verb: str, operation: Any, *, undo: Any = None) -> Any:
            if verb in ("wait", "heartbeat", "now") or os.getpid() == os.getsid(0):
                return operation()
            try:
                run, number, when = (here / "kill").read_text().split()
            except (FileNotFoundError, ValueError):
                return operation()
            if run != self.run:
                self.run, self.operations = run, 0
            self.operations += 1
            if self.operations != int(number):
                return operation()
            try:
                os.close(os.open(here / f"met-{run}", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                return operation()
            if when == "after":
                operation()
            os.kill(os.getpid(), signal.SIGKILL)

    settings = app.settings
    options = settings.broker_transport_options
    app._broker = Deadly(open_engine(settings.broker_url, result_expires=settings.result_expires, **options), fail_at=0)


if "FLOWS_KILL" in os.environ:
    die_at_the_operation_that_the_test_names()
