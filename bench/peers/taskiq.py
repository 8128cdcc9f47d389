from __future__ import annotations

import asyncio
import os
from collections.abc import Iterable
from typing import Any

from taskiq import AsyncTaskiqTask
from taskiq_redis import ListQueueBroker, RedisAsyncResultBackend

from .. import workload

# Of its two brokers the faster one: a list, from which a worker takes one at a time. (The other, on streams, acknowledges.)
broker = ListQueueBroker(os.environ["BENCH_BROKER"]).with_result_backend(RedisAsyncResultBackend(os.environ["BENCH_BACKEND"]))


async def _add(x: int, y: int) -> int:
    return workload.add(x, y)


async def _stamp() -> int:
    return workload.stamp()


async def _timed(called_ns: int) -> int:
    return workload.timed(called_ns)


async def _pid() -> int:
    return workload.pid()


async def _doze() -> int:
    return await workload.doze()


_tasks = {
    function.__name__[1:]: broker.task(task_name=f"bench{function.__name__}")(function) for function in (_add, _stamp, _timed, _pid, _doze)
}
_loop = asyncio.new_event_loop()


def many(name: str, arguments: Iterable[tuple[Any, ...]]) -> list[Any]:
    async def send() -> list[Any]:
        kiq = _tasks[name].kiq
        return [await kiq(*args) for args in arguments]

    return _loop.run_until_complete(send())


def value(handle: Any, timeout_seconds: float) -> Any:
    # It asks again and again; every 0.2 s if one says nothing.
    return _loop.run_until_complete(handle.wait_result(check_interval=0.0005, timeout=timeout_seconds)).return_value


def key(handle: Any) -> str:
    return str(handle.task_id)


def find(task_id: str) -> Any:
    return AsyncTaskiqTask(task_id, broker.result_backend)
