"""Celeriac's own AMQP client on quorum queues, results in Redis: each process has a queue of its own, and takes what it holds as it comes (prefetch 128). For 64 messages it
acknowledges once, and stores their results in one round trip, before it does so."""

from __future__ import annotations

import os
import time
from functools import partial
from typing import Any

from . import BATCH, Stored, round_trips_ms, seconds_of
from . import call_us as timed
from .redis import answer, answers, await_answer, client

PATIENCE_SECONDS = 60.0
WINDOW = 256
"""So many publications are under way when the queues are filled."""


def call_us(url: str, stored: Stored, count: int) -> float:
    """One publication, persistent and confirmed."""
    from celeriac.engines import rabbitmq_wire as wire

    connection = _connection(url, confirms=True)
    _declare(connection, "raw-calls")
    message = _message("raw-calls", stored)

    def call() -> None:
        connection.ask(1, message, wire.BASIC_ACK, time.monotonic() + PATIENCE_SECONDS)

    microseconds = timed(call, count)
    connection.close()
    return microseconds


def drain_rate(url: str, results_url: str, stored: Stored, count: int, processes: int = 2) -> float:
    share = count // processes
    names = [f"raw-{number}" for number in range(processes)]
    for name in names:
        _fill(url, name, stored, share)
    record = os.urandom(stored.record)
    seconds = seconds_of([partial(_drain, url, results_url, name, share, record) for name in names])
    results = client(results_url)
    answered = results.dbsize()
    results.close()
    if answered != share * processes:
        raise RuntimeError(f"raw RabbitMQ answered {answered} of {share * processes} messages")
    return share * processes / seconds


def _drain(url: str, results_url: str, name: str, count: int, record: bytes) -> None:
    from celeriac.engines import rabbitmq_wire as wire

    connection, results = _connection(url), client(results_url)
    deadline = time.monotonic() + PATIENCE_SECONDS
    connection.ask(1, wire.prefetch(1, 2 * BATCH), wire.BASIC_QOS_OK, deadline)
    connection.ask(1, wire.consume(1, name, "raw"), wire.BASIC_CONSUME_OK, deadline)
    taken, answered = 0, 0
    while answered < count:
        while connection.arrived and taken - answered < BATCH:
            taken += connection.arrived.popleft().method == wire.BASIC_DELIVER
        if taken - answered == BATCH or taken == count:
            results.mset({f"{name}-result-{serial:024d}": record for serial in range(answered, taken)})
            connection.send(wire.acknowledgement(1, taken, multiple=True), deadline)
            answered = taken
        elif not connection.read(deadline):
            raise RuntimeError(f"{name} holds no more than {taken} of {count} messages")
    connection.close()


def round_trips(url: str, results_url: str, stored: Stored, count: int) -> dict[str, float]:
    """A publication, confirmed; a process is given it, stores the answer in Redis and tells it there, and acknowledges."""
    from celeriac.engines import rabbitmq_wire as wire

    connection, news = _connection(url, confirms=True), answers(results_url)
    _declare(connection, "raw-trips")
    message = _message("raw-trips", stored)

    def call() -> None:
        connection.ask(1, message, wire.BASIC_ACK, time.monotonic() + PATIENCE_SECONDS)
        await_answer(news)

    numbers = round_trips_ms(partial(_serve, url, results_url, os.urandom(stored.record)), call, count)
    news.close()
    connection.close()
    return numbers


def _serve(url: str, results_url: str, record: bytes) -> None:
    from celeriac.engines import rabbitmq_wire as wire

    connection, results = _connection(url), client(results_url)
    deadline = time.monotonic() + PATIENCE_SECONDS
    connection.ask(1, wire.prefetch(1, 10), wire.BASIC_QOS_OK, deadline)
    connection.ask(1, wire.consume(1, "raw-trips", "raw"), wire.BASIC_CONSUME_OK, deadline)
    taken = 0
    while True:
        while connection.arrived:
            if connection.arrived.popleft().method == wire.BASIC_DELIVER:
                taken += 1
                answer(results, record)
                connection.send(wire.acknowledgement(1, taken), time.monotonic() + PATIENCE_SECONDS)
        connection.read(time.monotonic() + PATIENCE_SECONDS)


def _fill(url: str, name: str, stored: Stored, count: int) -> None:
    from celeriac.engines import rabbitmq_wire as wire

    connection = _connection(url, confirms=True)
    _declare(connection, name)
    message = _message(name, stored)
    deadline = time.monotonic() + PATIENCE_SECONDS
    sent = confirmed = 0
    while confirmed < count:
        if sent < count and sent - confirmed <= WINDOW // 2:
            some = min(WINDOW, count - sent)
            connection.send(message * some, deadline)
            sent += some
        ack = connection.await_one(1, (wire.BASIC_ACK,), deadline)
        confirmed = int.from_bytes(ack.arguments[:8], "big")
    connection.close()


def _message(queue: str, stored: Stored) -> bytes:
    from celeriac.engines import rabbitmq_wire as wire

    properties = wire.properties({}, content_type="application/json", content_encoding="utf-8", priority=0, correlation_id="")
    return wire.publication(1, wire.shortstr(""), wire.shortstr(queue), properties, os.urandom(stored.message))


def _declare(connection: Any, queue: str) -> None:
    from celeriac.engines import rabbitmq_wire as wire

    deadline = time.monotonic() + PATIENCE_SECONDS
    connection.ask(1, wire.declare_queue(1, queue, {"x-queue-type": "quorum"}), wire.QUEUE_DECLARE_OK, deadline)


def _connection(url: str, *, confirms: bool = False) -> Any:
    from celeriac.engines import rabbitmq_wire as wire

    deadline = time.monotonic() + PATIENCE_SECONDS
    connection = wire.Connection(wire.Address.parse(url)[0], deadline)
    connection.open_channel(1, deadline)
    if confirms:
        connection.ask(1, wire.frame(1, wire.CONFIRM_SELECT, b"\x00"), wire.CONFIRM_SELECT_OK, deadline)
    return connection
