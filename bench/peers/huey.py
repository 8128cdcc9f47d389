from __future__ import annotations

import os
from typing import Any

from huey import RedisHuey
from huey.api import Result, Task

from .. import workload

# Callers that wait are woken by Redis instead of asking again and again: an option, which costs each task a little. So only where waiting is measured.
huey = RedisHuey("bench", url=os.environ["BENCH_BROKER"], notify_result=os.environ["BENCH_FIGURE"] == "latency")

add, stamp, timed, nap, pid = (
    huey.task(name=f"bench_{function.__name__}")(function)
    for function in (workload.add, workload.stamp, workload.timed, workload.nap, workload.pid)
)


def value(result: Any, timeout_seconds: float) -> Any:
    return result.get(blocking=True, timeout=timeout_seconds)


def key(result: Any) -> str:
    return str(result.id)


def find(task_id: str) -> Any:
    return Result(huey, Task(id=task_id))
