"""It keeps no results: what a task returned is gone, and a caller who wants to know waits for its effect."""

from __future__ import annotations

import os
import time
from typing import Any

from procrastinate import App, PsycopgConnector

from .. import workload

url = os.environ["BENCH_BROKER"]
app = App(connector=PsycopgConnector(conninfo=url))


@app.task(name="bench_add")
async def _add(x: int, y: int) -> int:
    return workload.add(x, y)


@app.task(name="bench_stamp")
async def _stamp() -> int:
    return workload.stamp()


@app.task(name="bench_timed")
async def _timed(called_ns: int) -> int:
    return workload.timed(called_ns)


_opened = False


def _send(task: Any, **arguments: Any) -> int:
    """From a program that is not asynchronous; the worker opens the app for itself."""
    global _opened
    if not _opened:
        app.open()
        _opened = True
    return int(task.defer(**arguments))


def add(x: int, y: int) -> int:
    return _send(_add, x=x, y=y)


def timed(called_ns: int) -> int:
    return _send(_timed, called_ns=called_ns)


def stamp() -> int:
    """The start of the one before: `value` waits for another."""
    before = workload.last_stamp()
    _send(_stamp)
    return before


def value(before: int, timeout_seconds: float) -> int:
    deadline = time.monotonic() + timeout_seconds
    while (now := workload.last_stamp()) == before:
        if time.monotonic() > deadline:
            raise TimeoutError
        time.sleep(0.0001)
    return now
