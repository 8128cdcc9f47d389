from __future__ import annotations

import os
from typing import Any

import dramatiq
from dramatiq.brokers.rabbitmq import RabbitmqBroker
from dramatiq.brokers.redis import RedisBroker
from dramatiq.message import Message
from dramatiq.results import Results
from dramatiq.results.backends import RedisBackend

from .. import workload

url = os.environ["BENCH_BROKER"]
broker = RabbitmqBroker(url=url, confirm_delivery=True) if url.startswith("amqp") else RedisBroker(url=url)
broker.add_middleware(Results(backend=RedisBackend(url=os.environ["BENCH_BACKEND"]), store_results=True))
dramatiq.set_broker(broker)

add, stamp, timed, nap, pid = (
    dramatiq.actor(function, actor_name=f"bench_{function.__name__}").send
    for function in (workload.add, workload.stamp, workload.timed, workload.nap, workload.pid)
)


def value(message: Any, timeout_seconds: float) -> Any:
    return message.get_result(block=True, timeout=int(timeout_seconds * 1000))


def key(message: Any) -> str:
    return message.encode().decode()


def find(encoded: str) -> Any:
    return Message.decode(encoded.encode())
