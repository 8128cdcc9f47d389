"""The tasks that are measured: the very same lines for both sides. `BENCH_SIDE` says whose app they are registered with.

This module is imported by the workers and by the clients of both sides, so it uses nothing but the standard library and the side's own package.
"""

from __future__ import annotations

import importlib
import mmap
import os
import time
from pathlib import Path
from typing import Any

# One of the two packages is always missing here, so that the checkers cannot know the decorator.
# mypy: disable-error-code="untyped-decorator,misc"

SIDE = os.environ["BENCH_SIDE"]
BROKER = os.environ["BENCH_BROKER"]
BACKEND = os.environ["BENCH_BACKEND"]
COUNTERS = Path(os.environ["BENCH_COUNTERS"])

CELLS = 4096
"""Each process counts in a cell of its own, so that counting takes no lock (about 0.1 µs a task, on both sides)."""

_package = importlib.import_module(SIDE)
app: Any = (_package.Celery if SIDE == "celery" else _package.Celeriac)("bench", broker=BROKER, backend=BACKEND)


class Counters:
    """A file of counters that the workers, the producers and the bench itself have mapped: tasks started, and messages sent."""

    def __init__(self, path: Path) -> None:
        size = 2 * CELLS * 8
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(descriptor, size)
        self.cells = memoryview(mmap.mmap(descriptor, size)).cast("Q")
        os.close(descriptor)
        self.own_cell()
        os.register_at_fork(after_in_child=self.own_cell)

    def own_cell(self) -> None:
        self.mine = os.getpid() % CELLS


_counters = Counters(COUNTERS)
_cells = _counters.cells


@app.task(name="bench.add")
def add(x: int, y: int) -> int:
    """The no-op: what it costs is the queue's own work."""
    _cells[_counters.mine] += 1
    return x + y


@app.task(name="bench.stamp")
def stamp() -> int:
    """The moment it starts, on the clock that all processes of the machine share."""
    return time.monotonic_ns()


@app.task(name="bench.nap")
def nap(seconds: float) -> int:
    """A task that takes long; the moment it started."""
    started = time.monotonic_ns()
    time.sleep(seconds)
    return started


@app.task(name="bench.pid")
def pid() -> int:
    return os.getpid()


def count_sent() -> None:
    """Called by a producer for each message it has sent."""
    _cells[CELLS + _counters.mine] += 1
