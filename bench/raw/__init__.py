"""What the drivers themselves can do on this machine: the same bytes in the same batches, and no queue logic at all. One module an engine, with

    call_us(…)       the least that one `.delay()` can cost: one round trip that leaves a message with the server
    drain_rate(…)    messages a second that two processes take and answer, 64 at a time
    round_trips(…)   milliseconds from a call to its answer, which another process gives: it waits for the message, stores an answer, and tells the caller

Nothing is looked for, leased, checked, or woken. Celeriac's rate divided by this one says what the queue costs.
"""

from __future__ import annotations

import os
import signal
import statistics
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass

BATCH = 64
"""As many as a busy worker takes."""


@dataclass(frozen=True, slots=True)
class Stored:
    """How many bytes Celeriac stores for one message and one record of `add(2, 2)`."""

    message: int = 220
    record: int = 160


def seconds_of(works: list[Callable[[], None]]) -> float:
    """Each in a process of its own, all at once: how long they took."""
    started = time.perf_counter()
    children = []
    for work in works:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                work()
                status = 0
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(status)
        children.append(child)
    codes = [os.waitpid(child, 0)[1] for child in children]
    seconds = time.perf_counter() - started
    if any(codes):
        raise RuntimeError("a process of the raw measurement failed")
    return seconds


def call_us(call: Callable[[], object], count: int) -> float:
    """Microseconds of one call, in a plain loop."""
    for _ in range(300):
        call()
    started = time.perf_counter()
    for _ in range(count):
        call()
    return (time.perf_counter() - started) / count * 1e6


def round_trips_ms(serve: Callable[[], None], call: Callable[[], object], count: int) -> dict[str, float]:
    """Of calls that follow each other, while a process of its own serves until it is ended. The first call waits for it."""
    child = os.fork()
    if child == 0:
        try:
            serve()
        except BaseException:
            traceback.print_exc()
        os._exit(1)
    try:
        for _ in range(100):
            call()
        seconds = []
        for _ in range(count):
            started = time.perf_counter()
            call()
            seconds.append(time.perf_counter() - started)
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return {"at_once_p50_ms": statistics.median(seconds) * 1e3, "at_once_p99_ms": statistics.quantiles(seconds, n=100)[98] * 1e3}
