from __future__ import annotations

import os
from typing import Any

from celeriac import Celeriac

from .. import workload

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
later = app.tasks["bench.add"].apply_async
