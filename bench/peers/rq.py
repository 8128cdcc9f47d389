from __future__ import annotations

import functools
import os
from typing import Any

from redis import Redis
from rq import Queue
from rq.job import Job

from .. import workload

connection = Redis.from_url(os.environ["BENCH_BROKER"])
queue = Queue("default", connection=connection)

add, stamp, timed, nap, pid = (
    functools.partial(queue.enqueue, function) for function in (workload.add, workload.stamp, workload.timed, workload.nap, workload.pid)
)


def value(job: Any, timeout_seconds: float) -> Any:
    result = job.latest_result(timeout=int(timeout_seconds))  # is woken by Redis
    return None if result is None else result.return_value


def key(job: Any) -> str:
    return str(job.id)


def find(job_id: str) -> Any:
    return Job.fetch(job_id, connection=connection)
