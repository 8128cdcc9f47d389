"""redis-py with hiredis: messages in a list. A batch is one round trip: it pops the next 64 and stores the results of those before."""

from __future__ import annotations

import os
from functools import partial
from typing import Any

from . import BATCH, Stored, round_trips_ms, seconds_of
from . import call_us as timed

# mypy: disable-error-code="no-untyped-call"


def call_us(url: str, stored: Stored, count: int) -> float:
    """One RPUSH, answered."""
    connection = client(url)
    body = os.urandom(stored.message)
    microseconds = timed(lambda: connection.rpush("raw-calls", body), count)
    connection.close()
    return microseconds


def drain_rate(url: str, stored: Stored, count: int, processes: int = 2) -> float:
    connection = client(url)
    body = os.urandom(stored.message)
    for _ in range(0, count, 1000):
        connection.rpush("raw", *[body] * min(1000, count))
    total = connection.llen("raw")
    seconds = seconds_of([partial(_drain, url, os.urandom(stored.record), number) for number in range(processes)])
    answered = connection.dbsize()
    connection.close()
    if answered < total:
        raise RuntimeError(f"raw Redis answered {answered} of {total} messages")
    return float(total / seconds)


def _drain(url: str, record: bytes, number: int) -> None:
    connection = client(url)
    before, serial = 0, 0
    while True:
        pipeline = connection.pipeline(transaction=False)
        pipeline.lpop("raw", BATCH)
        if before:
            pipeline.mset({f"raw-result-{number}-{serial + position:024d}": record for position in range(before)})
            serial += before
        bodies = pipeline.execute()[0]
        if not bodies:
            return
        before = len(bodies)


def round_trips(url: str, stored: Stored, count: int) -> dict[str, float]:
    """A process waits at the list, stores the answer and tells it to who has subscribed, in one trip."""
    connection, news = client(url), answers(url)
    body = os.urandom(stored.message)

    def call() -> None:
        connection.rpush("raw-trips", body)
        await_answer(news)

    numbers = round_trips_ms(partial(_serve, url, os.urandom(stored.record)), call, count)
    news.close()
    connection.close()
    return numbers


def _serve(url: str, record: bytes) -> None:
    connection = client(url)
    while True:
        connection.blpop(["raw-trips"], 60)
        answer(connection, record)


def answer(connection: Any, record: bytes) -> None:
    """Stores it, and tells it."""
    pipeline = connection.pipeline(transaction=False)
    pipeline.set("raw-answer", record)
    pipeline.publish("raw-answers", record)
    pipeline.execute()


def answers(url: str) -> Any:
    """What hears of all answers from now on."""
    news = client(url).pubsub()
    news.subscribe("raw-answers")
    news.get_message(timeout=60.0)
    return news


def await_answer(news: Any) -> None:
    if news.get_message(timeout=60.0) is None:
        raise RuntimeError("no answer came")


def client(url: str) -> Any:
    import redis

    return redis.Redis.from_url(url)
