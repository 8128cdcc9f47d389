from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from typing import Any

from saq import Queue
from saq.job import Status

from .. import workload

queue = Queue.from_url(os.environ["BENCH_BROKER"])


async def add(context: Any, *, x: int, y: int) -> int:
    return workload.add(x, y)


async def stamp(context: Any) -> int:
    return workload.stamp()


async def timed(context: Any, *, called_ns: int) -> int:
    return workload.timed(called_ns)


async def pid(context: Any) -> int:
    return workload.pid()


async def doze(context: Any) -> int:
    return await workload.doze()


settings = {"queue": queue, "functions": [add, stamp, timed, pid, doze], "concurrency": int(os.environ.get("BENCH_CONCURRENCY", "10"))}
_names = {"add": ("x", "y"), "stamp": (), "timed": ("called_ns",), "pid": (), "doze": ()}
_loop = asyncio.new_event_loop()


def many(name: str, arguments: Iterable[tuple[Any, ...]]) -> list[Any]:
    async def send() -> list[Any]:
        return [await queue.enqueue(name, **dict(zip(_names[name], args, strict=True))) for args in arguments]

    return _loop.run_until_complete(send())


def value(job: Any, timeout_seconds: float) -> Any:
    async def wait() -> Any:
        await job.refresh(until_complete=timeout_seconds)
        if job.status is not Status.COMPLETE:
            raise RuntimeError(f"{job.key} is {job.status}")
        return job.result

    return _loop.run_until_complete(wait())


def key(job: Any) -> str:
    return str(job.id)


def find(job_id: str) -> Any:
    return _loop.run_until_complete(queue.job(queue.job_key_from_id(job_id)))
