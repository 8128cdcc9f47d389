from __future__ import annotations

import os
from typing import Any

from celeriac import Celeriac

from .. import workload

FILLED_AT_ONCE = 200

app = Celeriac("bench", broker=os.environ["BENCH_BROKER"], backend=os.environ["BENCH_BACKEND"])

add, stamp, timed, nap, pid, doze = (
    app.task(name=f"bench.{function.__name__}")(function).delay
    for function in (workload.add, workload.stamp, workload.timed, workload.nap, workload.pid, workload.doze)
)


def value(result: Any, timeout_seconds: float) -> Any:
    return result.get(timeout=timeout_seconds)


def key(result: Any) -> str:
    return str(result.id)


find = app.AsyncResult


def fill(name: str, args: tuple[Any, ...], count: int) -> list[str]:
    """Many messages in one trip, as groups are sent."""
    task = app.tasks[f"bench.{name}"]
    keys = []
    for start in range(0, count, FILLED_AT_ONCE):
        some = min(FILLED_AT_ONCE, count - start)
        messages = [app.producer.message(task.name, args, {}, task=task, options={}, parent=None) for _ in range(some)]
        app.broker.publish(messages)
        keys += [message.id for message in messages]
    return keys


later = app.tasks["bench.add"].apply_async
