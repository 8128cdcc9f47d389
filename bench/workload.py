"""What the measured tasks do, and how they are counted: the very same lines for everybody. Each peer registers them in its own way (`bench/peers`).

This module is imported by the workers and the clients of every side, so it uses nothing but the standard library.
"""

from __future__ import annotations

import asyncio
import os
import time
from pathlib import Path

from .counting import LAST, Counters

counters = Counters(Path(os.environ["BENCH_COUNTERS"]))
_cells = counters.cells


def add(x: int, y: int) -> int:
    """The no-op: what it costs is the queue's own work."""
    _cells[counters.started] += 1
    return x + y


def stamp() -> int:
    """The moment it starts, on the clock that all processes of the machine share."""
    now = _cells[LAST] = time.monotonic_ns()
    return now


def timed(called_ns: int) -> int:
    """A no-op that counts how long ago it was called."""
    counters.has_waited(time.monotonic_ns() - called_ns)
    _cells[counters.started] += 1
    return 4


def nap(seconds: float) -> int:
    """A task that takes long; the moment it started."""
    started = time.monotonic_ns()
    time.sleep(seconds)
    return started


async def doze() -> int:
    """10 ms of waiting for something outside."""
    _cells[counters.started] += 1
    await asyncio.sleep(0.01)
    return 4


def pid() -> int:
    return os.getpid()


def count_sent() -> None:
    """Called by a producer for each message that it sends."""
    _cells[counters.sent] += 1


def last_stamp() -> int:
    """When the last `stamp` started: for peers that keep no results."""
    return _cells[LAST]
