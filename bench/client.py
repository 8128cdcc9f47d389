"""What callers do, run in the interpreter of the side that is measured: `python -m bench.client COMMAND …` prints one line of JSON."""

from __future__ import annotations

import json
import random
import sys
import time
from collections.abc import Callable
from typing import Any

from . import workload

Answer = dict[str, Any]
PATIENCE_SECONDS = 120.0


def ready() -> Answer:
    """Returns when the worker has run tasks in both of its processes, or has had ample time to."""
    workload.stamp.delay().get(timeout=PATIENCE_SECONDS)
    deadline = time.monotonic() + 5
    seen: set[int] = set()
    while len(seen) < 2 and time.monotonic() < deadline:
        seen.update(result.get(timeout=PATIENCE_SECONDS) for result in [workload.pid.delay() for _ in range(20)])
    return {"pids": sorted(seen)}


def publish(count: str, warm_up: str = "0") -> Answer:
    """Calls `add.delay(2, 2)` in a plain loop. The sample of ids that it names is checked by `verify` afterwards."""
    for _ in range(int(warm_up)):
        workload.add.delay(2, 2)
    total = int(count)
    every = max(1, total // 100)
    ids: list[str] = []
    delay = workload.add.delay
    started = time.perf_counter()
    for number in range(total):
        result = delay(2, 2)
        if number % every == 0 or number >= total - 100:
            ids.append(result.id)
    seconds = time.perf_counter() - started
    return {"seconds": seconds, "per_call_us": seconds / total * 1e6, "ids": ids}


def verify(*ids: str) -> Answer:
    """Every one of these results is there and right; else an error."""
    for task_id in ids:
        value = workload.app.AsyncResult(task_id).get(timeout=PATIENCE_SECONDS)
        if value != 4:
            raise SystemExit(f"the result of {task_id} is {value!r}, not 4")
    return {"verified": len(ids)}


def produce(seconds: str) -> Answer:
    """Sends flat out for so long, and counts each message once it is sent."""
    delay, count_sent = workload.add.delay, workload.count_sent
    delay(2, 2)
    started = time.perf_counter()
    deadline = started + float(seconds)
    sent = 0
    while time.perf_counter() < deadline:
        delay(2, 2)
        count_sent()
        sent += 1
    return {"sent": sent, "seconds": time.perf_counter() - started}


def publish_later(count: str, seconds: str) -> Answer:
    """Sends tasks that are due only in so many seconds."""
    total, countdown = int(count), float(seconds)
    apply_async = workload.add.apply_async
    started = time.perf_counter()
    for _ in range(total):
        apply_async((2, 2), countdown=countdown)
    return {"seconds": time.perf_counter() - started, "per_call_us": (time.perf_counter() - started) / total * 1e6}


def latency(count: str) -> Answer:
    """One call at a time, with pauses between them in which the worker falls idle again; then one after another without pauses."""
    randomness = random.Random(7)
    for _ in range(30):
        workload.stamp.delay().get(timeout=PATIENCE_SECONDS)
    start_ms, result_ms, call_us = [], [], []
    for _ in range(int(count)):
        time.sleep(randomness.uniform(0.003, 0.020))
        called = time.monotonic_ns()
        result = workload.stamp.delay()
        sent = time.monotonic_ns()
        started = result.get(timeout=PATIENCE_SECONDS)
        in_hand = time.monotonic_ns()
        start_ms.append((started - called) / 1e6)
        result_ms.append((in_hand - called) / 1e6)
        call_us.append((sent - called) / 1e3)
    at_once_start_ms, at_once_ms = [], []
    for _ in range(int(count)):
        called = time.monotonic_ns()
        started = workload.stamp.delay().get(timeout=PATIENCE_SECONDS)
        at_once_start_ms.append((started - called) / 1e6)
        at_once_ms.append((time.monotonic_ns() - called) / 1e6)
    return {
        "start_ms": start_ms,
        "result_ms": result_ms,
        "call_us": call_us,
        "at_once_start_ms": at_once_start_ms,
        "at_once_ms": at_once_ms,
    }


def fairness_idle() -> Answer:
    """A task of 1 s, then 40 short ones, to an idle worker: how long the unluckiest waits for its start."""
    for result in [workload.stamp.delay() for _ in range(100)]:
        result.get(timeout=PATIENCE_SECONDS)
    time.sleep(0.3)
    long = workload.nap.delay(1.0)
    short = []
    for _ in range(40):
        called = time.monotonic_ns()
        short.append((called, workload.stamp.delay()))
    waited = [(result.get(timeout=PATIENCE_SECONDS) - called) / 1e6 for called, result in short]
    long.get(timeout=PATIENCE_SECONDS)
    return {"worst_ms": max(waited)}


def fairness_load() -> Answer:
    """Fills the queue before a worker is there: short tasks, the long one, 40 short ones. The worker meets the long one in the middle of its stride."""
    for _ in range(400):
        workload.stamp.delay()
    long = workload.nap.delay(1.0)
    return {"long": long.id, "short": [workload.stamp.delay().id for _ in range(40)]}


def fairness_collect(long: str, *short: str) -> Answer:
    """How long after the long task's start the unluckiest of those behind it started."""

    def started(task_id: str) -> int:
        value: int = workload.app.AsyncResult(task_id).get(timeout=PATIENCE_SECONDS)
        return value

    begin = started(long)
    return {"worst_ms": max((started(task_id) - begin) / 1e6 for task_id in short)}


def sizes() -> Answer:
    """How many bytes Celeriac stores for one message and one record of `add`; for the raw limit. Only where a worker has run."""
    import msgspec

    result = workload.add.delay(2, 2)
    result.get(timeout=PATIENCE_SECONDS)
    message = workload.app.producer.message("bench.add", (2, 2), {}, task=workload.add, options={}, parent=None)
    record = workload.app.backend.fetch([result.id])[result.id]
    return {"message": len(msgspec.json.encode(message)), "record": len(msgspec.json.encode(record))}


COMMANDS: dict[str, Callable[..., Answer]] = {
    command.__name__: command
    for command in (ready, publish, verify, produce, publish_later, latency, fairness_idle, fairness_load, fairness_collect, sizes)
}

if __name__ == "__main__":
    print(json.dumps(COMMANDS[sys.argv[1]](*sys.argv[2:])))
